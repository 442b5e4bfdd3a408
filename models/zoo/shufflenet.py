"""ShuffleNet v1 with three groups (Zhang 2017) and v2 (Ma 2018)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from models.zoo.builder import Builder

if TYPE_CHECKING:
    from models.zoo.graph import Value

_GROUPS = 3


def shufflenet_v1(*, small: bool) -> Builder:
    """Grouped 1x1 convolutions, whose channels Reshape and Transpose mix."""
    b = Builder("shufflenet_v1")
    size, unit = (64, 48) if small else (224, 240)
    x = b.max_pool(b.conv_bn(b.input(1, 3, size, size), 24, 3, 2), 3, 2, 1)
    for stage, blocks in enumerate((1, 2, 1) if small else (3, 7, 3)):
        x = _unit_v1(b, x, unit << stage, 2, 1 if stage == 0 else _GROUPS)
        for _ in range(blocks):
            x = _unit_v1(b, x, unit << stage, 1, _GROUPS)
    b.output(b.gemm(b.flatten(b.global_pool(x)), 10 if small else 1000, 2.0), "logits")
    return b


def shufflenet_v2(*, small: bool) -> Builder:
    """Half of the channels pass by each unit: Split, Concat, shuffle."""
    b = Builder("shufflenet_v2")
    size, unit = (64, 12) if small else (224, 116)
    x = b.max_pool(b.conv_bn(b.input(1, 3, size, size), 24, 3, 2), 3, 2, 1)
    for stage, blocks in enumerate((1, 2, 1) if small else (3, 7, 3)):
        half = (unit << stage) // 2
        x = _shuffled(b, b.concat([_down_v2(b, x, half), _branch_v2(b, x, half, 2)]), 2)
        for _ in range(blocks):
            kept, changed = b.split(x, half, half)
            x = _shuffled(b, b.concat([kept, _branch_v2(b, changed, half, 1)]), 2)
    x = b.conv_bn(x, 64 if small else 1024, 1)
    x = b.reduce_mean(x, 2, 3)
    b.output(b.gemm(x, 10 if small else 1000, 2.0), "logits")
    return b


def _unit_v1(b: Builder, x: Value, channels: int, stride: int, groups_before: int) -> Value:
    # Where the map shrinks, the channels of the pooled input count among the unit's.
    made = channels if stride == 1 else channels - x.channels
    y = b.conv_bn(x, channels // 4, 1, groups=groups_before)
    y = _shuffled(b, y, _GROUPS)
    y = b.conv_bn(y, y.channels, 3, stride, groups=y.channels, act="")
    y = b.conv_bn(y, made, 1, groups=_GROUPS, act="", gain=0.5 if stride == 1 else 1.0)
    if stride == 1:
        return b.relu(b.add(x, y))
    pooled = b.average_pool(x, 3, stride, 1, count_pads=True)
    return b.relu(b.concat([pooled, y]))


def _down_v2(b: Builder, x: Value, channels: int) -> Value:
    x = b.conv_bn(x, x.channels, 3, 2, groups=x.channels, act="")
    return b.conv_bn(x, channels, 1)


def _branch_v2(b: Builder, x: Value, channels: int, stride: int) -> Value:
    x = b.conv_bn(x, channels, 1)
    x = b.conv_bn(x, channels, 3, stride, groups=channels, act="")
    return b.conv_bn(x, channels, 1)


def _shuffled(b: Builder, x: Value, groups: int) -> Value:
    channels, (height, width) = x.channels, x.size
    x = b.reshape(x, 1, groups, channels // groups, height, width)
    return b.reshape(b.transpose(x, 0, 2, 1, 3, 4), 1, channels, height, width)
