"""AlexNet (Krizhevsky 2012) and its successor ZFNet (Zeiler and Fergus 2013)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from models.zoo.builder import Builder

if TYPE_CHECKING:
    from models.zoo.graph import Value


def alexnet(*, small: bool) -> Builder:
    """Two grouped halves, LRN, pools that overlap, 61 million weights of which 59 are in Gemms."""
    b = Builder("alexnet", opset=13, ir_version=7)
    unit = 4 if small else 32
    x = b.input(1, 3, 96 if small else 224, 96 if small else 224)
    x = b.relu(b.conv(x, 3 * unit, 11, 4, pads=2))
    x = b.max_pool(b.lrn(x), 3, 2)
    x = b.relu(b.conv(x, 8 * unit, 5, groups=2))
    x = b.max_pool(b.lrn(x), 3, 2)
    x = b.relu(b.conv(x, 12 * unit))
    x = b.relu(b.conv(x, 12 * unit, groups=2))
    x = b.relu(b.conv(x, 8 * unit, groups=2))
    _classifier(b, b.max_pool(x, 3, 2), 128 * unit, 10 if small else 1000)
    return b


def zfnet(*, small: bool) -> Builder:
    """Like AlexNet, with a 7x7 first window and no groups."""
    b = Builder("zfnet", opset=13, ir_version=7)
    unit = 2 if small else 32
    x = b.input(1, 3, 96 if small else 224, 96 if small else 224)
    x = b.relu(b.conv(x, 3 * unit, 7, 2, pads=1))
    x = b.lrn(b.max_pool(x, 3, 2, 1))
    x = b.relu(b.conv(x, 8 * unit, 5, 2, pads=0))
    x = b.lrn(b.max_pool(x, 3, 2, 1))
    for channels in (12, 12, 8):
        x = b.relu(b.conv(x, channels * unit))
    _classifier(b, b.max_pool(x, 3, 2), 128 * unit, 10 if small else 1000)
    return b


def _classifier(b: Builder, x: Value, hidden: int, classes: int) -> None:
    x = b.flatten(x)
    for _ in range(2):
        x = b.relu(b.gemm(x, hidden))
    b.output(b.softmax(b.gemm(x, classes)), "prob")
