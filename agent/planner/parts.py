"""Parts: a tile's borders, which others need or which need others, and its interior."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, NamedTuple

from agent.geometry import hull, intersect
from agent.planner.receptive_field import Demand, boxes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agent.geometry import Region
    from agent.planner.dpfp import Search
    from agent.planner.layers import Layer

# Widening the borders by what the interior still lacks ends after a step or two.
_ROUNDS = 4


class Part(NamedTuple):
    """A part of a device's tile: its region of each tensor; parts are run by `order`."""

    device: int
    order: int
    regions: dict[str, Region]

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors that it writes."""
        return tuple(self.regions)


# How thick the borders of a tensor are: (low, high) for each of its split axes.
_Borders = dict[str, list[list[int]]]


class Cutter:
    """Divides the tiles of one block."""

    def __init__(self, search: Search, layers: Sequence[Layer]) -> None:
        self._search, self._layers = search, layers
        # A partial result is of the whole tile.
        self.possible = all(f.own is None for layer in layers for f in layer.fields)

    def cut(
        self,
        device: int,
        tile: Mapping[str, Region],
        leaving: Mapping[str, Sequence[Region]],
        own: Mapping[str, Sequence[Region]],
    ) -> list[Part]:
        """Divide a tile; no parts where it cannot be divided or need not be.

        Args:
            device: whose tile it is, a rank.
            tile: its region of each tensor that the block writes.
            leaving: what of these is sent to other devices.
            own: what the device holds before it receives anything for this block.
        """
        borders: _Borders = {}
        for name, region in tile.items():
            thick = self._thickness(name, region, leaving[name])
            if thick is None:
                return []
            borders[name] = thick
        widened = self._widened(tile, borders, own)
        regions = self._regions(tile, widened) or self._regions(tile, borders)
        if len(regions) < 2:  # noqa: PLR2004 - an interior alone is no division
            return []
        return [Part(device, order, part) for order, part in enumerate(regions)]

    def _thickness(
        self, name: str, tile: Region, leaving: Sequence[Region]
    ) -> list[list[int]] | None:
        """Return how thick the borders are that leave, or None where what leaves is no border."""
        axes = self._search.layouts.axes(name)
        thick = [[0, 0] for _ in axes]
        for region in leaving:
            partial = [(n, a) for n, a in enumerate(axes) if region[a] != tile[a]]
            for n, axis in partial:
                (start, stop), (first, last) = region[axis], tile[axis]
                if start == first:
                    thick[n][0] = max(thick[n][0], stop - first)
                elif stop == last:
                    thick[n][1] = max(thick[n][1], last - start)
                else:
                    return None
            if not partial:
                return None
        return thick

    def _widened(
        self, tile: Mapping[str, Region], borders: _Borders, own: Mapping[str, Sequence[Region]]
    ) -> _Borders:
        """Return borders within which the interior needs only what the device has."""
        wide = {name: [list(pair) for pair in thick] for name, thick in borders.items()}
        for _ in range(_ROUNDS):
            interior = self._interior(tile, wide)
            if interior is None:
                break
            lacking = self._lacking(interior, own)
            if not any(any(pair) for pair in lacking.values()):
                break
            for (position, extent), pair in lacking.items():
                for name, thick in wide.items():
                    axes = self._search.layouts.axes(name)
                    if position < len(axes):
                        scale = self._search.graph.shape(name)[axes[position]] / extent
                        for side in (0, 1):
                            thick[position][side] += ceil(pair[side] * scale)
        return wide

    def _lacking(
        self, interior: Mapping[str, Region], own: Mapping[str, Sequence[Region]]
    ) -> dict[tuple[int, int], list[int]]:
        """Return how much more than the device has an interior reads.

        Returns:
            For each split axis (its position among a tensor's, the tensor's extent): below, above.
        """
        search = self._search
        demand = Demand(search.graph, {name: boxes([r]) for name, r in interior.items()})
        for layer in self._layers[::-1]:
            for field in layer.fields[::-1]:
                if not demand.boxes.keys().isdisjoint(field.node.outputs):
                    demand.through(field)
        lacking: dict[tuple[int, int], list[int]] = {}
        for name, box in demand.boxes.items():
            read = box.region(0)
            mine = [held for held in own.get(name, ()) if intersect(held, read)]
            if not mine:
                continue  # it comes from others altogether: no border makes a difference
            held = hull(mine)
            for position, axis in enumerate(search.layouts.axes(name)):
                pair = lacking.setdefault((position, search.graph.shape(name)[axis]), [0, 0])
                pair[0] = max(pair[0], held[axis][0] - read[axis][0])
                pair[1] = max(pair[1], read[axis][1] - held[axis][1])
        return lacking

    def _interior(self, tile: Mapping[str, Region], borders: _Borders) -> dict[str, Region] | None:
        """Return what is within the borders, or None where that is nothing."""
        interior = {}
        for name, region in tile.items():
            core = list(region)
            for axis, (low, high) in zip(
                self._search.layouts.axes(name), borders[name], strict=True
            ):
                start, stop = region[axis]
                core[axis] = (start + low, stop - high)
                if start + low >= stop - high:
                    return None
            interior[name] = tuple(core)
        return interior

    def _regions(self, tile: Mapping[str, Region], borders: _Borders) -> list[dict[str, Region]]:
        """Return the regions of each part, borders first: rows at full width, then columns."""
        interior = self._interior(tile, borders)
        if interior is None:
            return []
        parts: dict[tuple[int, int], dict[str, Region]] = {}
        for name, region in tile.items():
            rest = list(region)
            pairs = zip(self._search.layouts.axes(name), borders[name], strict=True)
            for position, (axis, (low, high)) in enumerate(pairs):
                start, stop = rest[axis]
                for side, span in enumerate(((start, start + low), (stop - high, stop))):
                    if span[0] < span[1]:
                        border = (*rest[:axis], span, *rest[axis + 1 :])
                        parts.setdefault((position, side), {})[name] = border
                rest[axis] = (start + low, stop - high)
        return [*(parts[key] for key in sorted(parts)), interior]
