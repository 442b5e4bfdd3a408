"""EfficientNet-B0 (Tan and Le 2019)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from models.zoo.builder import Builder

if TYPE_CHECKING:
    from models.zoo.graph import Value

# Expansion, kernel, channels, repeats, stride of the first.
_STAGES = (
    (1, 3, 16, 1, 1),
    (6, 3, 24, 2, 2),
    (6, 5, 40, 2, 2),
    (6, 3, 80, 3, 2),
    (6, 5, 112, 3, 1),
    (6, 5, 192, 4, 2),
    (6, 3, 320, 1, 1),
)


def efficientnet_b0(*, small: bool) -> Builder:
    """Squeeze-and-excitation in every block, SiLU as Sigmoid and Mul."""
    b = Builder("efficientnet_b0")
    share = 4 if small else 1
    x = b.input(1, 3, 64 if small else 224, 64 if small else 224)
    x = b.conv_bn(x, 32 // share, 3, 2, act="silu")
    for expansion, kernel, channels, repeats, first in _STAGES:
        for index in range(min(repeats, 2) if small else repeats):
            stride = 1 if index else first
            x = _block(b, x, expansion, (kernel, stride), channels // share)
    x = b.conv_bn(x, 1280 // share, 1, act="silu")
    b.output(b.gemm(b.flatten(b.global_pool(x)), 10 if small else 1000, 2.0), "logits")
    return b


def _block(b: Builder, x: Value, expansion: int, window: tuple[int, int], channels: int) -> Value:
    kernel, stride = window
    y = b.conv_bn(x, x.channels * expansion, 1, act="silu") if expansion > 1 else x
    y = b.conv_bn(y, y.channels, kernel, stride, groups=y.channels, act="silu")
    y = b.squeeze_excite(y, max(1, x.channels // 4), "silu", "sigmoid", reduce=False)
    y = b.conv_bn(y, channels, 1, act="")
    return b.add(y, x) if y.shape == x.shape else y
