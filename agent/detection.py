"""From a detector's outputs to objects: boxes are decoded, chosen by score and overlap.

Everything that is compared is rounded before: scores, and boxes as fractions of the picture. So
devices whose outputs differ by rounding choose the same objects, and what is answered is exactly
what was compared: no two boxes of a class overlap by more than `iou`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from agent.errors import ConfigError
from agent.scores import in_picture, rounded, sigmoid, softmax, zeros
from agent.wire.detection import BOX, map_extents, picture_extents, read_layout
from agent.wire.manifest import PICTURE_RANK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from agent.scores import Frame
    from agent.wire.detection import DetectionManifest
    from agent.wire.manifest import Manifest

# Of scores and boxes: the rounding of float32, in a deep network, is to be lost in nearly all.
DIGITS = 4
MAX_CANDIDATES = 1000  # boxes that are compared with each other, the best ones

Array = np.ndarray[Any, Any]
Size = tuple[int, int]


class Boxes(NamedTuple):
    """Boxes [N, 4] (x0, y0, x1, y1) in fractions of the model's input, scores [N], classes [N]."""

    corners: NDArray[np.float64]
    scores: NDArray[np.float64]
    classes: NDArray[np.int64]


def detected(
    outputs: Sequence[Array], manifest: Manifest, frame: Frame, input_shape: Sequence[int]
) -> dict[str, Any]:
    """Return the answer of a detector: see `agent.answers.answer`.

    Raises:
        ConfigError: if the outputs have no shape for the manifest's format.
    """
    detection = manifest.detection
    if detection is None or len(input_shape) != PICTURE_RANK:
        raise ConfigError("task: detection needs `detection.format`, and a picture as input")
    layout = manifest.input.layout
    shapes = [output.shape for output in outputs]
    found = read_layout(detection, layout, len(manifest.labels), input_shape, shapes)
    chosen = [outputs[position] for position in found.outputs]
    size = picture_extents(input_shape, layout)
    # Whatever NaN and infinities lead to is dropped in the end.
    with np.errstate(over="ignore", invalid="ignore"):
        if detection.format == "nms-included":
            boxes = _final(chosen, detection, size)
        elif detection.format == "ssd":
            corners = _corners(_table(chosen[0]), detection, size)
            boxes = Boxes(corners, *_best(_table(chosen[1]).T, manifest))
        elif detection.format in {"yolov8", "yolov5"}:
            table = _table(chosen[0])
            boxes = _yolo(table if found.columns else table.T, manifest, detection, size)
        else:
            maps = [_map(output, detection, layout, number) for number, output in enumerate(chosen)]
            parts = [
                _anchor_free(values, manifest, detection)
                if detection.format == "yolov8-raw"
                else _anchored(values, manifest, detection, number, size)
                for number, values in enumerate(maps)
            ]
            corners, scores, classes = (np.concatenate(part) for part in zip(*parts, strict=True))
            boxes = Boxes(corners, scores, classes)
        kept = _candidates(boxes, manifest, frame)
    if detection.format == "nms-included":
        order = np.arange(len(kept.scores))[: detection.max_objects]
    else:
        order = suppressed(
            kept.corners,
            kept.classes if detection.per_class else np.zeros_like(kept.classes),
            detection.iou,
            detection.max_objects,
        )
    counts = zeros(manifest)
    objects = []
    for index in order.tolist():
        label = manifest.label(int(kept.classes[index]))
        counts[label] = counts.get(label, 0) + 1
        objects.append(
            {
                "label": label,
                "score": float(kept.scores[index]),
                "box": kept.corners[index].tolist(),
            }
        )
    return {"task": "detection", "objects": objects, "counts": counts}


def suppressed(
    corners: NDArray[np.float64], classes: NDArray[np.int64], iou: float, most: int
) -> NDArray[np.int64]:
    """Return which of boxes [N, 4] remain, the best first: not those that overlap a better one.

    Boxes come from the best to the worst, and only those of the same class are compared.
    """
    low = np.maximum(corners[:, None, :2], corners[None, :, :2])
    high = np.minimum(corners[:, None, 2:], corners[None, :, 2:])
    common = np.prod(np.clip(high - low, 0.0, None), axis=2)
    areas = np.prod(corners[:, 2:] - corners[:, :2], axis=1)
    total = areas[:, None] + areas[None, :] - common
    # Multiplied, not divided: boxes may have no area.
    clashes = (common > iou * total) & (classes[:, None] == classes[None, :])
    left = np.ones(len(corners), np.bool_)
    kept: list[int] = []
    for index in range(len(corners)):
        if len(kept) == most:
            break
        if left[index]:
            kept.append(index)
            left &= ~clashes[index]
    return np.array(kept, np.int64)


def _candidates(boxes: Boxes, manifest: Manifest, frame: Frame) -> Boxes:
    """Return the boxes that may be told, in the picture, the best first."""
    scores = rounded(boxes.scores, DIGITS)
    sound = np.isfinite(scores) & (scores >= manifest.threshold) & (boxes.classes >= 0)
    sound &= np.isfinite(boxes.corners).all(axis=1) & (boxes.classes != manifest.background)
    chosen = np.flatnonzero(sound)
    corners = in_picture(boxes.corners[chosen], frame, DIGITS)
    seen = (corners[:, 2] > corners[:, 0]) & (corners[:, 3] > corners[:, 1])
    chosen, corners = chosen[seen], corners[seen]
    order = np.argsort(-scores[chosen], kind="stable")[:MAX_CANDIDATES]
    return Boxes(corners[order], scores[chosen][order], boxes.classes[chosen][order])


def _best(
    values: Array, manifest: Manifest, *, raw: bool = False
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the best score and class of each column of class scores [C, N], none of background.

    With `raw` they are logits, unless the manifest says otherwise.
    """
    wishes = manifest.output
    if wishes.softmax:
        values = softmax(values)
    background = manifest.background
    if 0 <= background < len(values):
        values = np.concatenate([values[:background], values[background + 1 :]])
        if not len(values):
            return np.zeros(values.shape[1]), np.zeros(values.shape[1], np.int64)
    classes = values.argmax(axis=0)
    scores = np.take_along_axis(values, classes[None], axis=0)[0].astype(np.float64)
    # The order of logits is that of their scores: only the best one's need be computed.
    if wishes.sigmoid or (raw and wishes.sigmoid is None and not wishes.softmax):
        scores = sigmoid(scores)
    if background >= 0:
        classes = classes + (classes >= background)
    return scores, classes.astype(np.int64)


def _corners(values: Array, detection: DetectionManifest, size: Size) -> NDArray[np.float64]:
    """Return boxes [N, 4], written as the manifest says, as corners in fractions of the input."""
    exact = values.astype(np.float64)
    if detection.coding == "yxyx":
        exact = exact[:, [1, 0, 3, 2]]
    elif detection.coding == "cxcywh":
        half = exact[:, 2:] / 2
        exact = np.concatenate([exact[:, :2] - half, exact[:, :2] + half], axis=1)
    height, width = size
    return exact if detection.fractions else exact / [width, height, width, height]


def _yolo(columns: Array, manifest: Manifest, detection: DetectionManifest, size: Size) -> Boxes:
    """Read decoded boxes [4 or 5 + C, N]."""
    corners = _corners(columns[:BOX].T, detection, size)
    if detection.format == "yolov8":
        return Boxes(corners, *_best(columns[BOX:], manifest))
    objectness = columns[BOX].astype(np.float64)
    if manifest.output.sigmoid:
        objectness = sigmoid(objectness)
    scores, classes = _best(columns[BOX + 1 :], manifest)
    return Boxes(corners, scores * objectness, classes)


def _map(output: Array, detection: DetectionManifest, layout: str, number: int) -> Array:
    """Return a raw map as [attributes, H, W], or with anchors [A, attributes, H, W]."""
    channels, height, width = map_extents(output.shape, layout)
    values: Array = output[0]
    if output.ndim > PICTURE_RANK:
        return np.moveaxis(values, -1, 1)
    if layout == "nhwc":
        values = np.moveaxis(values, -1, 0)
    if detection.format == "yolov8-raw":
        return values
    anchors = len(detection.anchors[number]) // 2
    return values.reshape(anchors, channels // anchors, height, width)


def _anchored(
    values: Array, manifest: Manifest, detection: DetectionManifest, number: int, size: Size
) -> Boxes:
    """Decode a raw map [A, 5 + C, H, W] as YOLOv3 or v5 do."""
    count, attributes, height, width = values.shape
    pairs = np.array(detection.anchors[number]).reshape(count, 2, 1, 1) / [[[size[1]]], [[size[0]]]]
    raw = manifest.output.sigmoid is not False
    places = values[:, :BOX].astype(np.float64)
    shares = sigmoid(places) if raw else places
    grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)))[None]
    cells = np.array([width, height]).reshape(1, 2, 1, 1)
    if detection.format == "yolov5-raw":
        centres = (2 * shares[:, :2] - 0.5 + grid) / cells
        sides = (2 * shares[:, 2:]) ** 2 * pairs
    else:
        centres = (shares[:, :2] + grid) / cells
        sides = np.exp(places[:, 2:]) * pairs
    corners = np.concatenate([centres - sides / 2, centres + sides / 2], axis=1)
    objectness = values[:, BOX].astype(np.float64).ravel()
    columns = np.moveaxis(values[:, BOX + 1 :], 1, 0).reshape(attributes - BOX - 1, -1)
    scores, classes = _best(columns, manifest, raw=True)
    return Boxes(
        np.moveaxis(corners, 1, -1).reshape(-1, BOX),
        scores * (sigmoid(objectness) if raw else objectness),
        classes,
    )


def _anchor_free(values: Array, manifest: Manifest, detection: DetectionManifest) -> Boxes:
    """Decode a raw map [4 * bins + C, H, W]: distances to the four sides, in cells."""
    channels, height, width = values.shape
    columns = values.reshape(channels, -1)
    bins = detection.bins
    scores, classes = _best(columns[BOX * bins :], manifest, raw=True)
    # The distances are most of the arithmetic, and few cells see anything.
    chosen = np.flatnonzero(rounded(scores, DIGITS) >= manifest.threshold)
    distances = columns[: BOX * bins, chosen].astype(np.float64).reshape(BOX, bins, -1)
    if bins == 1:
        left, top, right, bottom = distances[:, 0]
    else:
        weights = softmax(np.moveaxis(distances, 1, 0))
        left, top, right, bottom = (weights * np.arange(bins).reshape(-1, 1, 1)).sum(axis=0)
    x, y = chosen % width + 0.5, chosen // width + 0.5
    corners = np.stack([x - left, y - top, x + right, y + bottom], axis=1)
    return Boxes(corners / [width, height, width, height], scores[chosen], classes[chosen])


def _final(chosen: Sequence[Array], detection: DetectionManifest, size: Size) -> Boxes:
    """Read boxes among which the model itself has chosen."""
    table = _table(chosen[0])
    if len(chosen) > 1:
        classes, scores = (part.reshape(-1) for part in chosen[1:])
        places = table
    elif table.shape[1] == BOX + 2:
        places, scores, classes = table[:, :BOX], table[:, BOX], table[:, BOX + 1]
    else:
        table = table[table[:, 0] == 0]  # of the first picture; rows that are padding have -1
        places, classes, scores = table[:, 1 : BOX + 1], table[:, BOX + 1], table[:, BOX + 2]
    numbers = classes.astype(np.float64)
    numbers = np.where(np.abs(numbers) < 2**31, np.round(numbers), -1)  # NaN is no class either
    return Boxes(
        _corners(places, detection, size), scores.astype(np.float64), numbers.astype(np.int64)
    )


def _table(output: Array) -> Array:
    """Return 1 x N x M or N x M as [N, M]."""
    return output.reshape(output.shape[-2:])
