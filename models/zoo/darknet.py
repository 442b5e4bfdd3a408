"""YOLOv2 (Redmon 2016), and tiny YOLOv3 (Redmon 2018) with its head in the graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

from models.zoo.builder import Builder

if TYPE_CHECKING:
    from models.zoo.graph import Value

_ANCHORS = 3

# Channels in units of 32, and window; None is a pool.
_YOLOV2 = (
    (1, 3),
    None,
    (2, 3),
    None,
    (4, 3),
    (2, 1),
    (4, 3),
    None,
    (8, 3),
    (4, 1),
    (8, 3),
    None,
    (16, 3),
    (8, 1),
    (16, 3),
    (8, 1),
)


def yolov2_16(*, small: bool) -> Builder:
    """The first 16 layers of YOLOv2, which papers on split inference measure."""
    b = Builder("yolov2_16")
    size, unit = (96, 4) if small else (608, 32)
    x = b.input(1, 3, size, size)
    for layer in _YOLOV2:
        if layer is None:
            x = b.max_pool(x, 2, 2)
        else:
            channels, kernel = layer
            x = b.conv_bn(x, channels * unit, kernel, act="leaky")
    b.output(x, "features")
    return b


def yolo_tiny_head(*, small: bool) -> Builder:
    """A detector whose graph ends in one list of boxes: Reshape, Transpose, Concat, Sigmoid."""
    b = Builder("yolo_tiny_head", opset=13, ir_version=7)
    size, unit, classes = (96, 2, 4) if small else (416, 16, 80)
    x = b.input(1, 3, size, size)
    for factor in (1, 2, 4, 8):
        x = b.max_pool(b.conv_bn(x, factor * unit, act="leaky"), 2, 2)
    skip = b.conv_bn(x, 16 * unit, act="leaky")
    x = b.conv_bn(b.max_pool(skip, 2, 2), 32 * unit, act="leaky")
    x = b.max_pool(x, 2, 1, "SAME_UPPER")
    x = b.conv_bn(x, 64 * unit, act="leaky")
    x = b.conv_bn(x, 16 * unit, 1, act="leaky")

    fields = 5 + classes
    coarse = b.conv(b.conv_bn(x, 32 * unit, act="leaky"), _ANCHORS * fields, 1)
    x = b.resize(b.conv_bn(x, 8 * unit, 1, act="leaky"), 2.0, "nearest", "asymmetric")
    x = b.conv_bn(b.concat([x, skip]), 16 * unit, act="leaky")
    fine = b.conv(x, _ANCHORS * fields, 1)
    boxes = b.concat([_listed(b, coarse, fields), _listed(b, fine, fields)])
    b.output(b.act(boxes, "sigmoid"), "boxes")
    return b


def _listed(b: Builder, x: Value, fields: int) -> Value:
    """Turn a map into [1, boxes, fields]."""
    height, width = x.size
    x = b.reshape(x, 1, _ANCHORS, fields, height * width)
    x = b.transpose(x, 0, 1, 3, 2)
    return b.reshape(x, 1, _ANCHORS * height * width, fields)
