"""GoogLeNet, or Inception v1 (Szegedy 2014), without its training heads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from models.zoo.builder import Builder

if TYPE_CHECKING:
    from models.zoo.graph import Value

# 1x1; 3x3 reduced, 3x3; 5x5 reduced, 5x5; pool projected. None is a pool between stages.
_MODULES = (
    (64, 96, 128, 16, 32, 32),
    (128, 128, 192, 32, 96, 64),
    None,
    (192, 96, 208, 16, 48, 64),
    (160, 112, 224, 24, 64, 64),
    (128, 128, 256, 24, 64, 64),
    (112, 144, 288, 32, 64, 64),
    (256, 160, 320, 32, 128, 128),
    None,
    (256, 160, 320, 32, 128, 128),
    (384, 192, 384, 48, 128, 128),
)


def googlenet(*, small: bool) -> Builder:
    """Four branches a module, LRN, pools that round up."""
    b = Builder("googlenet", opset=13, ir_version=7)
    share = 8 if small else 1
    x = b.input(1, 3, 64 if small else 224, 64 if small else 224)
    x = b.relu(b.conv(x, 64 // share, 7, 2))
    x = b.lrn(b.max_pool(x, 3, 2, ceil=True))
    x = b.relu(b.conv(x, 64 // share, 1))
    x = b.relu(b.conv(x, 192 // share))
    x = b.max_pool(b.lrn(x), 3, 2, ceil=True)
    for widths in _MODULES:
        if widths is None:
            x = b.max_pool(x, 3, 2, ceil=True)
        else:
            x = _module(b, x, [width // share for width in widths])
    # Its window is the whole map: what others write as GlobalAveragePool.
    x = b.flatten(b.average_pool(x, x.size[0], 1))
    b.output(b.softmax(b.gemm(x, 10 if small else 1000, 2.0)), "prob")
    return b


def _module(b: Builder, x: Value, widths: list[int]) -> Value:
    one, three_before, three, five_before, five, projected = widths
    branches = [
        b.conv(x, one, 1),
        b.conv(b.relu(b.conv(x, three_before, 1)), three),
        b.conv(b.relu(b.conv(x, five_before, 1)), five, 5),
        b.conv(b.max_pool(x, 3, 1, 1), projected, 1),
    ]
    return b.concat([b.relu(branch) for branch in branches])
