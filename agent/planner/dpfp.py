"""DPFP: the fastest blocks and numbers of devices, by dynamic programming.

Dynamic programming for fused-layer parallelization (arXiv 2207.11293), over cuts and the number of
devices of each block, because a layout decides what the next block must fetch:

    T(j, K) = min over i < j and K' of T(i, K') + exchange(i, K' -> what (i, j] reads under K)
              + compute(i, j, K)

where compute is the slowest device's. T(layers, K) is followed by gathering the outputs on the
first device. It is exact: every choice of cuts and counts is considered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from agent.errors import ModelError
from agent.planner.cost import CostModel, Work
from agent.planner.layers import layers_of, live_tensors
from agent.planner.layout import Layouts
from agent.planner.receptive_field import Demand

if TYPE_CHECKING:
    from agent.planner.cost import Device, Floats
    from agent.planner.graph import Graph
    from agent.planner.layers import Layer
    from agent.planner.receptive_field import Boxes


@dataclass(frozen=True, slots=True)
class Choice:
    """One block of the best plan: layers [start, stop) on the `count` fastest devices."""

    start: int
    stop: int
    count: int
    compute_s: float
    exchange_s: float


@dataclass(frozen=True, slots=True)
class Allowed:
    """What the search may choose: cuts (None: any) and numbers of devices.

    `counts` is one number for each block between `cuts`, or the greatest number that every block
    takes as far as its tensors can be split, or None for any number. `seconds_per_byte` is a price
    on the weights that a block's devices hold, for fleets whose memory is scarce: the dearer they
    are, the more layers are shared instead of being computed where they are needed.
    """

    cuts: Sequence[int] | None = None
    counts: Sequence[int] | int | None = None
    seconds_per_byte: float = 0.0


class Search:
    """The search space of one graph on ranked devices, and the dynamic program over it."""

    def __init__(self, graph: Graph, devices: Sequence[Device]) -> None:
        self.graph = graph
        self.layers: tuple[Layer, ...] = layers_of(graph)
        self.live = live_tensors(graph, self.layers)
        self.layouts = Layouts(graph, self.layers, devices)
        self._cost = CostModel(graph, self.layouts)

    def best(self, allowed: Allowed) -> tuple[tuple[Choice, ...], float] | None:
        """Return the fastest blocks, and the predicted seconds with gathering the outputs.

        Returns:
            None where no allowed choice fits into the devices' memory.

        Raises:
            ModelError: if the cuts or counts that are forced make no sense.
        """
        n, end = len(self.layouts.devices), len(self.layers)
        cuts = _cuts(allowed, end)
        best = np.full((end + 1, n), np.inf)
        best[0, 0] = 0.0
        came: dict[tuple[int, int], tuple[int, int, float, float]] = {}
        for stop in cuts[1:]:
            possible = self._possible(stop, allowed, cuts)
            starts = {cut for cut in cuts if cut < stop}
            if allowed.cuts is not None:
                starts = {max(starts)}
            for start, exchange, compute, weights in self._blocks(stop, starts):
                priced = compute + allowed.seconds_per_byte * weights
                total = best[start][None, :] + exchange + priced[:, None]
                before = total.argmin(axis=1)
                for k in np.flatnonzero(possible & (total.min(axis=1) < best[stop])):
                    b = int(before[k])
                    best[stop, k] = total[k, b]
                    came[stop, int(k)] = (start, b, float(compute[k]), float(exchange[k, b]))
        gather = self._cost.gather(self.graph.outputs)
        last = int((best[end] + gather).argmin())
        if not np.isfinite(best[end, last]):
            return None
        path = _path(came, end, last)
        seconds = sum(choice.compute_s + choice.exchange_s for choice in path)
        return path, seconds + float(gather[last])

    def _blocks(self, stop: int, starts: set[int]) -> list[tuple[int, Floats, Floats, Floats]]:
        """Return (start, exchange [K, K'], compute [K], weights [K]) for blocks before `stop`."""
        tiles = {name: self.layouts.tiles(name) for name in self._shared(stop)}
        demand, work = Demand(self.graph, tiles), Work.none(len(self.layouts.count))
        written = self._bytes(tiles)
        found = []
        for start in range(stop - 1, min(starts) - 1, -1):
            work.add(self.layers[start], demand, self.graph)
            if start not in starts:
                continue
            borders = written + self._bytes(demand.boxes)
            compute = self._cost.largest(self._cost.compute(work, borders))
            compute[self._cost.too_large(work, borders)] = np.inf
            weights = self._cost.largest(work.weights)
            found.append((start, self._cost.exchange(demand.boxes), compute, weights))
        return found[::-1]

    def _shared(self, cut: int) -> list[str]:
        return [name for name in self.live[cut] if name != self.graph.input]

    def _bytes(self, regions: dict[str, Boxes]) -> Floats:
        total = np.zeros(len(self.layouts.count))
        for name, box in regions.items():
            total += box.sizes() * float(self.graph.itemsize(name))
        return total

    def _possible(self, stop: int, allowed: Allowed, cuts: Sequence[int]) -> Any:
        """Return for each number of devices whether a block that ends at `stop` may use it."""
        counts = np.arange(1, len(self.layouts.devices) + 1)
        rows = min((self.layouts.rows(name) for name in self._shared(stop)), default=1)
        fits = counts <= rows
        if allowed.counts is None:
            return fits
        if isinstance(allowed.counts, int):
            return counts == min(allowed.counts, rows, len(counts))
        forced = allowed.counts[cuts.index(stop) - 1]
        if not 1 <= forced <= min(rows, len(counts)):
            raise ModelError(
                f"a block that ends at cut {stop} cannot use {forced} devices: there are "
                f"{len(counts)}, and its tensors can be split into {rows} at most"
            )
        return counts == forced

    def compute_seconds(self, work: Work, borders: dict[str, Boxes]) -> Floats:
        """Return the seconds that each tile's device computes a block."""
        return self._cost.compute(work, self._bytes(borders))


def _cuts(allowed: Allowed, end: int) -> list[int]:
    if allowed.cuts is None:
        if isinstance(allowed.counts, Sequence):
            raise ModelError("numbers of devices for each block need the cuts between the blocks")
        return list(range(end + 1))
    cuts = sorted({0, *allowed.cuts, end})
    if cuts[0] < 0 or cuts[-1] > end:
        raise ModelError(f"cuts {list(allowed.cuts)} must lie between 1 and {end - 1}")
    counts = allowed.counts
    if isinstance(counts, Sequence) and len(counts) != len(cuts) - 1:
        raise ModelError(f"{len(cuts) - 1} blocks need as many device counts, not {len(counts)}")
    return cuts


def _path(
    came: dict[tuple[int, int], tuple[int, int, float, float]], end: int, last: int
) -> tuple[Choice, ...]:
    choices: list[Choice] = []
    stop, k = end, last
    while stop > 0:
        start, before, compute, exchange = came[stop, k]
        choices.append(Choice(start, stop, k + 1, compute, exchange))
        stop, k = start, before
    return tuple(choices[::-1])
