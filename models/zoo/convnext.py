"""ConvNeXt-T (Liu 2022)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from models.zoo.builder import Builder

if TYPE_CHECKING:
    from models.zoo.graph import Value

_BRANCH = 0.5  # what LayerScale leaves of a block's branch


def convnext(*, small: bool) -> Builder:
    """Depthwise 7x7, LayerNormalization and MatMul on channels last, Gelu."""
    b = Builder("convnext", opset=20, ir_version=9)
    size, width = (64, 8) if small else (224, 96)
    x = b.conv(b.input(1, 3, size, size), width, 4, 4, pads=0)
    x = _normalized(b, x)
    for stage, blocks in enumerate((1, 1, 2, 1) if small else (3, 3, 9, 3)):
        if stage:
            x = b.conv(_normalized(b, x), width << stage, 2, 2, pads=0)
        for _ in range(blocks):
            x = _block(b, x)
    x = b.layer_norm(b.reduce_mean(x, 2, 3))
    b.output(b.dense(x, 10 if small else 1000, 2.0), "logits")
    return b


def _normalized(b: Builder, x: Value) -> Value:
    return _first(b, b.layer_norm(_last(b, x)))


def _block(b: Builder, x: Value) -> Value:
    y = b.layer_norm(_last(b, b.conv(x, x.channels, 7, groups=x.channels)))
    y = b.dense(b.act(b.dense(y, 4 * x.channels), "gelu"), x.channels)
    return b.add(_first(b, b.scaled(y, _BRANCH)), x)


def _last(b: Builder, x: Value) -> Value:
    return b.transpose(x, 0, 2, 3, 1)


def _first(b: Builder, x: Value) -> Value:
    return b.transpose(x, 0, 3, 1, 2)
