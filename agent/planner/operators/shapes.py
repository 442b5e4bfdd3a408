"""Operators that move elements and compute nothing: views, transpositions, cuts and paddings."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import numpy as np

from agent.geometry import shape_of
from agent.planner.operators.entry import (
    AxisMap,
    Operator,
    broadcast,
    everything,
    parameters,
    same,
    whole,
    wholly,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.geometry import Region
    from agent.planner.graph import Graph, Node
    from agent.planner.operators.entry import Maps, Tile, Writer

_SLICE_BY_INPUTS = 10
_PAD_BY_INPUTS = 11


def reshape(node: Node, graph: Graph) -> Operator:
    """Describe Flatten, Reshape, Squeeze and Unsqueeze.

    Axes that keep their extent are split as before; the first of some axes that become one (rows
    and columns of a map), or that come out of one, is split by whole steps of the others.
    """
    inner, outer = graph.shape(node.inputs[0]), graph.shape(node.outputs[0])
    maps = list(wholly(inner))
    fixed = [axis for axis, extent in enumerate(outer) if extent > 1]
    for old, new in _runs(inner, outer):
        if len(new) == 1:
            maps[old[0]] = AxisMap(new[0], 1, 0, 0, prod(inner[axis] for axis in old[1:]))
            fixed.remove(new[0])
        elif len(old) == 1:
            step = prod(outer[axis] for axis in new[1:])
            maps[old[0]] = AxisMap(new[0], step, 0, step - 1)
            fixed.remove(new[0])
    return Operator(
        (tuple(maps), *parameters(node, graph)),
        tuple(fixed),
        "changes the shape of the axis that is split",
        flops=0.0,
        free=True,
        write=_reshaped,
    )


def _runs(inner: Sequence[int], outer: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Pair the shortest runs of axes (without those of extent 1) that hold the same elements."""
    old = [axis for axis, extent in enumerate(inner) if extent > 1]
    new = [axis for axis, extent in enumerate(outer) if extent > 1]
    runs: list[tuple[list[int], list[int]]] = []
    while old and new:
        left, right = [old.pop(0)], [new.pop(0)]
        while (a := prod(inner[x] for x in left)) != (b := prod(outer[x] for x in right)):
            if a < b:
                left.append(old.pop(0))
            else:
                right.append(new.pop(0))
        runs.append((left, right))
    return runs


def _reshaped(tile: Tile, writer: Writer) -> Region:
    """Write a Reshape to the shape that the input's region has."""
    inner = tile.graph.shape(tile.node.inputs[0])
    outer = tile.graph.shape(tile.node.outputs[0])
    produced = list(tile.output)
    for old, new in _runs(inner, outer):
        if len(new) == 1:
            step = prod(inner[axis] for axis in old[1:])
            start, stop = tile.region()[old[0]]
            produced[new[0]] = (start * step, stop * step)
    shape = writer.constant(np.array(shape_of(tuple(produced)), dtype=np.int64))
    writer.node("Reshape", [tile.inputs[0], shape], tile.node.outputs[0])
    return tuple(produced)


def transpose(node: Node, graph: Graph) -> Operator:
    """Describe Transpose."""
    rank = len(graph.shape(node.inputs[0]))
    order = node.ints("perm", range(rank)[::-1])
    return Operator((tuple(same(order.index(axis)) for axis in range(rank)),))


def concat(node: Node, graph: Graph) -> Operator:
    """Describe Concat."""
    return _joined(node, graph, range(len(node.inputs)))


def qlinear_concat(node: Node, graph: Graph) -> Operator:
    """Describe onnxruntime's QLinearConcat: (scale, zero, then x, scale, zero for each input)."""
    return _joined(node, graph, range(2, len(node.inputs), 3))


def _joined(node: Node, graph: Graph, tensors: range) -> Operator:
    joined = node.attributes["axis"] % len(graph.shape(node.outputs[0]))
    maps = list(parameters(node, graph, 0))
    for index in tensors:
        maps[index] = tuple(
            whole(extent) if axis == joined else same(axis)
            for axis, extent in enumerate(graph.shape(node.inputs[index]))
        )
    return Operator(tuple(maps), (joined,), "joins its inputs along the axis that is split")


def slice_(node: Node, graph: Graph) -> Operator:
    """Describe Slice with constant bounds; an axis that is read backwards is taken whole."""
    steps = slice_steps(node, graph)
    if steps is None:
        return everything(node, graph, "has bounds that are computed")
    shape = graph.shape(node.inputs[0])
    backwards = tuple(axis for axis, (_, step) in steps.items() if step < 0)
    maps = []
    for axis, extent in enumerate(shape):
        start, step = steps.get(axis, (0, 1))
        maps.append(whole(extent) if step < 0 else AxisMap(axis, step, start, start))
    return Operator(
        (tuple(maps), *parameters(node, graph)),
        backwards,
        "reads the axis that is split backwards",
        flops=0.0,
        write=_sliced,
    )


def slice_steps(node: Node, graph: Graph) -> dict[int, tuple[int, int]] | None:
    """Return the first element and the step of each axis that a Slice cuts, None if unknown."""
    if graph.opset < _SLICE_BY_INPUTS:
        starts: Sequence[int] = node.ints("starts", ())
        ends: Sequence[int] = node.ints("ends", ())
        axes: Sequence[int] = node.ints("axes", range(len(starts)))
        steps: Sequence[int] = (1,) * len(starts)
    else:
        given = [name for name in node.inputs[1:] if name]
        if any(name not in graph.constants for name in given):
            return None
        values = [
            tuple(graph.constants[name].reshape(-1).tolist()) if name else None
            for name in (*node.inputs[1:], "", "")
        ]
        starts, ends = values[0] or (), values[1] or ()
        axes, steps = values[2] or range(len(starts)), values[3] or (1,) * len(starts)
    shape = graph.shape(node.inputs[0])
    cut = {}
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        axis %= len(shape)  # noqa: PLW2901
        first, _, _ = slice(start, end, step).indices(shape[axis])
        if (start, end, step) != (0, shape[axis], 1):
            cut[axis] = (first, step)
    return cut


def _sliced(tile: Tile, writer: Writer) -> Region:
    """Write what of a Slice is left to do on exactly the input that the tile needs."""
    cut = slice_steps(tile.node, tile.graph) or {}
    left = [axis for axis, (_, step) in cut.items() if step != 1]
    if not left:
        writer.node("Identity", [tile.inputs[0]], tile.node.outputs[0])
        return tile.output
    held = shape_of(tile.region())
    starts, ends = [], []
    for axis in left:
        first, step = cut[axis]
        starts.append(first if step < 0 else 0)
        stop = first + (tile.output[axis][1] - 1) * step - 1
        # An end of -1 would mean the last element, not the one before the first.
        ends.append((stop if stop >= 0 else -held[axis] - 1) if step < 0 else held[axis])
    steps = [cut[axis][1] for axis in left]
    write_slice(writer, tile.inputs[0], starts, ends, left, steps, output=tile.node.outputs[0])
    return tile.output


def depth_to_space(node: Node, graph: Graph) -> Operator:
    """Describe DepthToSpace, which makes blocks of pixels of each position's channels."""
    block, channels = node.attributes["blocksize"], graph.shape(node.inputs[0])[1]
    maps = (same(0), whole(channels), AxisMap(2, 1, 0, 0, block), AxisMap(3, 1, 0, 0, block))
    return Operator((maps,), (1,), "mixes channels", flops=0.0, write=_blocks)


def _blocks(tile: Tile, writer: Writer) -> Region:
    block = tile.node.attributes["blocksize"]
    writer.copy(tile.node, tile.inputs)
    rows, columns = ((start * block, stop * block) for start, stop in tile.region()[2:])
    return (*tile.output[:2], rows, columns)


def space_to_depth(node: Node, graph: Graph) -> Operator:
    """Describe SpaceToDepth, which makes channels of blocks of pixels."""
    block, channels = node.attributes["blocksize"], graph.shape(node.inputs[0])[1]
    spatial = (AxisMap(2, block, 0, block - 1), AxisMap(3, block, 0, block - 1))
    return Operator(((same(0), whole(channels), *spatial),), (1,), "mixes channels", flops=0.0)


def pad(node: Node, graph: Graph) -> Operator:
    """Describe Pad: constant, edge and reflect."""
    mode = node.attributes.get("mode", b"constant")
    pads = _pads(node, graph)
    if pads is None or mode not in {b"constant", b"edge", b"reflect"}:
        return everything(node, graph, "has padding that is computed, or wraps around")
    maps = []
    for axis, (begin, end) in enumerate(pads):
        # What is reflected lies up to twice the padding away from where it goes.
        before, after = (2 * end, 2 * begin) if mode == b"reflect" else (0, 0)
        maps.append(AxisMap(axis, 1, -begin - before, -begin + after))
    return Operator((tuple(maps), *parameters(node, graph)), flops=0.0, write=_padded)


def _pads(node: Node, graph: Graph) -> list[tuple[int, int]] | None:
    """Return the padding of each axis before and after it, None if it is computed."""
    rank = len(graph.shape(node.inputs[0]))
    axes: Sequence[int] = range(rank)
    if graph.opset < _PAD_BY_INPUTS:
        values: Sequence[int] = node.ints("pads", (0,) * 2 * rank)
    else:
        given = [name for name in node.inputs[1:] if name]
        if any(name not in graph.constants for name in given):
            return None
        values = graph.constants[node.inputs[1]].tolist()
        if len(node.inputs) > 3 and node.inputs[3]:  # noqa: PLR2004
            axes = [axis % rank for axis in graph.constants[node.inputs[3]].tolist()]
    pads = [(0, 0)] * rank
    for place, axis in enumerate(axes):
        pads[axis] = (values[place], values[place + len(axes)])
    return pads


def _padded(tile: Tile, writer: Writer) -> Region:
    """Write a Pad that adds what of the tile lies outside the image."""
    whole_shape = tile.graph.shape(tile.node.inputs[0])
    produced, before, after = [], [], []
    for axis, (begin, _) in enumerate(_pads(tile.node, tile.graph) or ()):
        (first, last), (start, stop) = tile.region()[axis], tile.output[axis]
        before.append(max(0, first + begin - start) if first == 0 else 0)
        after.append(max(0, stop - last - begin) if last == whole_shape[axis] else 0)
        produced.append((first + begin - before[-1], last + begin + after[-1]))
    pads = before + after
    if tile.graph.opset < _PAD_BY_INPUTS:
        writer.copy(tile.node, tile.inputs, pads=pads)
    else:
        value = [name if place == 2 else "" for place, name in enumerate(tile.inputs)][2:3]  # noqa: PLR2004
        amounts = writer.constant(np.array(pads, dtype=np.int64))
        writer.copy(tile.node, [tile.inputs[0], amounts, *value])
    return tuple(produced)


def expand(node: Node, graph: Graph) -> Operator:
    """Describe Expand."""
    shape, output = graph.shape(node.inputs[0]), graph.shape(node.outputs[0])
    maps = (broadcast(shape, output), *parameters(node, graph))
    return Operator(maps, flops=0.0, write=_expanded)


def _expanded(tile: Tile, writer: Writer) -> Region:
    shape = writer.constant(np.array(shape_of(tile.output), dtype=np.int64))
    writer.node("Expand", [tile.inputs[0], shape], tile.node.outputs[0])
    return tile.output


def tile_(node: Node, graph: Graph) -> Operator:
    """Describe Tile, which repeats some axes."""
    shape, output = graph.shape(node.inputs[0]), graph.shape(node.outputs[0])
    repeated = tuple(axis for axis, n in enumerate(shape) if output[axis] != n)
    maps = tuple(whole(n) if axis in repeated else same(axis) for axis, n in enumerate(shape))
    return Operator((maps, *parameters(node, graph)), repeated, "repeats the axis that is split")


def gather(node: Node, graph: Graph) -> Operator:
    """Describe Gather with constant indices."""
    if node.inputs[1] not in graph.constants:
        return everything(node, graph, "has indices that are computed")
    shape = graph.shape(node.inputs[0])
    picked, rank = node.attributes.get("axis", 0) % len(shape), len(graph.shape(node.inputs[1]))
    maps: Maps = tuple(
        whole(extent) if axis == picked else same(axis if axis < picked else axis + rank - 1)
        for axis, extent in enumerate(shape)
    )
    fixed = tuple(range(picked, picked + rank))
    return Operator((maps, *parameters(node, graph)), fixed, "picks along the axis that is split")


def write_slice(  # noqa: PLR0917 - the five are ONNX's
    writer: Writer,
    source: str,
    starts: Sequence[int],
    ends: Sequence[int],
    axes: Sequence[int],
    steps: Sequence[int] = (),
    *,
    output: str = "",
) -> str:
    """Write a Slice in the form that the opset has, and return the name of its output."""
    if writer.opset < _SLICE_BY_INPUTS:
        return writer.node("Slice", [source], output, starts=[*starts], ends=[*ends], axes=[*axes])
    lists = (starts, ends, axes, steps) if any(s != 1 for s in steps) else (starts, ends, axes)
    values = [writer.constant(np.array(values, dtype=np.int64)) for values in lists]
    return writer.node("Slice", [source, *values], output)
