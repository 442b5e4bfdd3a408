"""A feature pyramid (Lin 2016) on ResNet-18."""

from __future__ import annotations

from models.zoo.builder import Builder
from models.zoo.resnet import basic_block, stem


def fpn(*, small: bool) -> Builder:
    """Four stages read again from coarse to fine by Resize and Add; five outputs."""
    b = Builder("fpn")
    size, width, wide = (96, 4, 8) if small else (512, 64, 256)
    x = stem(b, b.input(1, 3, size, size), width)
    stages = []
    for stage in range(4):
        x = basic_block(b, x, width << stage, 2 if stage else 1)
        x = basic_block(b, x, width << stage)
        stages.append(x)
    merged = b.conv(stages.pop(), wide, 1)
    levels = [b.conv(merged, wide)]
    while stages:
        larger = b.resize(merged, 2.0, "nearest", "asymmetric")
        merged = b.add(b.conv(stages.pop(), wide, 1), larger)
        levels.insert(0, b.conv(merged, wide))
    levels.append(b.max_pool(levels[-1], 1, 2))
    for level, features in enumerate(levels, 2):
        b.output(features, f"p{level}")
    return b
