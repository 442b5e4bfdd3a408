"""From class scores of pixels to a mask of the picture, and what there is to say of it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from agent.scores import DIGITS, activated, in_picture, sigmoid
from agent.wire.manifest import MAX_MASK_CLASSES, PICTURE_RANK, class_count

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from agent.scores import Frame
    from agent.wire.manifest import Manifest

NOTHING = MAX_MASK_CLASSES  # a pixel of no class, where there is no background to put it to


class Segmentation(NamedTuple):
    """The classes of pixels, uint8 [H, W], and of what part of the picture, as fractions.

    `told` is the answer but for the mask, `legend` names the classes that occur.
    """

    mask: NDArray[np.uint8]
    box: list[float]
    legend: dict[str, str]
    told: dict[str, Any]


def segmented(output: NDArray[Any], manifest: Manifest, frame: Frame) -> Segmentation:
    """Give each pixel of an output a class; pixels in the bars of a letterbox are left out.

    A pixel is of the class with the highest score; with a threshold, and a lower score than that,
    of the background. NaN is no score. One map of floats is the score of class 1, 0 being the
    background; one of integers has the classes themselves.

    Raises:
        ConfigError: if the output has no shape for a segmentation.
    """
    classes = _classes(output, manifest)
    rows = _visible(classes.shape[0], frame[1], frame[3])
    columns = _visible(classes.shape[1], frame[0], frame[2])
    mask = classes[rows, columns]
    pixels = np.bincount(mask.ravel(), minlength=256)
    height, width = classes.shape
    cells = np.array([width, height, width, height])
    corner = np.array([columns.start, rows.start, columns.start, rows.start])
    boxes = in_picture((_bounds(mask) + corner) / cells, frame)
    covered = np.array([columns.start, rows.start, columns.stop, rows.stop]) / cells
    present = np.flatnonzero(pixels).tolist()
    legend = {index: _label(manifest, index) for index in present}
    shares = dict.fromkeys(manifest.labels, 0.0)
    for index in present:
        shares[legend[index]] = round(
            shares.get(legend[index], 0.0) + int(pixels[index]) / mask.size, DIGITS
        )
    regions = [
        {
            "label": legend[index],
            "index": index,
            "share": round(int(pixels[index]) / mask.size, DIGITS),
            "box": boxes[index].tolist(),
        }
        for index in sorted(present, key=lambda index: -int(pixels[index]))
        if index not in {manifest.background, NOTHING}
    ]
    told = {"task": "segmentation", "regions": regions, "shares": shares}
    named = {str(index): label for index, label in legend.items()}
    return Segmentation(mask, in_picture(covered, frame).tolist(), named, told)


def _label(manifest: Manifest, index: int) -> str:
    return "nothing" if index == NOTHING else manifest.label(index)


def _classes(output: NDArray[Any], manifest: Manifest) -> NDArray[np.uint8]:
    """Return the class of each pixel."""
    count = class_count(manifest, output.shape)
    nothing = manifest.background if manifest.background >= 0 else NOTHING
    if count == 1:
        first = 1 if output.ndim < PICTURE_RANK or manifest.input.layout == "nhwc" else 2
        plane = output.reshape(output.shape[first : first + 2])
        if plane.dtype.kind == "f":
            values = sigmoid(plane) if manifest.output.sigmoid else plane
            return (values >= manifest.threshold).astype(np.uint8)
        known = (plane >= 0) & (plane < MAX_MASK_CLASSES)
        return np.where(known, plane, nothing).astype(np.uint8)
    scores = output[0] if manifest.input.layout == "nchw" else np.moveaxis(output[0], -1, 0)
    threshold = manifest.output.threshold
    if threshold is not None:
        # Without a threshold it would take time, and leave the order of classes as it is.
        scores = activated(scores, manifest)
    # Plane by plane, several times faster than argmax; NaN is never more than another score.
    best = np.full(scores.shape[1:], -np.inf, np.result_type(scores.dtype, np.float32))
    classes = np.full(scores.shape[1:], nothing, np.uint8)
    for index, plane in enumerate(scores):
        better = plane > best
        np.copyto(best, plane, where=better)
        np.copyto(classes, np.uint8(index), where=better)
    if threshold is not None:
        classes[~(best >= threshold)] = nothing
    return classes


def _visible(extent: int, low: float, high: float) -> slice:
    """Return which of `extent` cells, that lie from `low` to `high`, are in the picture (0 to 1).

    Those are whose middle is; at least one.
    """
    start, stop = (
        min(extent, max(0, math.ceil(extent * (edge - low) / (high - low) - 0.5)))
        for edge in (0.0, 1.0)
    )
    start = min(start, extent - 1)
    return slice(start, max(start + 1, stop))


def _bounds(mask: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the box (x0, y0, x1, y1) in cells around each class in a mask, [256, 4]."""
    edges = []
    for axis, extent in enumerate(mask.shape):
        seen = np.zeros((256, extent), np.bool_)
        line = np.arange(extent)
        seen[mask, line[:, None] if axis == 0 else line[None, :]] = True
        edges.append((seen.argmax(axis=1), extent - seen[:, ::-1].argmax(axis=1)))
    (top, bottom), (left, right) = edges
    return np.stack([left, top, right, bottom], axis=1).astype(np.float64)
