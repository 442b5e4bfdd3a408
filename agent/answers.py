"""From a model's outputs to an answer that a person or another program can read: plain JSON.

Everything here is deterministic: ties go to the lower class, objects come in reading order, and
scores are rounded, so that devices whose outputs differ by rounding give the same text.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from agent.errors import ConfigError
from agent.wire.manifest import class_count

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from agent.wire.manifest import Manifest

MAX_DATA = 1024  # elements of a tensor that are given in full
_DIGITS = 5
_WHOLE = (0.0, 0.0, 1.0, 1.0)

Run = tuple[int, int, int, int]
"""Cells of one class next to each other: (row, start column, stop column, class)."""


def answer(
    outputs: Mapping[str, NDArray[Any]],
    manifest: Manifest,
    frame: tuple[float, float, float, float] = _WHOLE,
) -> dict[str, Any]:
    """Return the answer that the manifest's task asks for, ready for JSON.

    Numbers that JSON cannot say (infinities, NaN) are None.

    Args:
        outputs: the model's outputs by name, in the model's order; classifications and heatmaps
            are read from the first: [1, N], or [1, C, H, W] ([1, H, W, C] in layout "nhwc").
        manifest: the model's manifest.
        frame: `DecodedInput.frame`: where the model's input lies in the picture. Boxes are
            fractions 0..1 of the picture.

    Returns:
        classification: {"task", "label", "score", "top": [{"label", "score", "index"}]};
        heatmap: {"task", "objects": [{"label", "score", "box": [x0, y0, x1, y1], "cells"}],
        "counts": {label: n}}, where an object is 8-connected cells of one class and its score
        the mean of theirs;
        tensor: {"task", "outputs": [{"name", "dtype", "shape", "min", "max", "mean", "data"}]},
        where "data" (nested lists) is there up to 1024 elements only.

    Raises:
        ConfigError: if the first output has no shape for the manifest's task.
    """
    if manifest.task == "tensor":
        return {
            "task": "tensor",
            "outputs": [_described(name, array) for name, array in outputs.items()],
        }
    if not outputs:
        raise ConfigError(f"task: the manifest says {manifest.task}, but there is no output")
    first = next(iter(outputs.values()))
    classes = class_count(manifest, first.shape)
    if manifest.task == "classification":
        return _classified(first.reshape(classes), manifest)
    scores = first[0] if manifest.input.layout == "nchw" else np.moveaxis(first[0], -1, 0)
    return _located(scores, manifest, frame)


def _classified(scores: NDArray[Any], manifest: Manifest) -> dict[str, Any]:
    values = _softmax(scores) if manifest.output.softmax else scores.astype(np.float64)
    best = np.argsort(-values, kind="stable")  # NaN, which numpy sorts last, is last here too
    top = [
        {"label": manifest.label(int(index)), "score": _finite(values[index]), "index": int(index)}
        for index in best[: manifest.output.top]
    ]
    return {
        "task": "classification",
        "label": top[0]["label"],
        "score": top[0]["score"],
        "top": top,
    }


def _located(
    scores: NDArray[Any], manifest: Manifest, frame: tuple[float, float, float, float]
) -> dict[str, Any]:
    """Find the objects in class scores [C, H, W]."""
    values = _softmax(scores) if manifest.output.softmax else scores
    classes, height, width = values.shape
    best = values.argmax(axis=0)
    score = np.take_along_axis(values, best[None], axis=0)[0].astype(np.float64)
    background = manifest.output.background
    found = np.where((best != background) & (score >= manifest.output.threshold), best, -1)
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
                "score": _finite(total / cells),
                "box": _in_picture(box, frame),
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


def _in_picture(
    box: tuple[float, float, float, float], frame: tuple[float, float, float, float]
) -> list[float]:
    """Return a box in fractions of the model's input as one in fractions of the picture."""
    left, top, right, bottom = frame
    x0, y0, x1, y1 = box
    mapped = (
        left + x0 * (right - left),
        top + y0 * (bottom - top),
        left + x1 * (right - left),
        top + y1 * (bottom - top),
    )
    return [round(min(1.0, max(0.0, value)), _DIGITS) for value in mapped]


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
        convert = _finite if kind == "f" else int
        described["min"] = convert(array.min())
        described["max"] = convert(array.max())
        described["mean"] = _finite(array.mean(dtype=np.float64))
    if array.size <= MAX_DATA:
        described["data"] = _jsonable(array.tolist())
    return described


def _jsonable(data: Any) -> Any:
    """Replace what JSON cannot say by None in nested lists."""
    if isinstance(data, list):
        return [_jsonable(item) for item in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def _softmax(scores: NDArray[Any]) -> NDArray[np.float64]:
    """Return the softmax over axis 0, in float64."""
    values = scores.astype(np.float64)
    with np.errstate(invalid="ignore"):  # infinite logits give NaN, which becomes None
        powers = np.exp(values - values.max(axis=0))
        return np.asarray(powers / powers.sum(axis=0), np.float64)


def _finite(value: Any) -> float | None:
    """Return a float rounded to a few significant digits, or None for what JSON cannot say."""
    number = float(value)
    return float(f"{number:.{_DIGITS}g}") if math.isfinite(number) else None
