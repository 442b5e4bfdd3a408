"""How a detector's outputs are laid out: what a manifest says of it, held against their shapes.

A manifest names one of these formats; C is the number of classes, N the number of boxes:

    yolov8        1 x (4 + C) x N, or transposed: cx, cy, w, h, a score for each class
    yolov5        1 x N x (5 + C), or transposed: cx, cy, w, h, objectness, class scores
    yolov8-raw    maps 1 x (4 * bins + C) x H x W: distances to the four sides (DFL), class scores
    yolov5-raw    maps 1 x (A * (5 + C)) x H x W or 1 x A x H x W x (5 + C), with A anchors
    yolov3-raw    the same, decoded as by YOLOv2 and v3 (exponential of width and height)
    ssd           boxes 1 x N x 4 and class scores 1 x N x C, in two outputs
    nms-included  rows 1 x N x 6 (box, score, class) or N x 7 (batch, box, class, score); or
                  outputs 1 x N x 4, 1 x N, 1 x N: boxes, classes, scores
"""

from __future__ import annotations

from itertools import pairwise
from math import isfinite
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from msgspec import Meta, Struct

from agent.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

Format = Literal[
    "yolov8", "yolov5", "yolov8-raw", "yolov5-raw", "yolov3-raw", "ssd", "nms-included"
]
Coding = Literal["cxcywh", "xyxy", "yxyx"]

RAW = frozenset({"yolov8-raw", "yolov5-raw", "yolov3-raw"})
ANCHORED = frozenset({"yolov5-raw", "yolov3-raw"})
BOX = 4  # numbers that say where a box is

_MAP_RANK, _ANCHOR_MAP_RANK = 4, 5
_ROW = {6, 7}
_SPLIT = 3  # outputs of "nms-included" that is not in rows: boxes, classes, scores

Anchors = Annotated[tuple[float, ...], Meta(min_length=2, max_length=64)]
Position = Annotated[int, Meta(ge=0)]


class DetectionManifest(Struct, frozen=True, forbid_unknown_fields=True):
    """How boxes are read from the outputs, and which of them are told.

    `boxes` and `normalized` (fractions of the model's input rather than its pixels) follow the
    format where they are left out. `anchors` has a row w, h, w, h, ... in pixels for each map,
    from the finest map to the coarsest. `outputs` says where the format's outputs are among the
    model's, counted from 0, for when shapes do not tell.
    """

    format: Format
    boxes: Coding | None = None
    normalized: bool | None = None
    anchors: Annotated[tuple[Anchors, ...], Meta(max_length=16)] = ()
    bins: Annotated[int, Meta(ge=1, le=64)] = 16
    iou: float = 0.45
    per_class: bool = True
    max_objects: Annotated[int, Meta(ge=1, le=1000)] = 100
    outputs: Annotated[tuple[Position, ...], Meta(max_length=16)] = ()

    @property
    def coding(self) -> Coding:
        """How a box is written."""
        return self.boxes or ("cxcywh" if self.format in {"yolov8", "yolov5"} else "xyxy")

    @property
    def fractions(self) -> bool:
        """Whether boxes are fractions of the model's input, not pixels."""
        return self.format == "ssd" if self.normalized is None else self.normalized

    def __post_init__(self) -> None:
        # Written so that NaN, which TOML can say, is refused as well.
        if not 0 <= self.iou <= 1:
            raise ValueError("`iou` must be from 0 to 1")
        if self.format in RAW and not (self.boxes is None and self.normalized is None):
            raise ValueError(
                f"`boxes` and `normalized` are not for {self.format}, whose maps are decoded"
            )
        if bool(self.anchors) != (self.format in ANCHORED):
            need = "needs `anchors`" if self.format in ANCHORED else "has no `anchors`"
            raise ValueError(f"format {self.format} {need}")
        if any(len(row) % 2 for row in self.anchors):
            raise ValueError("`anchors` must be rows of w, h, w, h, ...")
        if not all(isfinite(side) and side > 0 for row in self.anchors for side in row):
            raise ValueError("`anchors` must be above 0 (pixels of the model's input)")
        means = [sum(row) / len(row) for row in self.anchors]
        if any(fine > coarse for fine, coarse in pairwise(means)):
            raise ValueError(
                "`anchors` must go from the finest map's to the coarsest's, small ones first"
            )


class Reading(NamedTuple):
    """Where a format is found in a model's outputs.

    `outputs` are positions: of the one output; of the maps, from the finest; of boxes and scores;
    or of boxes, classes and scores. `classes` is None where the outputs do not say how many there
    are. `columns` tells that a box is a column, not a row.
    """

    outputs: tuple[int, ...]
    classes: int | None
    columns: bool = False


def read_layout(
    detection: DetectionManifest,
    input_layout: str,
    labels: int,
    input_shape: Sequence[int],
    output_shapes: Sequence[Sequence[int]],
) -> Reading:
    """Find a format in outputs of these shapes.

    Args:
        detection: what the manifest says.
        input_layout: the input's layout, "nchw" or "nhwc", which the maps of raw formats share.
        labels: how many labels the manifest has, 0 where it does not say.
        input_shape: the shape of the model's input, a picture.
        output_shapes: those of the model's outputs, in order.

    Raises:
        ConfigError: naming the field that does not fit, and what is expected.
    """
    shapes = [tuple(shape) for shape in output_shapes]
    if any(position >= len(shapes) for position in detection.outputs):
        raise ConfigError(
            f"detection.outputs: it names output {max(detection.outputs)}, "
            f"but the model has {len(shapes)}, counted from 0"
        )
    if detection.format in {"yolov8", "yolov5"}:
        return _columns_or_rows(detection, labels, shapes)
    if detection.format == "ssd":
        return _boxes_and_scores(detection, shapes)
    if detection.format == "nms-included":
        return _final(detection, shapes)
    height, width = picture_extents(input_shape, input_layout)
    return _maps(detection, input_layout, (height, width), shapes)


def picture_extents(input_shape: Sequence[int], layout: str) -> tuple[int, int]:
    """Return the height and width of an input that is a picture."""
    _, *extents = input_shape
    return (extents[1], extents[2]) if layout == "nchw" else (extents[0], extents[1])


def map_extents(shape: Sequence[int], layout: str) -> tuple[int, int, int]:
    """Return the channels (of all anchors), height and width of a raw map."""
    if len(shape) == _ANCHOR_MAP_RANK:
        return shape[1] * shape[4], shape[2], shape[3]
    _, *extents = shape
    if layout == "nchw":
        return extents[0], extents[1], extents[2]
    return extents[2], extents[0], extents[1]


def _columns_or_rows(
    detection: DetectionManifest, labels: int, shapes: list[tuple[int, ...]]
) -> Reading:
    """Tell 1 x (attributes + C) x N from its transpose: by the labels, else by the longer axis."""
    (position,) = _positions(detection, 1, (0,))
    shape = shapes[position] if shapes else ()
    attributes = BOX if detection.format == "yolov8" else BOX + 1
    extents = shape[1:] if len(shape) == 3 and shape[0] == 1 else shape  # noqa: PLR2004
    if len(extents) != 2 or max(extents) <= attributes:  # noqa: PLR2004 - boxes by attributes
        raise _misfit(
            detection, f"one output 1 x boxes x ({attributes} + classes), or transposed", [shape]
        )
    wanted = attributes + labels
    native = detection.format == "yolov8"  # as it is exported, which decides where nothing does
    if labels and wanted in extents:
        columns = extents[0] == wanted and (extents[1] != wanted or native)
    else:
        columns = extents[1] <= attributes or attributes < extents[0] < extents[1] + native
    return Reading((position,), extents[0 if columns else 1] - attributes, columns)


def _boxes_and_scores(detection: DetectionManifest, shapes: list[tuple[int, ...]]) -> Reading:
    tables = [_table(shape) for shape in shapes]
    found: tuple[int, ...] = ()
    for boxes, table in enumerate(tables):
        if table is None or table[1] != BOX:
            continue
        others = (
            other
            for other, scores in enumerate(tables)
            if other != boxes and scores is not None and scores[0] == table[0]
        )
        found = (boxes, *(other for other in others))[:2]
        break
    positions = _positions(detection, 2, found)
    chosen = [tables[position] for position in positions]
    boxes_table, scores_table = chosen if len(chosen) == 2 else (None, None)  # noqa: PLR2004
    if (
        boxes_table is None
        or scores_table is None
        or boxes_table[1] != BOX
        or boxes_table[0] != scores_table[0]
    ):
        wanted = "two outputs, boxes 1 x N x 4 and scores 1 x N x classes"
        raise _misfit(detection, wanted, shapes)
    return Reading(positions, scores_table[1])


def _final(detection: DetectionManifest, shapes: list[tuple[int, ...]]) -> Reading:
    count = len(detection.outputs) or (_SPLIT if len(shapes) >= _SPLIT else 1)
    positions = detection.outputs or tuple(range(count))
    chosen = [shapes[position] for position in positions if position < len(shapes)]
    tables = [_table(shape) for shape in chosen]
    if len(tables) == 1 and tables[0] is not None and tables[0][1] in _ROW:
        return Reading(positions, None)
    boxes = tables[0] if len(tables) == _SPLIT else None
    if (
        boxes is None
        or boxes[1] != BOX
        or any(shape not in {(boxes[0],), (1, boxes[0])} for shape in chosen[1:])
    ):
        wanted = (
            "one output of rows of 6 or 7, or three outputs, boxes 1 x N x 4, classes 1 x N "
            "and scores 1 x N (say which with detection.outputs)"
        )
        raise _misfit(detection, wanted, shapes)
    return Reading(positions, None)


def _maps(
    detection: DetectionManifest,
    layout: str,
    size: tuple[int, int],
    shapes: list[tuple[int, ...]],
) -> Reading:
    ranks = {_MAP_RANK, _ANCHOR_MAP_RANK} if detection.format in ANCHORED else {_MAP_RANK}
    positions = detection.outputs or tuple(
        position for position, shape in enumerate(shapes) if len(shape) in ranks and shape[0] == 1
    )
    chosen = [shapes[position] for position in positions]
    if not chosen or any(len(shape) not in ranks or shape[0] != 1 for shape in chosen):
        raise _misfit(detection, "maps 1 x channels x height x width", shapes)
    extents = {
        position: map_extents(shape, layout)
        for position, shape in zip(positions, chosen, strict=True)
    }
    for position, (_, height, width) in extents.items():
        if min(height, width) < 1 or size[0] % height or size[1] % width:
            raise _misfit(
                detection,
                f"maps whose height and width divide the input's {size[0]} x {size[1]} "
                f"in layout {layout}",
                [shapes[position]],
            )
    fine_first = tuple(sorted(extents, key=lambda position: -extents[position][1]))
    if detection.format in ANCHORED and len(detection.anchors) != len(fine_first):
        raise ConfigError(
            f"detection.anchors: there are {len(detection.anchors)} rows, "
            f"but the model has {len(fine_first)} maps"
        )
    classes = set()
    for number, position in enumerate(fine_first):
        channels, *_ = extents[position]
        if detection.format in ANCHORED:
            anchors = len(detection.anchors[number]) // 2
            whole = channels % anchors == 0 and (
                len(shapes[position]) == _MAP_RANK or shapes[position][1] == anchors
            )
            count = channels // anchors - BOX - 1
            wanted = f"a map of {anchors} x (5 + classes) channels, as it has {anchors} anchors"
        else:
            whole, count = True, channels - BOX * detection.bins
            wanted = f"maps of 4 x {detection.bins} + classes channels (see detection.bins)"
        if not whole or count < 1:
            raise _misfit(detection, wanted, [shapes[position]])
        classes.add(count)
    if len(classes) > 1:
        raise _misfit(detection, "maps of equally many classes", chosen)
    return Reading(fine_first, classes.pop())


def _positions(
    detection: DetectionManifest, count: int, default: tuple[int, ...]
) -> tuple[int, ...]:
    if not detection.outputs:
        return default
    if len(detection.outputs) != count:
        raise ConfigError(
            f"detection.outputs: {detection.format} has {count}, "
            f"but there are {len(detection.outputs)}"
        )
    return detection.outputs


def _table(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """Return the extents of N x M or 1 x N x M."""
    extents = shape[1:] if len(shape) == 3 and shape[0] == 1 else shape  # noqa: PLR2004
    return (extents[0], extents[1]) if len(extents) == 2 else None  # noqa: PLR2004


def _misfit(
    detection: DetectionManifest, wanted: str, shapes: Sequence[Sequence[int]]
) -> ConfigError:
    told = ", ".join("x".join(map(str, shape)) for shape in shapes) or "no output"
    return ConfigError(
        f"detection.format: {detection.format} needs {wanted}, but the model has {told}"
    )
