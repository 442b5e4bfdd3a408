"""Layouts: how a cut's tensors are shared among K devices.

Devices are ranked by capacity; a layout for K devices uses the K fastest, and each owns a share of
every tensor's split axis in proportion to its capacity. No share is empty: a tensor with fewer
rows than K has no layout for K devices.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from agent.planner.receptive_field import Boxes, boxes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.geometry import Region
    from agent.planner.cost import Device
    from agent.planner.graph import Graph
    from agent.planner.layers import Layer

# Kernels work on this many channels at a time; a share that ends between wastes the rest.
_CHANNELS = 16


class Layouts:
    """All layouts for 1..N ranked devices; a tile is a (number of devices K, device) pair.

    Tile t belongs to device `device[t]` of the layout for `count[t]` devices.
    """

    def __init__(self, graph: Graph, layers: Sequence[Layer], devices: Sequence[Device]) -> None:
        self.devices = devices
        pairs = [(k, d) for k in range(1, len(devices) + 1) for d in range(k)]
        self.count, self.device = (np.array(column) for column in zip(*pairs, strict=True))
        self._graph = graph
        self._axes = split_axes(graph, layers)
        self._tiles: dict[str, Boxes] = {}

    def tile(self, count: int, device: int) -> int:
        """Return the number of the tile of `device` in the layout for `count` devices."""
        return count * (count - 1) // 2 + device

    def axis(self, tensor: str) -> int | None:
        """Return the axis along which a tensor is split, None where it cannot be."""
        return self._axes.get(tensor)

    def rows(self, tensor: str) -> int:
        """Return along how many elements a tensor can be split, 1 where it cannot."""
        axis = self._axes.get(tensor)
        return 1 if axis is None else self._graph.shape(tensor)[axis]

    def tiles(self, tensor: str) -> Boxes:
        """Return every tile of a tensor; the whole where a layout is not possible."""
        if tensor not in self._tiles:
            self._tiles[tensor] = boxes(self._regions(tensor))
        return self._tiles[tensor]

    def _regions(self, tensor: str) -> list[Region]:
        axis, shape = self._axes.get(tensor), self._graph.shape(tensor)
        whole = tuple((0, extent) for extent in shape)
        regions: list[Region] = []
        for count in range(1, len(self.devices) + 1):
            if axis is None or self.rows(tensor) < count:
                regions += [whole] * count
                continue
            shares = [device.flops_per_s for device in self.devices[:count]]
            edges = split(shape[axis], shares, _CHANNELS if axis == 1 else 1)
            regions += [(*whole[:axis], edge, *whole[axis + 1 :]) for edge in pairwise(edges)]
        return regions


def split(extent: int, shares: Sequence[float], multiple: int = 1) -> list[int]:
    """Return the edges that divide `extent` elements in proportion to `shares`, none empty.

    Edges are multiples of `multiple` where every share is at least that.
    """
    total, count = sum(shares), len(shares)
    unit = multiple if min(shares) / total * extent >= multiple else 1
    edges, run = [0], 0.0
    for number, share in enumerate(shares[:-1], start=1):
        run += share
        edge = round(extent * run / total / unit) * unit
        edges.append(min(max(edge, edges[-1] + 1), extent - (count - number)))
    return [*edges, extent]


def split_axes(graph: Graph, layers: Sequence[Layer]) -> dict[str, int]:
    """Return the axis along which each tensor is split; a tensor that cannot be is left out.

    Rows (axis 2) of the input, and what they become in later tensors; where they end, rows of a
    tensor that has some, or else its channels or features (axis 1).
    """
    axes: dict[str, int] = {}
    first = _usual_axis(graph.shape(graph.input))
    if first is not None:
        axes[graph.input] = first
    for layer in layers:
        for field in layer.fields:
            for name in filter(None, field.node.outputs):
                shape = graph.shape(name)
                axis = _followed_axis(field.node.inputs, field.operator.maps, axes)
                usable = axis is not None and shape[axis] > 1 and axis not in field.operator.fixed
                chosen = axis if usable else _usual_axis(shape)
                if chosen is not None:
                    axes[name] = chosen
    return axes


def _usual_axis(shape: Sequence[int]) -> int | None:
    for axis in (2, 1):
        if len(shape) > axis and shape[axis] > 1:
            return axis
    return None


def _followed_axis(
    inputs: Sequence[str],
    maps: Sequence[Sequence[tuple[int, int, int, int]] | None],
    axes: dict[str, int],
) -> int | None:
    for name, axis_maps in zip(inputs, maps, strict=True):
        if axis_maps is not None and name in axes:
            axis, stride, _, _ = axis_maps[axes[name]]
            if stride:
                return axis
    return None
