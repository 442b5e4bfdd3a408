"""U-Net (Ronneberger 2015), with padded windows, enlarging in the two ways that are found."""

from __future__ import annotations

from typing import TYPE_CHECKING

from models.zoo.builder import Builder

if TYPE_CHECKING:
    from collections.abc import Callable

    from models.zoo.graph import Value

    Join = Callable[[Builder, Value, Value], Value]

_DEPTH = 4
_CLASSES = 2


def unet_transposed(*, small: bool) -> Builder:
    """Enlarges by ConvTranspose; long skips by Concat."""
    b = Builder("unet_transposed", opset=13, ir_version=7)
    return _unet(b, 64 if small else 256, 4 if small else 64, 1, _transposed)


def unet_resize(*, small: bool) -> Builder:
    """Enlarges by bilinear Resize; odd maps, so that what is enlarged is padded to its skip."""
    b = Builder("unet_resize", opset=13, ir_version=7)
    return _unet(b, 76 if small else 252, 4 if small else 64, 2, _resized)


def _unet(b: Builder, size: int, width: int, halving: int, join: Join) -> Builder:
    """Add the whole net; bilinear variants halve the channels that are to be enlarged."""
    x = _double(b, b.input(1, 3, size, size), width, width)
    skips = []
    for level in range(1, _DEPTH + 1):
        skips.append(x)
        channels = width << level
        if level == _DEPTH:
            channels //= halving
        x = _double(b, b.max_pool(x, 2, 2), channels, channels)
    for level in reversed(range(_DEPTH)):
        channels = width << level
        joined = join(b, skips.pop(), x)
        last = channels if level == 0 else channels // halving
        x = _double(b, joined, joined.channels // halving if halving > 1 else channels, last)
    b.output(b.conv(x, _CLASSES, 1), "mask")
    return b


def _double(b: Builder, x: Value, between: int, channels: int) -> Value:
    return b.conv_bn(b.conv_bn(x, between), channels)


def _transposed(b: Builder, skip: Value, x: Value) -> Value:
    return b.concat([skip, b.conv_transpose(x, x.channels // 2)])


def _resized(b: Builder, skip: Value, x: Value) -> Value:
    x = b.resize(x, 2.0, "linear", "half_pixel")
    missing = [whole - part for whole, part in zip(skip.size, x.size, strict=True)]
    if any(missing):
        down, right = missing
        borders = (down // 2, right // 2, down - down // 2, right - right // 2)
        x = b.pad(x, borders, "constant")
    return b.concat([skip, x])
