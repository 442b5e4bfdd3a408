"""Receptive fields: which region of every tensor is needed so that some tiles can be computed.

RFS of arXiv 2207.11293, for any DAG: regions are propagated backwards, each axis on its own, and a
tensor with several readers needs the hull of what they need. All tiles are walked at once: a
`Boxes` holds one region of one tensor for each tile. A single region is a `Boxes` with one row.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from agent.planner.operators import describe

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from agent.geometry import Region
    from agent.planner.graph import Graph, Node
    from agent.planner.operators import AxisMap

Ints = np.ndarray[Any, np.dtype[np.int64]]


class Boxes(NamedTuple):
    """Regions of one tensor: `start` and `stop` have the shape (tiles, rank)."""

    start: Ints
    stop: Ints

    def region(self, tile: int) -> Region:
        """Return one tile's region as plain data."""
        return tuple(zip(self.start[tile].tolist(), self.stop[tile].tolist(), strict=True))

    def row(self, tile: int) -> Boxes:
        """Return one tile's region as a `Boxes` with one row."""
        return self.rows(slice(tile, tile + 1))

    def rows(self, tiles: slice) -> Boxes:
        """Return the regions of some tiles."""
        return Boxes(self.start[tiles], self.stop[tiles])

    def sizes(self) -> Ints:
        """Return how many elements each region holds; shape (tiles,)."""
        return np.asarray((self.stop - self.start).prod(axis=1))


def boxes(regions: Iterable[Region]) -> Boxes:
    """Gather regions of one tensor, one for each tile."""
    rows = list(regions)
    both = np.array(rows, dtype=np.int64).reshape(len(rows), len(rows[0]), 2)
    return Boxes(both[:, :, 0], both[:, :, 1])


def hull(left: Boxes | None, right: Boxes) -> Boxes:
    """Return the hull of each tile's two regions."""
    if left is None:
        return right
    return Boxes(np.minimum(left.start, right.start), np.maximum(left.stop, right.stop))


class _InputMap:
    """The maps of one input as arrays, so that all its axes and tiles are one expression."""

    def __init__(self, axes: Sequence[AxisMap], shape: Sequence[int]) -> None:
        table = np.array(axes, dtype=np.int64).reshape(len(axes), 5)
        self.axis, self.stride, self.low, high, divisor = table.T
        self.high = high - self.stride
        self.divisor = divisor if (divisor != 1).any() else None
        self.last = np.array(shape, dtype=np.int64) - 1
        self.extent = self.last + 1

    def needed(self, output: Boxes) -> Boxes:
        # A scalar's region has no axis to look at; what it needs has stride 0 and looks at none.
        start, stop = output if output.start.shape[1] else _pad(output)
        first = start[:, self.axis] * self.stride + self.low
        last = stop[:, self.axis] * self.stride + self.high
        if self.divisor is not None:
            first, last = first // self.divisor, last // self.divisor
        return Boxes(
            np.minimum(np.maximum(first, 0), self.last),
            np.maximum(np.minimum(last + 1, self.extent), 1),
        )


def _pad(scalars: Boxes) -> Boxes:
    count = len(scalars.start)
    return Boxes(np.zeros((count, 1), dtype=np.int64), np.ones((count, 1), dtype=np.int64))


class Field:
    """One node's receptive field: its operator, ready to be applied to many tiles.

    `own` is set for a partial result only: each tile's own region of the input.
    """

    def __init__(self, node: Node, graph: Graph) -> None:
        self.node = node
        self.operator = describe(node, graph)
        self.shape = graph.shape(node.outputs[0])
        self.own: Boxes | None = None
        self._fixed = list(self.operator.fixed)
        self._extents = np.array([self.shape[axis] for axis in self._fixed], dtype=np.int64)
        pairs = zip(node.inputs, self.operator.maps, strict=True)
        self.maps: list[_InputMap | None] = [
            _InputMap(axes, graph.shape(name)) if name and axes is not None else None
            for name, axes in pairs
        ]
        self.activations = [
            (index, name)
            for index, name in enumerate(node.inputs)
            if name and not graph.is_constant(name)
        ]
        self._weights = [(i, name) for i, name in enumerate(node.inputs) if name in graph.weights]
        self.expressions = {
            name: Field(graph.expressions[name], graph)
            for name in node.inputs
            if name in graph.expressions
        }
        self._graph = graph

    def computed(self, wanted: Boxes) -> Boxes:
        """Return what the node computes so that `wanted` of its (first) output is there.

        Tiles that would be rounded otherwise than the whole, where they must not be, are the whole.
        """
        start, stop = wanted
        if self._fixed:
            start, stop = start.copy(), stop.copy()
            start[:, self._fixed] = 0
            stop[:, self._fixed] = self._extents
        keeps = self.operator.keeps
        if keeps is not None:
            read = self.needed(0, Boxes(start, stop))
            kept = keeps(stop - start, read.stop - read.start)[:, None]
            start, stop = np.where(kept, start, 0), np.where(kept, stop, self.shape)
        return Boxes(start, stop)

    def needed(self, index: int, computed: Boxes) -> Boxes:
        """Return what of input `index` is read to compute `computed`."""
        axis_maps = self.maps[index]
        assert axis_maps is not None  # noqa: S101 - absent inputs are never asked for
        if self.own is None:
            return axis_maps.needed(computed)
        # A partial result is of the device's own tile; asked for all slots, it needs everything.
        everything, reduced = axis_maps.needed(computed), axis_maps.stride == 0
        slot = int(np.argmax(reduced))
        some = computed.stop[:, slot] - computed.start[:, slot] < self.shape[slot]
        mine = some[:, None] & reduced[None]
        return Boxes(
            np.where(mine, self.own.start, everything.start),
            np.where(mine, self.own.stop, everything.stop),
        )

    def weight_bytes(self, computed: Boxes) -> Any:
        """Return how many bytes of weights are read: a number, or an array of one for each tile."""
        total: Any = 0.0
        for index, name in self._weights:
            axis_maps = self.maps[index]
            assert axis_maps is not None  # noqa: S101 - weights are never absent
            itemsize = self._graph.itemsize(name)
            if axis_maps.stride.any():
                total = total + axis_maps.needed(computed).sizes() * itemsize
            else:
                total = total + float(axis_maps.extent.prod() * itemsize)
        for index, name in enumerate(self.node.inputs):
            if name in self.expressions:
                field = self.expressions[name]
                total = total + field.weight_bytes(field.computed(self.needed(index, computed)))
        return total

    @cached_property
    def whole(self) -> Region:
        """The region of the node's whole first output."""
        return tuple((0, extent) for extent in self.shape)


class Reading(NamedTuple):
    """What one node computes for every tile, and what it reads: a `Boxes` for each activation."""

    field: Field
    computed: Boxes
    reads: dict[int, Boxes]


class Demand:
    """What of each tensor is needed at some point of a walk backwards through a graph."""

    def __init__(self, graph: Graph, wanted: dict[str, Boxes]) -> None:
        self._graph = graph
        self.boxes = dict(wanted)

    def through(self, field: Field) -> Reading:
        """Walk backwards through one node: its outputs' demand becomes its inputs' demand."""
        outputs = [name for name in field.node.outputs if name in self.boxes]
        wanted = [self.boxes.pop(name) for name in outputs]
        if outputs == [field.node.outputs[0]]:
            computed = field.computed(wanted[0])
        else:  # several outputs: everything is computed whole
            computed = boxes([field.whole] * len(wanted[0].start))
        reads = {index: field.needed(index, computed) for index, _ in field.activations}
        for index, name in field.activations:
            self.boxes[name] = hull(self.boxes.get(name), reads[index])
        return Reading(field, computed, reads)
