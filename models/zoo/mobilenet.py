"""MobileNet v1 (Howard 2017), v2 (Sandler 2018) and v3 large (Howard 2019)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from models.zoo.builder import Builder

if TYPE_CHECKING:
    from models.zoo.graph import Value

# Channels in units of 32, and stride.
V1 = ((2, 1), (4, 2), (4, 1), (8, 2), (8, 1), (16, 2), *((16, 1),) * 5, (32, 2), (32, 1))
V1_SMALL = ((2, 1), (4, 2), (8, 2), (16, 2), (16, 1), (32, 2))

# Expansion, channels, repeats, stride of the first.
_V2 = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)

# Kernel, expanded channels, channels, squeeze-and-excitation, activation, stride.
_V3 = (
    (3, 16, 16, False, "relu", 1),
    (3, 64, 24, False, "relu", 2),
    (3, 72, 24, False, "relu", 1),
    (5, 72, 40, True, "relu", 2),
    (5, 120, 40, True, "relu", 1),
    (5, 120, 40, True, "relu", 1),
    (3, 240, 80, False, "hardswish", 2),
    (3, 200, 80, False, "hardswish", 1),
    (3, 184, 80, False, "hardswish", 1),
    (3, 184, 80, False, "hardswish", 1),
    (3, 480, 112, True, "hardswish", 1),
    (3, 672, 112, True, "hardswish", 1),
    (5, 672, 160, True, "hardswish", 2),
    (5, 960, 160, True, "hardswish", 1),
    (5, 960, 160, True, "hardswish", 1),
)


def mobilenet_v1(*, small: bool) -> Builder:
    """Depthwise and 1x1 convolutions in turn."""
    b = Builder("mobilenet_v1")
    size, unit = (64, 4) if small else (224, 32)
    x = b.conv_bn(b.input(1, 3, size, size), unit, 3, 2)
    for channels, stride in V1_SMALL if small else V1:
        x = b.conv_bn(x, x.channels, 3, stride, groups=x.channels)
        x = b.conv_bn(x, channels * unit, 1)
    b.output(b.gemm(b.flatten(b.global_pool(x)), 10 if small else 1000, 2.0), "logits")
    return b


def mobilenet_v2(*, small: bool) -> Builder:
    """Inverted residuals, ReLU6 as Clip."""
    b = Builder("mobilenet_v2")
    share = 4 if small else 1
    x = b.input(1, 3, 64 if small else 224, 64 if small else 224)
    x = b.conv_bn(x, 32 // share, 3, 2, act="relu6")
    for expansion, channels, repeats, first in _V2:
        for index in range(min(repeats, 2) if small else repeats):
            stride = 1 if index else first
            x = _inverted(b, x, expansion, channels // share, stride)
    x = b.conv_bn(x, 1280 // share, 1, act="relu6")
    b.output(b.gemm(b.flatten(b.global_pool(x)), 10 if small else 1000, 2.0), "logits")
    return b


def mobilenet_v3(*, small: bool) -> Builder:
    """HardSwish, and squeeze-and-excitation gated by HardSigmoid."""
    b = Builder("mobilenet_v3")
    share = 4 if small else 1
    x = b.input(1, 3, 64 if small else 224, 64 if small else 224)
    x = b.conv_bn(x, 16 // share, 3, 2, act="hardswish")
    for kernel, expanded, channels, excited, act, stride in _V3:
        y = x
        if expanded // share != x.channels:
            y = b.conv_bn(y, expanded // share, 1, act=act)
        y = b.conv_bn(y, y.channels, kernel, stride, groups=y.channels, act=act)
        if excited:
            squeezed = _rounded(y.channels / 4)
            y = b.squeeze_excite(y, squeezed, "relu", "hardsigmoid", reduce=True)
        y = b.conv_bn(y, channels // share, 1, act="")
        x = b.add(y, x) if y.shape == x.shape else y
    x = b.conv_bn(x, 960 // share, 1, act="hardswish")
    x = b.flatten(b.global_pool(x))
    x = b.act(b.gemm(x, 1280 // share), "hardswish")
    b.output(b.gemm(x, 10 if small else 1000, 2.0), "logits")
    return b


def _inverted(b: Builder, x: Value, expansion: int, channels: int, stride: int) -> Value:
    y = b.conv_bn(x, x.channels * expansion, 1, act="relu6") if expansion > 1 else x
    y = b.conv_bn(y, y.channels, 3, stride, groups=y.channels, act="relu6")
    y = b.conv_bn(y, channels, 1, act="")
    return b.add(x, y) if y.shape == x.shape else y


def _rounded(channels: float) -> int:
    """Return the nearest multiple of 8, but no less than nine tenths."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * channels else nearest + 8
