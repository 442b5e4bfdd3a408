"""Reductions: of whole axes, and in two steps where the reduced axes are split.

A reduction over a map that is split becomes three nodes (`agent/planner/lowering.py`):

    Partial   each device reduces its own tile; it fills its slots of a tensor of slots
    Combined  the slots are reduced again
    Reshape   to what the whole reduction gives

The slots lie along the first reduced axis. A mean is a sum of which each part was divided.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from agent.geometry import shape_of
from agent.planner.operators.entry import (
    UNEVEN,
    Operator,
    everything,
    parameters,
    same,
    whole,
    wholly,
)
from agent.planner.operators.rounding import shared_pools

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.geometry import Region
    from agent.planner.graph import Graph, Node
    from agent.planner.operators.entry import Tile, Writer

PARTIAL, COMBINED = "Partial", "Combined"
_SUM_AXES_BY_INPUT = 13
_EXTREME_AXES_BY_INPUT = 18
_FLOAT = 1
_EXACT = frozenset({"ReduceMax", "ReduceMin"})


class Reduction(NamedTuple):
    """A reduction in two steps: what is done before, how parts combine, what is done after."""

    square: bool
    combine: str
    mean: bool
    root: bool


REDUCTIONS = {
    "GlobalAveragePool": Reduction(False, "ReduceSum", True, False),
    "GlobalMaxPool": Reduction(False, "ReduceMax", False, False),
    "ReduceMean": Reduction(False, "ReduceSum", True, False),
    "ReduceSum": Reduction(False, "ReduceSum", False, False),
    "ReduceMax": Reduction(False, "ReduceMax", False, False),
    "ReduceMin": Reduction(False, "ReduceMin", False, False),
    "ReduceSumSquare": Reduction(True, "ReduceSum", False, False),
    "ReduceL2": Reduction(True, "ReduceSum", False, True),
    "MeanSquare": Reduction(True, "ReduceSum", True, False),
}


def global_pool(node: Node, graph: Graph) -> Operator:
    """Describe GlobalAveragePool and GlobalMaxPool, and their quantized forms."""
    shape = graph.shape(node.inputs[0])
    if node.attributes.get("channels_last", 0):
        return everything(node, graph, "keeps channels last")
    maps = ((same(0), same(1), *wholly(shape[2:])), *parameters(node, graph))
    keeps = shared_pools(shape[1]) if graph.threads else None
    return Operator(maps, flops=float(prod(shape[2:])), keeps=keeps)


def reduce(node: Node, graph: Graph) -> Operator:
    """Describe the Reduce operators."""
    axes = reduced_axes(node, graph)
    if axes is None:
        return everything(node, graph, "has axes that are computed, or none")
    if graph.threads and node.op not in _EXACT:
        # Sums are added from where memory is aligned, which is another element in a tile.
        return everything(node, graph, UNEVEN)
    shape = graph.shape(node.inputs[0])
    keeps, maps, at = node.attributes.get("keepdims", 1), [], 0
    for axis, extent in enumerate(shape):
        maps.append(whole(extent) if axis in axes else same(at))
        at += 1 if keeps or axis not in axes else 0
    flops = float(prod(shape[axis] for axis in axes))
    return Operator((tuple(maps), *parameters(node, graph)), flops=flops)


def arg_extreme(node: Node, graph: Graph) -> Operator:
    """Describe ArgMax and ArgMin, which reduce one axis."""
    shape = graph.shape(node.inputs[0])
    axis = node.attributes.get("axis", 0) % len(shape)
    keeps = node.attributes.get("keepdims", 1)
    maps = tuple(
        whole(extent) if at == axis else same(at if keeps or at < axis else at - 1)
        for at, extent in enumerate(shape)
    )
    return Operator((maps,), flops=float(shape[axis]))


def reduced_axes(node: Node, graph: Graph) -> tuple[int, ...] | None:
    """Return the axes that a reduction or global pooling reduces, None if they are not known."""
    rank = len(graph.shape(node.inputs[0]))
    if node.op.startswith("Global"):
        return tuple(range(2, rank))
    given: Sequence[int] = node.ints("axes", ())
    if len(node.inputs) > 1 and node.inputs[1]:
        if node.inputs[1] not in graph.constants:
            return None
        given = graph.constants[node.inputs[1]].reshape(-1).tolist()
    if not given and node.attributes.get("noop_with_empty_axes", 0):
        return None
    return tuple(sorted({axis % rank for axis in given} or range(rank)))


def partial(node: Node, graph: Graph) -> Operator:
    """Describe the reduction of each device's own tile into its own slots."""
    shape, slots = graph.shape(node.inputs[0]), graph.shape(node.outputs[0])
    axes = node.ints("axes", ())
    maps = tuple(whole(n) if axis in axes else same(axis) for axis, n in enumerate(shape))
    flops = prod(shape[axis] for axis in axes) / slots[axes[0]]
    return Operator((maps,), flops=flops, own=True, write=_partial)


def _partial(tile: Tile, writer: Writer) -> Region:
    """Write the reduction of a tile, with what changes nothing in the slots beyond the first."""
    axes = tile.node.ints("axes", ())
    rule = REDUCTIONS[tile.node.attributes["reduction"].decode()]
    value = tile.inputs[0]
    if tile.graph.tensors[tile.node.inputs[0]].dtype == "float16":
        value = writer.node("Cast", [value], to=_FLOAT)
    if rule.square:
        value = writer.node("Mul", [value, value])
    value = write_reduction(writer, rule.combine, value, axes)
    shape = tile.graph.shape(tile.node.inputs[0])
    if rule.mean:
        share = np.array(1.0 / prod(shape[axis] for axis in axes), _kind(tile))
        value = writer.node("Mul", [value, writer.constant(share)])
    start, stop = tile.output[axes[0]]
    if stop - start > 1:
        filler = [value] * (stop - start - 1)
        if rule.combine == "ReduceSum":
            reduced = [
                n if axis not in axes else 1 for axis, n in enumerate(shape_of(tile.region()))
            ]
            reduced[axes[0]] = stop - start - 1
            filler = [writer.constant(np.zeros(reduced, _kind(tile)))]
        writer.node("Concat", [value, *filler], tile.node.outputs[0], axis=axes[0])
    else:
        writer.node("Identity", [value], tile.node.outputs[0])
    return tile.output


def _kind(tile: Tile) -> str:
    return tile.graph.tensors[tile.node.outputs[0]].dtype


def combined(node: Node, graph: Graph) -> Operator:
    """Describe the reduction of all slots."""
    shape, slot = graph.shape(node.inputs[0]), node.attributes["slot"]
    maps = tuple(whole(n) if axis == slot else same(axis) for axis, n in enumerate(shape))
    return Operator((maps,), flops=float(shape[slot]), write=_combined)


def _combined(tile: Tile, writer: Writer) -> Region:
    rule = REDUCTIONS[tile.node.attributes["reduction"].decode()]
    slot = tile.node.attributes["slot"]
    value = write_reduction(writer, rule.combine, tile.inputs[0], (slot,))
    if rule.root:
        value = writer.node("Sqrt", [value])
    if tile.graph.tensors[tile.node.outputs[0]].dtype == "float16":
        value = writer.node("Cast", [value], to=10)
    writer.node("Identity", [value], tile.node.outputs[0])
    return tile.output


def write_reduction(writer: Writer, op: str, value: str, axes: Sequence[int]) -> str:
    """Write a reduction that keeps its axes, in the form that the opset has."""
    by_input = _SUM_AXES_BY_INPUT if op == "ReduceSum" else _EXTREME_AXES_BY_INPUT
    if writer.opset < by_input:
        return writer.node(op, [value], axes=list(axes), keepdims=1)
    listed = writer.constant(np.array(axes, dtype=np.int64))
    return writer.node(op, [value, listed], keepdims=1)
