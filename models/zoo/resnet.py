"""ResNet-50 and -152 (He 2015), and the stages that other models have as their backbone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from models.zoo.builder import Builder

if TYPE_CHECKING:
    from models.zoo.graph import Value

_BRANCH = 0.5  # a block changes its input rather than replace it, as a trained one does
_EXPANSION = 4


def resnet50(*, small: bool) -> Builder:
    """Bottlenecks with residual additions, BatchNormalization left as nodes."""
    return _resnet("resnet50", (1, 2, 1, 1) if small else (3, 4, 6, 3), small=small)


def resnet152(*, small: bool) -> Builder:
    """The same in fifty blocks: 515 nodes."""
    return _resnet("resnet152", (1, 2, 3, 1) if small else (3, 8, 36, 3), small=small)


def _resnet(name: str, repeats: tuple[int, ...], *, small: bool) -> Builder:
    b = Builder(name)
    width = 8 if small else 64
    x = stem(b, b.input(1, 3, 64 if small else 224, 64 if small else 224), width)
    for stage, blocks in enumerate(repeats):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            x = bottleneck(b, x, width << stage, stride)
    b.output(b.gemm(b.flatten(b.global_pool(x)), 10 if small else 1000, 2.0), "logits")
    return b


def stem(b: Builder, x: Value, width: int) -> Value:
    """Add the 7x7 convolution and the pool with which every ResNet begins."""
    return b.max_pool(b.conv_bn(x, width, 7, 2), 3, 2, 1)


def bottleneck(b: Builder, x: Value, width: int, stride: int = 1, dilation: int = 1) -> Value:
    """Add a block of 1x1, 3x3, 1x1, whose shortcut is projected where shapes differ."""
    channels = width * _EXPANSION
    y = b.conv_bn(x, width, 1)
    y = b.conv_bn(y, width, 3, stride, dilation=dilation)
    y = b.conv_bn(y, channels, 1, act="", gain=_BRANCH)
    return b.relu(b.add(y, _shortcut(b, x, channels, stride)))


def basic_block(b: Builder, x: Value, width: int, stride: int = 1) -> Value:
    """Add a block of two 3x3, as in ResNet-18."""
    y = b.conv_bn(x, width, 3, stride)
    y = b.conv_bn(y, width, 3, act="", gain=_BRANCH)
    return b.relu(b.add(y, _shortcut(b, x, width, stride)))


def _shortcut(b: Builder, x: Value, channels: int, stride: int) -> Value:
    if stride == 1 and x.channels == channels:
        return x
    return b.conv_bn(x, channels, 1, stride, act="")
