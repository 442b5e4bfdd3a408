"""From a model's outputs to an answer that a person or another program can read: plain JSON.

Everything here is deterministic: ties go to the lower class, objects come in reading order, and
scores are rounded, so that devices whose outputs differ by rounding give the same text.
"""

from __future__ import annotations

import math
from base64 import b64encode
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from agent.adapters.pictures import encode_mask
from agent.detection import detected
from agent.errors import ConfigError
from agent.scores import WHOLE, activated, finite, in_picture
from agent.segmentation import segmented
from agent.wire.manifest import class_count

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from agent.scores import Frame
    from agent.wire.manifest import Manifest

MAX_DATA = 1024  # elements of a tensor that are given in full

Run = tuple[int, int, int, int]
"""Cells of one class next to each other: (row, start column, stop column, class)."""


def answer(
    outputs: Mapping[str, NDArray[Any]],
    manifest: Manifest,
    frame: Frame = WHOLE,
    input_shape: Sequence[int] = (),
) -> dict[str, Any]:
    """Return the answer that the manifest's task asks for, ready for JSON.

    Numbers that JSON cannot say (infinities, NaN) are None.

    Args:
        outputs: the model's outputs by name, in the model's order; detections are read from those
            that the manifest's format has, other tasks' answers from the first: [1, N], or
            [1, C, H, W] ([1, H, W, C] in layout "nhwc").
        manifest: the model's manifest.
        frame: `DecodedInput.frame`: where the model's input lies in the picture. Boxes are
            fractions 0..1 of the picture.
        input_shape: the shape of the model's input, which detection needs.

    Returns:
        classification: {"task", "label", "score", "top": [{"label", "score", "index"}]};
        heatmap: {"task", "objects": [{"label", "score", "box": [x0, y0, x1, y1], "cells"}],
        "counts": {label: n}}, where an object is 8-connected cells of one class and its score
        the mean of theirs;
        segmentation: {"task", "regions": [{"label", "index", "share", "box"}], "shares": {label:
        share}, "mask": {"png", "width", "height", "box", "classes": {index: label}}}, where "png"
        is a PNG with a palette, of indices of classes, in base64, and covers "box" of the picture;
        detection: {"task", "objects": [{"label", "score", "box"}], "counts": {label: n}};
        tensor: {"task", "outputs": [{"name", "dtype", "shape", "min", "max", "mean", "data"}]},
        where "data" (nested lists) is there up to 1024 elements only.

    Raises:
        ConfigError: if an output has no shape for the manifest's task.
    """
    if manifest.task == "tensor":
        return {
            "task": "tensor",
            "outputs": [_described(name, array) for name, array in outputs.items()],
        }
    if not outputs:
        raise ConfigError(f"task: the manifest says {manifest.task}, but there is no output")
    if manifest.task == "detection":
        return detected([*outputs.values()], manifest, frame, input_shape)
    first = next(iter(outputs.values()))
    if manifest.task == "segmentation":
        return _masked(first, manifest, frame)
    classes = class_count(manifest, first.shape)
    if manifest.task == "classification":
        return _classified(first.reshape(classes), manifest)
    scores = first[0] if manifest.input.layout == "nchw" else np.moveaxis(first[0], -1, 0)
    return _located(scores, manifest, frame)


def _classified(scores: NDArray[Any], manifest: Manifest) -> dict[str, Any]:
    values = activated(scores, manifest).astype(np.float64)
    best = np.argsort(-values, kind="stable")  # NaN, which numpy sorts last, is last here too
    top = [
        {"label": manifest.label(int(index)), "score": finite(values[index]), "index": int(index)}
        for index in best[: manifest.output.top]
    ]
    return {
        "task": "classification",
        "label": top[0]["label"],
        "score": top[0]["score"],
        "top": top,
    }


def _masked(output: NDArray[Any], manifest: Manifest, frame: Frame) -> dict[str, Any]:
    found = segmented(output, manifest, frame)
    png, width, height = encode_mask(found.mask)
    mask = {
        "png": b64encode(png).decode(),
        "width": width,
        "height": height,
        "box": found.box,
        "classes": found.legend,
    }
    return {**found.told, "mask": mask}


def _located(scores: NDArray[Any], manifest: Manifest, frame: Frame) -> dict[str, Any]:
    """Find the objects in class scores [C, H, W]."""
    values = activated(scores, manifest)
    classes, height, width = values.shape
    best = values.argmax(axis=0)
    score = np.take_along_axis(values, best[None], axis=0)[0].astype(np.float64)
    background = manifest.background
    found = np.where((best != background) & (score >= manifest.threshold), best, -1)
    counts = {manifest.label(index): 0 for index in range(classes) if index != background}
    objects = []
    for runs in _components(found):
        cells = sum(stop - start for _, start, stop, _ in runs)
        if cells < manifest.output.min_cells:
            continue
        label = manifest.label(runs[0][3])
        counts[label] += 1
        total = math.fsum(
            value for row, start, stop, _ in runs for value in score[row, start:stop].tolist()
        )
        box = (
            min(start for _, start, _, _ in runs) / width,
            min(row for row, _, _, _ in runs) / height,
            max(stop for _, _, stop, _ in runs) / width,
            (max(row for row, _, _, _ in runs) + 1) / height,
        )
        objects.append(
            {
                "label": label,
                "score": finite(total / cells),
                "box": in_picture(np.array(box), frame).tolist(),
                "cells": cells,
            }
        )
    return {"task": "heatmap", "objects": objects, "counts": counts}


def _components(labels: NDArray[np.integer[Any]]) -> list[list[Run]]:
    """Return the 8-connected components of equal labels in [H, W], -1 being nothing.

    Each component is its runs, from top to bottom and left to right; components come in the
    order of their first runs. Runs, not cells, are joined: a map is mostly long runs.
    """
    runs: list[Run] = []
    parent: list[int] = []

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    above = range(0)
    for row, line in enumerate(labels):
        first, at = len(runs), above.start
        for run in _runs(row, line):
            index = len(runs)
            runs.append(run)
            parent.append(index)
            _, start, stop, label = run
            # Runs above that end before this one begins (diagonals touch) touch no later one.
            while at < above.stop and runs[at][2] < start:
                at += 1
            for other in range(at, above.stop):
                if runs[other][1] > stop:
                    break
                if runs[other][3] == label:
                    low, high = sorted((root(other), root(index)))
                    parent[high] = low
        above = range(first, len(runs))
    grouped: dict[int, list[Run]] = {}
    for index, run in enumerate(runs):
        grouped.setdefault(root(index), []).append(run)
    return list(grouped.values())


def _runs(row: int, line: NDArray[np.integer[Any]]) -> list[Run]:
    """Return the runs of equal labels in one row [W], without those of -1."""
    starts = [0, *(np.flatnonzero(np.diff(line)) + 1).tolist(), len(line)]
    return [
        (row, start, stop, int(line[start])) for start, stop in pairwise(starts) if line[start] >= 0
    ]


def _described(name: str, array: NDArray[Any]) -> dict[str, Any]:
    """Return what a tensor is, and its elements if they are few."""
    kind = array.dtype.kind
    described: dict[str, Any] = {
        "name": name,
        "dtype": array.dtype.name,
        "shape": list(array.shape),
        "min": None,
        "max": None,
        "mean": None,
    }
    if array.size:
        convert = finite if kind == "f" else int
        described["min"] = convert(array.min())
        described["max"] = convert(array.max())
        described["mean"] = finite(array.mean(dtype=np.float64))
    if array.size <= MAX_DATA:
        described["data"] = _jsonable(array.tolist())
    return described


def _jsonable(data: Any) -> Any:
    """Replace what JSON cannot say by None in nested lists."""
    if isinstance(data, list):
        return [_jsonable(item) for item in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
