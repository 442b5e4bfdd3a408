"""SqueezeNet 1.0 (Iandola 2016)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from models.zoo.builder import Builder

if TYPE_CHECKING:
    from models.zoo.graph import Value


def squeezenet(*, small: bool) -> Builder:
    """Fire modules, pools that round up, a convolution in place of a Gemm at the end."""
    b = Builder("squeezenet", opset=13, ir_version=7)
    unit = 4 if small else 16
    size = 71 if small else 224
    x = b.relu(b.conv(b.input(1, 3, size, size), 6 * unit, 7, 2, pads=0))
    x = b.max_pool(x, 3, 2, ceil=True)
    for index, squeezed in enumerate((1, 1, 2, 2, 3, 3, 4, 4)):
        x = _fire(b, x, squeezed * unit)
        if index in {2, 6}:
            x = b.max_pool(x, 3, 2, ceil=True)
    x = b.relu(b.conv(x, 10 if small else 1000, 1, gain=3.0))
    b.output(b.softmax(b.flatten(b.global_pool(x))), "prob")
    return b


def _fire(b: Builder, x: Value, squeezed: int) -> Value:
    x = b.relu(b.conv(x, squeezed, 1))
    return b.concat([b.relu(b.conv(x, 4 * squeezed, 1)), b.relu(b.conv(x, 4 * squeezed, 3))])
