"""Layouts: how a cut's tensors are shared among devices, as rows, columns or a grid.

Devices are ranked by capacity; a layout of R x C tiles uses the R * C fastest. Each device owns a
share of every tensor in proportion to its capacity: of the rows its grid row's, and of these
columns its own. A tensor with one axis to split is shared along it. No share is empty: a tensor
that is too small for a layout does not fit it.
"""

from __future__ import annotations

from heapq import heapify, heapreplace
from itertools import accumulate, pairwise
from math import prod
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from agent.planner.receptive_field import Boxes, boxes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from agent.geometry import Region
    from agent.planner.cost import Device
    from agent.planner.graph import Graph
    from agent.planner.layers import Layer
    from agent.planner.operators import Operator

# Kernels work on this many channels at a time; a share that ends between wastes the rest.
_CHANNELS = 16
_COLOURS = (1, 3, 4)
_PICTURE_RANK = 4


class Shape(NamedTuple):
    """A layout's shape: tiles one above the other, and tiles side by side."""

    rows: int
    columns: int

    @property
    def tiles(self) -> int:
        """How many devices it uses."""
        return self.rows * self.columns

    def __str__(self) -> str:
        return f"{self.rows}x{self.columns}"


def shapes_for(devices: int) -> tuple[Shape, ...]:
    """Return every shape for 1 to `devices` devices, fewer devices first."""
    return tuple(
        Shape(count // columns, columns)
        for count in range(1, devices + 1)
        for columns in range(1, count + 1)
        if count % columns == 0
    )


class Layouts:
    """All layouts for 1..N ranked devices; a tile is a (layout, device) pair.

    Tile t belongs to device `device[t]` of layout `layout[t]`, which has the shape
    `shapes[layout[t]]`. Layout 0 is a single device. With `equal`, shares do not follow capacity.
    """

    def __init__(
        self,
        graph: Graph,
        layers: Sequence[Layer],
        devices: Sequence[Device],
        shapes: Sequence[Shape] | None = None,
        *,
        equal: bool = False,
    ) -> None:
        self.devices = devices
        self._rates = [1.0 if equal else device.shared_by for device in devices]
        self.shapes = tuple(shapes if shapes is not None else shapes_for(len(devices)))
        self.counts = np.array([shape.tiles for shape in self.shapes])
        pairs = [(n, d) for n, shape in enumerate(self.shapes) for d in range(shape.tiles)]
        self.layout, self.device = (np.array(column) for column in zip(*pairs, strict=True))
        self._first = np.searchsorted(self.layout, np.arange(len(self.shapes)))
        self._graph = graph
        self._axes = split_axes(graph, layers)
        # Slots of partial results follow the tiles that they are made of.
        self._source = {
            field.node.outputs[0]: field.node.inputs[0]
            for layer in layers
            for field in layer.fields
            if field.operator.own
        }
        self._tiles: dict[str, Boxes] = {}
        for layer in layers:
            for field in layer.fields:
                if field.operator.own:
                    field.own = self.tiles(field.node.inputs[0])

    def tiles_of(self, layout: int) -> range:
        """Return the numbers of a layout's tiles, in the order of devices."""
        first = int(self._first[layout])
        return range(first, first + self.shapes[layout].tiles)

    def axes(self, tensor: str) -> tuple[int, ...]:
        """Return the axes along which a tensor is split: rows and columns, one axis, or none."""
        return self._axes.get(tensor, ())

    def fits(self, tensor: str, layout: int) -> bool:
        """Tell whether a tensor can be shared so that every device has some of it."""
        shape = self.shapes[layout]
        tensor = self._source.get(tensor, tensor)
        extents = [self._graph.shape(tensor)[axis] for axis in self.axes(tensor)]
        if len(extents) <= 1:
            return shape.tiles <= (extents or [1])[0]
        return shape.rows <= extents[0] and shape.columns <= extents[1]

    def tiles(self, tensor: str) -> Boxes:
        """Return every tile of a tensor; the whole where a layout does not fit."""
        if tensor not in self._tiles:
            regions = [r for layout in range(len(self.shapes)) for r in self._split(tensor, layout)]
            self._tiles[tensor] = boxes(regions)
        return self._tiles[tensor]

    def _split(self, tensor: str, layout: int) -> Iterator[Region]:
        shape, extents, axes = self.shapes[layout], self._graph.shape(tensor), self.axes(tensor)
        whole = tuple((0, extent) for extent in extents)
        if not self.fits(tensor, layout) or not axes:
            yield from [whole] * shape.tiles
            return
        rates = self._rates[: shape.tiles]
        if len(axes) == 1:
            if tensor in self._source:
                rates = [1.0] * shape.tiles
            channels = axes[0] == 1 and prod(extents[2:]) == 1
            edges = split(extents[axes[0]], rates, _CHANNELS if channels else 1)
            yield from (_replaced(whole, axes, (edge,)) for edge in pairwise(edges))
            return
        grid = [rates[row * shape.columns : (row + 1) * shape.columns] for row in range(shape.rows)]
        rows = split(extents[axes[0]], [sum(row) for row in grid])
        for row, shares in zip(pairwise(rows), grid, strict=True):
            for column in pairwise(split(extents[axes[1]], shares)):
                yield _replaced(whole, axes, (row, column))


def _replaced(region: Region, axes: Sequence[int], spans: Sequence[tuple[int, int]]) -> Region:
    changed = dict(zip(axes, spans, strict=True))
    return tuple(changed.get(axis, span) for axis, span in enumerate(region))


def split(extent: int, shares: Sequence[float], multiple: int = 1) -> list[int]:
    """Return the edges that divide `extent` elements in proportion to `shares`, none empty.

    The largest of all parts in proportion to its share is as small as can be. Edges are multiples
    of `multiple` where every share is at least that.
    """
    total = sum(shares)
    unit = multiple if min(shares) / total * extent >= multiple else 1
    rounded = _rounded(extent, shares, unit)
    fairest = _fairest(extent, shares, unit)
    # Rounded edges lie alike in maps of different sizes, which keeps halos thin.
    return min(rounded, fairest, key=lambda edges: _longest(edges, shares))


def _rounded(extent: int, shares: Sequence[float], unit: int) -> list[int]:
    total, count = sum(shares), len(shares)
    edges, run = [0], 0.0
    for number, share in enumerate(shares[:-1], start=1):
        run += share
        edge = round(extent * run / total / unit) * unit
        edges.append(min(max(edge, edges[-1] + 1), extent - (count - number)))
    return [*edges, extent]


def _fairest(extent: int, shares: Sequence[float], unit: int) -> list[int]:
    """Hand out one unit after the other, each to the part that is the smallest with it."""
    units = [1] * len(shares)
    queue = [(2 / share, number) for number, share in enumerate(shares)]
    heapify(queue)
    for _ in range(max(1, extent // unit) - len(shares)):
        _, number = queue[0]
        units[number] += 1
        heapreplace(queue, ((units[number] + 1) / shares[number], number))
    edges = [0, *(unit * edge for edge in accumulate(units))]
    return [*edges[:-1], extent]


def _longest(edges: Sequence[int], shares: Sequence[float]) -> float:
    sizes = [stop - start for start, stop in pairwise(edges)]
    return max(size / share for size, share in zip(sizes, shares, strict=True))


def split_axes(graph: Graph, layers: Sequence[Layer]) -> dict[str, tuple[int, ...]]:
    """Return the axes along which each tensor is split; a tensor that cannot be is left out.

    Rows and columns of the input, and what they become in later tensors; where they end, those of
    a map, or else the longest axis.
    """
    axes = {graph.input: _usual_axes(graph.shape(graph.input))}
    for layer in layers:
        for field in layer.fields:
            for name in filter(None, field.node.outputs):
                shape = graph.shape(name)
                if field.operator.own:
                    axes[name] = (field.node.ints("axes", ())[0],)
                    continue
                followed = _followed(field.node.inputs, field.operator, shape, axes, graph)
                axes[name] = followed or _usual_axes(shape)
    return {name: found for name, found in axes.items() if found}


def _usual_axes(shape: Sequence[int]) -> tuple[int, ...]:
    if len(shape) >= _PICTURE_RANK:
        last = len(shape) == _PICTURE_RANK and shape[3] in _COLOURS and shape[1] not in _COLOURS
        spatial = tuple(axis for axis in ((1, 2) if last else (2, 3)) if shape[axis] > 1)
        if spatial:
            return spatial
    longest = max(range(1, len(shape)), key=lambda axis: shape[axis], default=0)
    return (longest,) if longest and shape[longest] > 1 else ()


def _followed(
    inputs: Sequence[str],
    operator: Operator,
    output: Sequence[int],
    axes: dict[str, tuple[int, ...]],
    graph: Graph,
) -> tuple[int, ...]:
    """Return what the axes of the largest input that has some become."""
    known = [n for n in range(len(inputs)) if inputs[n] in axes and operator.maps[n] is not None]
    for n in sorted(known, key=lambda n: -prod(graph.shape(inputs[n]))):
        maps = operator.maps[n] or ()
        found = [maps[axis].axis for axis in axes[inputs[n]] if maps[axis].stride]
        usable = [a for a in found if output[a] > 1 and a not in operator.fixed]
        if usable:
            return tuple(usable)
    return ()
