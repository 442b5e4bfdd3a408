"""Fast neural style transfer (Johnson 2016), as in PyTorch's examples."""

from __future__ import annotations

from typing import TYPE_CHECKING

from models.zoo.builder import Builder

if TYPE_CHECKING:
    from models.zoo.graph import Value


def instance_norm_style(*, small: bool) -> Builder:
    """Reflected borders, InstanceNormalization over whole maps, nearest enlargement."""
    b = Builder("instance_norm_style")
    size, width = (64, 4) if small else (256, 32)
    x = _conv(b, b.input(1, 3, size, size), width, 9)
    x = _conv(b, x, 2 * width, 3, 2)
    x = _conv(b, x, 4 * width, 3, 2)
    for _ in range(2 if small else 5):
        y = _conv(b, x, 4 * width, 3)
        x = b.add(_conv(b, y, 4 * width, 3, act=False), x)
    for channels in (2 * width, width):
        x = _conv(b, b.resize(x, 2.0, "nearest", "asymmetric"), channels, 3)
    x = b.pad(x, (4, 4, 4, 4), "reflect")
    b.output(b.conv(x, 3, 9, pads=0), "styled")
    return b


def _conv(
    b: Builder, x: Value, channels: int, kernel: int, stride: int = 1, *, act: bool = True
) -> Value:
    border = kernel // 2
    x = b.pad(x, (border, border, border, border), "reflect")
    x = b.instance_norm(b.conv(x, channels, kernel, stride, pads=0))
    return b.relu(x) if act else x
