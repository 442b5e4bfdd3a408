"""DeepLab v3 on ResNet-50 (Chen 2017), at an output stride of 8."""

from __future__ import annotations

from typing import TYPE_CHECKING

from models.zoo.builder import Builder
from models.zoo.resnet import bottleneck, stem

if TYPE_CHECKING:
    from models.zoo.graph import Value

_CLASSES = 21
_STAGES = ((3, 1, 1), (4, 2, 1), (6, 1, 2), (3, 1, 4))  # blocks, stride, dilation


def deeplab(*, small: bool) -> Builder:
    """Dilated windows as wide as the map, a branch that is one pixel, corners aligned."""
    b = Builder("deeplab")
    size, width, wide = (65, 4, 16) if small else (321, 64, 256)
    rates = (2, 4, 6) if small else (12, 24, 36)
    image = b.input(1, 3, size, size)
    x = stem(b, image, width)
    for stage, (blocks, first, dilation) in enumerate(_STAGES):
        for block in range(1 if small else blocks):
            # A stage that does not shrink the map starts with the dilation of the stage before.
            rate = dilation if block else max(1, dilation // 2)
            x = bottleneck(b, x, width << stage, 1 if block else first, rate)
    x = b.conv_bn(_pyramid(b, x, wide, rates), wide)
    x = b.conv(x, _CLASSES, 1)
    b.output(b.resize(x, image.size, "linear", "align_corners"), "mask")
    return b


def _pyramid(b: Builder, x: Value, channels: int, rates: tuple[int, ...]) -> Value:
    branches = [b.conv_bn(x, channels, 1)]
    branches += [b.conv_bn(x, channels, dilation=rate) for rate in rates]
    pooled = b.conv_bn(b.global_pool(x), channels, 1)
    branches.append(b.resize(pooled, x.size, "linear", "half_pixel"))
    return b.conv_bn(b.concat(branches), channels, 1)
