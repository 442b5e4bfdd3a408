"""Resize and Upsample: each output element is a weighted sum of a few of the input's.

The taps of every output position are worked out as onnxruntime does, in float32; the axis maps are
the tightest ones around them, so every mode has its exact receptive field. A tile is written as a
Resize where it is enlarged by whole numbers, and as sums of Gathers otherwise, because a Resize of
a part with another scale would round positions differently.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from agent.planner.operators.entry import (
    UNEVEN,
    AxisMap,
    Operator,
    everything,
    parameters,
    same,
    whole,
)
from agent.planner.operators.shapes import write_slice

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.geometry import Region
    from agent.planner.graph import Graph, Node
    from agent.planner.operators.entry import Tile, Writer

Array = np.ndarray[Any, Any]

_BY_COORDINATES = 11
_OPTIONAL_REGION = 13
_SHIFTING = frozenset({"asymmetric", "half_pixel", "pytorch_half_pixel"})
_PLACES = frozenset({*_SHIFTING, "align_corners"})
# What is as near to the middle of two pixels lies there, for onnxruntime.
_HALFWAY = np.float32(1e-6)
_ELEMENT_TYPES = {"float16": 10, "float32": 1, "float64": 11}


class _Axis(NamedTuple):
    """An axis that changes: for each output position the input positions and their weights."""

    scale: float
    taps: Array
    weights: Array


class _Settings(NamedTuple):
    mode: str
    place: str
    nearest: str
    cubic: float


def resize(node: Node, graph: Graph) -> Operator:
    """Describe Resize (opset 10 on) and Upsample."""
    axes = _axes(node, graph)
    if isinstance(axes, str):
        return everything(node, graph, axes)
    interpolates = any(found.weights.shape[1] > 1 for found in axes.values())
    if graph.threads and interpolates and not _keeps(node, graph, axes):
        return everything(node, graph, UNEVEN)
    maps = []
    for axis, extent in enumerate(graph.shape(node.inputs[0])):
        found = axes.get(axis)
        maps.append(same(axis) if found is None else _map(axis, extent, found.taps))
    taps = max((found.taps.shape[1] for found in axes.values()), default=1)
    flops = 2.0 * taps ** len(axes) if taps > 1 else 1.0
    return Operator((tuple(maps), *parameters(node, graph)), flops=flops, write=_tile)


def _axes(node: Node, graph: Graph) -> dict[int, _Axis] | str:
    """Return the taps of each axis that changes, or why they cannot be told."""
    inner, outer = graph.shape(node.inputs[0]), graph.shape(node.outputs[0])
    settings = _settings(node, graph)
    if settings.place not in _PLACES:
        return f"places pixels in the way '{settings.place}'"
    if settings.mode not in {"nearest", "linear", "cubic"}:
        return f"interpolates in the way '{settings.mode}'"
    if node.attributes.get("antialias", 0) or node.attributes.get("exclude_outside", 0):
        return "filters while it shrinks"
    if settings.mode != "nearest" and graph.tensors[node.inputs[0]].dtype not in _ELEMENT_TYPES:
        return "interpolates integers"
    scales = _scales(node, graph)
    if scales is None:
        return "has a scale that is computed"
    return {
        axis: _taps(inner[axis], outer[axis], scales[axis], settings)
        for axis in range(len(inner))
        # Three rows enlarged by 1.25 are three rows, but others, unless no axis changes its size:
        # onnxruntime then copies the map.
        if inner != outer and (inner[axis] != outer[axis] or scales[axis] != 1)
    }


def _settings(node: Node, graph: Graph) -> _Settings:
    def text(name: str, default: str) -> str:
        value = node.attributes.get(name, default)
        return str(value.decode() if isinstance(value, bytes) else value)

    mode = text("mode", "nearest")
    cubic = float(node.attributes.get("cubic_coeff_a", -0.75))
    if node.op == "Upsample" or graph.opset < _BY_COORDINATES:
        return _Settings("linear" if mode == "bilinear" else mode, "asymmetric", "simple", cubic)
    place = text("coordinate_transformation_mode", "half_pixel")
    return _Settings(mode, place, text("nearest_mode", "round_prefer_floor"), cubic)


def _scales(node: Node, graph: Graph) -> list[float] | None:
    """Return the scale of every axis, None where it is computed or keeps an aspect."""
    inner, outer = graph.shape(node.inputs[0]), graph.shape(node.outputs[0])
    if node.op == "Upsample" and len(node.inputs) == 1:
        return [float(scale) for scale in node.attributes["scales"]]
    place = 1 if node.op == "Upsample" or graph.opset < _BY_COORDINATES else 2
    name = node.inputs[place] if len(node.inputs) > place else ""
    if name:
        if name not in graph.constants:
            return None
        given = graph.constants[name].reshape(-1).tolist()
        if given:
            axes = node.ints("axes", range(len(given)))
            scales = dict(zip((a % len(inner) for a in axes), given, strict=True))
            return [float(scales.get(axis, 1.0)) for axis in range(len(inner))]
    if node.attributes.get("keep_aspect_ratio_policy", b"stretch") != b"stretch":
        return None
    return [b / a for a, b in zip(inner, outer, strict=True)]


def disputed_axis(node: Node, graph: Graph) -> int | None:
    """Return an axis of which onnxruntime gives another number of elements than was inferred.

    It multiplies by the scale in float32, and shape inference in float64.
    """
    inner, outer = graph.shape(node.inputs[0]), graph.shape(node.outputs[0])
    for axis, scale in enumerate(_scales(node, graph) or ()):
        # Scales that were worked out from the two sizes cannot contradict them.
        given = np.float32(scale) != np.float32(outer[axis] / inner[axis])
        if given and int(np.float32(inner[axis]) * np.float32(scale)) != outer[axis]:
            return axis
    return None


def _taps(inner: int, outer: int, scale: float, settings: _Settings) -> _Axis:
    """Work out the taps and weights of every position of one axis."""
    position = _positions(inner, outer, scale, settings.place)
    if settings.mode == "nearest":
        taps = _nearest(position, settings.nearest, shrinks=scale < 1)[:, None]
        weights = np.ones((outer, 1), np.float32)
    elif settings.mode == "linear":
        position = np.clip(position, 0, np.float32(inner - 1))
        low = np.minimum(np.floor(position).astype(np.int64), inner - 1)
        share = (position - low).astype(np.float32)
        taps = np.stack([low, np.minimum(low + 1, inner - 1)], axis=1)
        weights = np.stack([1 - share, share], axis=1)
    else:
        base = np.floor(position)
        share = (position - base).astype(np.float32)
        taps = base.astype(np.int64)[:, None] + np.arange(-1, 3)
        weights = _cubic(share, np.float32(settings.cubic))
    return _Axis(scale, np.clip(taps, 0, inner - 1), weights)


def _positions(inner: int, outer: int, scale: float, place: str) -> Array:
    """Return where each output position lies in the input, in float32 like onnxruntime."""
    at, factor = np.arange(outer, dtype=np.float32), np.float32(scale)
    half = np.float32(0.5)
    if place == "asymmetric":
        return at / factor
    if place == "align_corners":
        if outer == 1:
            return np.zeros(1, np.float32)
        return at * np.float32(inner - 1) / np.float32(outer - 1)
    if place == "pytorch_half_pixel" and outer == 1:
        return np.zeros(1, np.float32)
    return (at + half) / factor - half


def _nearest(position: Array, mode: str, *, shrinks: bool) -> Array:
    below, above = np.floor(position), np.ceil(position)
    if mode == "floor" or (mode == "simple" and not shrinks):
        chosen = below
    elif mode in {"ceil", "simple"}:
        chosen = above
    else:
        halfway = np.abs(position - below - np.float32(0.5)) <= _HALFWAY
        preferred = above if mode == "round_prefer_ceil" else below
        chosen = np.where(halfway, preferred, np.rint(position))
    return np.asarray(chosen.astype(np.int64))


def _cubic(share: Array, a: np.float32) -> Array:
    """Return the weights of four neighbours (Keys' kernel), shape (positions, 4)."""
    near, far = np.stack([share, 1 - share]), np.stack([share + 1, 2 - share])
    inner = ((a + 2) * near - (a + 3)) * near * near + 1
    outer = ((a * far - 5 * a) * far + 8 * a) * far - 4 * a
    return np.stack([outer[0], inner[0], inner[1], outer[1]], axis=1).astype(np.float32)


def _map(axis: int, extent: int, taps: Array) -> AxisMap:
    """Return the tightest map of the axis's scale around its taps."""
    count = len(taps)
    if extent == 1:
        return whole(1)
    at = np.arange(count)
    low = int((taps.min(axis=1) * count - at * extent).min())
    high = int((taps.max(axis=1) * count - at * extent).max())
    return AxisMap(axis, extent, low, high, count)


def _keeps(node: Node, graph: Graph, axes: dict[int, _Axis]) -> bool:
    """Tell whether tiles are interpolated as the whole is, to the bit.

    Positions in a part are those in the whole, less a whole number; that rounds no weight where
    the scale is a power of two. Integers meet halves, which a tile that is cut off before it is
    quantized again would round otherwise.
    """
    producer = graph.producers.get(node.inputs[0])
    integers = producer is not None and producer.op == "DequantizeLinear"
    powers = all(int(found.scale) & (int(found.scale) - 1) == 0 for found in axes.values())
    return not integers and _is_resize(node, graph, axes) and powers


def _is_resize(node: Node, graph: Graph, axes: dict[int, _Axis]) -> bool:
    """Tell whether a tile is a Resize too."""
    placed = _settings(node, graph).place in _SHIFTING
    return placed and all(_enlarges(found.scale) for found in axes.values())


def _tile(tile: Tile, writer: Writer) -> Region:
    axes = _axes(tile.node, tile.graph)
    assert not isinstance(axes, str)  # noqa: S101 - such nodes are never split
    if _is_resize(tile.node, tile.graph, axes):
        return _as_resize(tile, writer, axes)
    return _as_gathers(tile, writer, axes)


def _enlarges(scale: float) -> bool:
    return scale >= 1 and float(scale).is_integer()


def _as_resize(tile: Tile, writer: Writer, axes: dict[int, _Axis]) -> Region:
    """Write the same Resize of the part, and cut off what its false borders reach."""
    held = tile.region()
    scales = np.array(
        [axes[axis].scale if axis in axes else 1.0 for axis in range(len(held))], np.float32
    )
    produced = tuple(
        (start * int(scale), stop * int(scale))
        for (start, stop), scale in zip(held, scales, strict=True)
    )
    exact = produced == tile.output
    source, name = tile.inputs[0], tile.node.outputs[0]
    if tile.node.op == "Upsample" and len(tile.node.inputs) == 1:
        made = writer.node(
            "Upsample",
            [source],
            name if exact else "",
            scales=scales.tolist(),
            mode=tile.node.attributes.get("mode", b"nearest"),
        )
    else:
        kept = {
            key: value
            for key, value in tile.node.attributes.items()
            if key not in {"axes", "keep_aspect_ratio_policy"}
        }
        by_scale = tile.node.op == "Upsample" or tile.graph.opset < _BY_COORDINATES
        inputs = [source, *([] if by_scale else [_region(writer)]), writer.constant(scales)]
        made = writer.node(tile.node.op, inputs, name if exact else "", **kept)
    if not exact:
        cut = [axis for axis, pair in enumerate(tile.output) if pair != produced[axis]]
        starts = [tile.output[axis][0] - produced[axis][0] for axis in cut]
        ends = [tile.output[axis][1] - produced[axis][0] for axis in cut]
        write_slice(writer, made, starts, ends, cut, output=name)
    return tile.output


def _region(writer: Writer) -> str:
    """Return the input for a region to crop, which may be left out only since opset 13."""
    return "" if writer.opset >= _OPTIONAL_REGION else writer.constant(np.zeros(0, np.float32))


def _as_gathers(tile: Tile, writer: Writer, axes: dict[int, _Axis]) -> Region:
    """Write, axis by axis, the sum of the taps times their weights."""
    dtype = tile.graph.tensors[tile.node.inputs[0]].dtype
    weighted = any(found.weights.shape[1] > 1 for found in axes.values())
    narrow = weighted and dtype == "float16"
    value = tile.inputs[0]
    if narrow:
        value = writer.node("Cast", [value], to=_ELEMENT_TYPES["float32"])
    for axis, found in axes.items():
        rows = slice(*tile.output[axis])
        taps = found.taps[rows] - tile.region()[axis][0]
        kind = np.float64 if dtype == "float64" else np.float32
        shape = [-1 if place == axis else 1 for place in range(len(tile.output))]
        factors = found.weights[rows].astype(kind)
        value = _sum(writer, value, axis, taps, [f.reshape(shape) for f in factors.T])
    if narrow:
        value = writer.node("Cast", [value], to=_ELEMENT_TYPES["float16"])
    writer.node("Identity", [value], tile.node.outputs[0])
    return tile.output


def _sum(writer: Writer, value: str, axis: int, taps: Array, factors: Sequence[Array]) -> str:
    terms = []
    for number in range(taps.shape[1]):
        indices = writer.constant(np.ascontiguousarray(taps[:, number]))
        term = writer.node("Gather", [value, indices], axis=axis)
        if taps.shape[1] > 1:
            term = writer.node("Mul", [term, writer.constant(factors[number])])
        terms.append(term)
    total = terms[0]
    for term in terms[1:]:
        total = writer.node("Add", [total, term])
    return total
