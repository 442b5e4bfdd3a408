"""YOLOv8n (Jocher 2023) up to the raw outputs of its three scales."""

from __future__ import annotations

from typing import TYPE_CHECKING

from models.zoo.builder import STEEP, Builder

if TYPE_CHECKING:
    from models.zoo.graph import Value

_BOX_BINS = 64  # four sides, each a distribution over 16 distances


def yolo(*, small: bool) -> Builder:
    """C2f blocks by Split, three chained pools, features that go up and down again."""
    b = Builder("yolo")
    width, twice, classes = (4, 1, 4) if small else (16, 2, 80)
    size = 96 if small else 640
    x = _conv(b, b.input(1, 3, size, size, name="images"), width, 3, 2)
    x = _c2f(b, _conv(b, x, 2 * width, 3, 2), 2 * width, 1)
    p3 = _c2f(b, _conv(b, x, 4 * width, 3, 2), 4 * width, twice)
    p4 = _c2f(b, _conv(b, p3, 8 * width, 3, 2), 8 * width, twice)
    p5 = _pools(b, _c2f(b, _conv(b, p4, 16 * width, 3, 2), 16 * width, 1))

    up4 = _c2f(b, b.concat([_larger(b, p5), p4]), 8 * width, 1, shortcut=False)
    n3 = _c2f(b, b.concat([_larger(b, up4), p3]), 4 * width, 1, shortcut=False)
    down4 = b.concat([_conv(b, n3, 4 * width, 3, 2), up4])
    n4 = _c2f(b, down4, 8 * width, 1, shortcut=False)
    down5 = b.concat([_conv(b, n4, 8 * width, 3, 2), p5])
    n5 = _c2f(b, down5, 16 * width, 1, shortcut=False)

    box, kind = (8, 16) if small else (64, 80)
    for scale, x in (("stride8", n3), ("stride16", n4), ("stride32", n5)):
        boxes = _conv(b, _conv(b, x, box, 3), box, 3)
        kinds = _conv(b, _conv(b, x, kind, 3), kind, 3)
        raw = [b.conv(boxes, _BOX_BINS, 1), b.conv(kinds, classes, 1)]
        b.output(b.concat(raw), scale)
    return b


def _conv(b: Builder, x: Value, channels: int, kernel: int, stride: int = 1) -> Value:
    # Exported, a YOLO has its BatchNormalization folded into the convolution.
    return b.act(b.conv(x, channels, kernel, stride, gain=STEEP["silu"]), "silu")


def _c2f(b: Builder, x: Value, channels: int, repeats: int, *, shortcut: bool = True) -> Value:
    parts = b.split(_conv(b, x, channels, 1), channels // 2, channels // 2)
    for _ in range(repeats):
        y = _conv(b, _conv(b, parts[-1], channels // 2, 3), channels // 2, 3)
        parts.append(b.add(parts[-1], y) if shortcut else y)
    return _conv(b, b.concat(parts), channels, 1)


def _pools(b: Builder, x: Value) -> Value:
    channels = x.channels
    parts = [_conv(b, x, channels // 2, 1)]
    for _ in range(3):
        parts.append(b.max_pool(parts[-1], 5, 1, 2))
    return _conv(b, b.concat(parts), channels, 1)


def _larger(b: Builder, x: Value) -> Value:
    return b.resize(x, 2.0, "nearest", "asymmetric")
