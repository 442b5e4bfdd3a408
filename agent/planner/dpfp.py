"""DPFP: the fastest blocks and their layouts, by dynamic programming.

Dynamic programming for fused-layer parallelization (arXiv 2207.11293), over cuts and the layout of
each block (how many devices, in rows, columns or a grid), because it decides what the next block
must fetch:

    T(j, L) = min over i < j and L' of T(i, L') + passing(i, L' -> (i, j], L)

where passing is the slowest device's computing and the exchange before it, as far as computing
does not hide it. T(layers, L) is followed by gathering the outputs on the first device. It is
exact: a choice of cuts and layouts is left out only where a bound says that it cannot be the
fastest.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from agent.errors import ModelError
from agent.planner.blocked import loses_its_layout
from agent.planner.cost import CostModel, Work
from agent.planner.layers import layers_of, live_tensors
from agent.planner.layout import Layouts, Shape
from agent.planner.profile import layer_key
from agent.planner.receptive_field import Demand

if TYPE_CHECKING:
    from agent.planner.cost import Device, Floats, Passing
    from agent.planner.graph import Graph
    from agent.planner.layers import Layer
    from agent.planner.packing import Packing
    from agent.planner.receptive_field import Boxes, Reading


# Between two tiles lie rows that nobody reads (behind a stride); no model skips a tenth.
_NEEDED = 0.9


@dataclass(frozen=True, slots=True)
class Choice:
    """One block of the best plan: layers [start, stop) in layout number `layout`.

    `exchange_s` is what the exchange before it adds; with `overlapped`, borders are computed and
    sent apart from the interior, which hides the rest of it.
    """

    start: int
    stop: int
    layout: int
    shape: Shape
    compute_s: float = 0.0
    exchange_s: float = 0.0
    overlapped: bool = False


@dataclass(frozen=True, slots=True)
class Allowed:
    """What the search may choose: cuts (None: any) and layouts.

    `layouts` is one shape for each block between `cuts`; or the greatest number of devices, which
    every block uses as far as its tensors can be split; or None for any. `seconds_per_byte` is a
    price on the weights that a block's devices hold, for fleets whose memory is scarce: the dearer
    they are, the more layers are shared instead of being computed where they are needed.
    """

    cuts: Sequence[int] | None = None
    layouts: Sequence[Shape] | int | None = None
    seconds_per_byte: float = 0.0


@dataclass(frozen=True, slots=True)
class Rules:
    """What holds for every plan of a strategy, beside its cuts and layouts.

    `equal` gives every device as much of a tensor, however fast it is. `maps_only` shares only what
    has rows and columns; the first device computes the rest. `relayed` brings all that a block
    makes to the first device, from which others get what they read. `borders_first` has borders
    computed apart from the interior wherever that can be. `whole_reductions` does without partial
    results.
    """

    equal: bool = False
    maps_only: bool = False
    relayed: bool = False
    borders_first: bool = False
    whole_reductions: bool = False


FREE = Rules()


class _Paths:
    """The best way to each cut and layout: its seconds, and the block that it ends with."""

    def __init__(self, end: int, layouts: int) -> None:
        self.best = np.full((end + 1, layouts), np.inf)
        self.best[0, 0] = 0.0
        self.came: dict[tuple[int, int], _Came] = {}

    def improve(self, start: int, stop: int, passing: Passing, compute: Floats, dear: Any) -> None:
        """Take a block for those layouts at `stop` to which it is the fastest way so far.

        Args:
            start: the cut before the block.
            stop: the cut behind it.
            passing: what it takes behind each layout.
            compute: the slowest device's seconds, shape (layouts,).
            dear: seconds to add for each layout.
        """
        total = self.best[start][None, :] + passing.seconds + dear[:, None]
        before = total.argmin(axis=1)
        for k in np.flatnonzero(total.min(axis=1) < self.best[stop]):
            b = int(before[k])
            self.best[stop, k] = total[k, b]
            waiting, overlapped = float(passing.waiting[k, b]), bool(passing.overlapped[k, b])
            self.came[stop, int(k)] = _Came(start, b, float(compute[k]), waiting, overlapped)


class _Came(NamedTuple):
    """The last block of a way: the cut and layout before it, and what it takes."""

    start: int
    before: int
    compute_s: float
    exchange_s: float
    overlapped: bool


class Search:
    """The search space of one graph on ranked devices, and the dynamic program over it.

    Args:
        graph: the model, lowered.
        devices: by rank.
        shapes: the layouts' shapes; None for all.
        broker_bytes_per_s: see `CostModel`.
        overlap: see `CostModel`.
        waits: see `CostModel`.
        packing: see `CostModel`.
    """

    def __init__(
        self,
        graph: Graph,
        devices: Sequence[Device],
        shapes: Sequence[Shape] | None = None,
        *,
        broker_bytes_per_s: float | None = None,
        overlap: bool = True,
        waits: float = 1.0,
        rules: Rules = FREE,
        packing: Packing | None = None,
    ) -> None:
        self.graph, self.rules = graph, rules
        self.layers: tuple[Layer, ...] = layers_of(graph)
        self.blocked = graph.blocked
        self.live = live_tensors(graph, self.layers)
        self.layouts = Layouts(graph, self.layers, devices, shapes, equal=rules.equal)
        self._cost = CostModel(
            graph,
            self.layouts,
            broker_bytes_per_s,
            overlap=overlap,
            waits=waits,
            keys=[layer_key(layer, graph, self.blocked) for layer in self.layers],
            packing=packing,
        )
        self._needed = self._work_needed()

    def best(self, allowed: Allowed) -> tuple[tuple[Choice, ...], float] | None:
        """Return the fastest blocks, and their seconds with gathering the outputs and the price.

        Returns:
            None where no allowed choice fits into the devices' memory.

        Raises:
            ModelError: if the cuts or layouts that are forced make no sense.
        """
        end = len(self.layers)
        cuts = _cuts(allowed, end)
        if not isinstance(allowed.layouts, Sequence):
            cuts = [cut for cut in cuts if cut == end or not self._is_sealed(cut)]
        paths = _Paths(end, len(self.layouts.shapes))
        for stop in cuts[1:]:
            starts = {cut for cut in cuts if cut < stop}
            if allowed.cuts is not None:
                starts = {max(starts)}
            possible = self._possible(stop, allowed, cuts)
            self._reach(stop, starts, possible, paths, allowed.seconds_per_byte)
        gather = self._cost.gather(self.graph.outputs)
        last = int((paths.best[end] + gather).argmin())
        if not np.isfinite(paths.best[end, last]):
            return None
        return self._path(paths, last), float(paths.best[end, last] + gather[last])

    def _reach(
        self, stop: int, starts: set[int], possible: Any, paths: _Paths, price: float
    ) -> None:
        """Find the best block that ends at `stop`, for each layout that is possible there.

        Blocks grow backwards, until none that is longer can be better.
        """
        tiles = {name: self.layouts.tiles(name) for name in self._shared(stop)}
        demand, work = Demand(self.graph, tiles), Work.none(self.layouts.device)
        written = self._bytes(tiles)
        for start in range(stop - 1, min(starts) - 1, -1):
            self.add(start, demand, work)
            if start in starts:
                borders = written + self._bytes(demand.boxes)
                seconds = self._cost.compute(work, borders)
                compute = self._cost.largest(seconds)
                usable = possible & ~self._cost.too_large(work, borders)
                dear = np.where(usable, price * self._cost.largest(work.weights), np.inf)
                if (paths.best[start].min() + compute + dear < paths.best[stop]).any():
                    exchange = self._cost.exchange(demand.boxes, tiles)
                    passing = self._cost.block(seconds, work.weights, exchange, stop - start)
                    paths.improve(start, stop, passing, compute, dear)
            if not (self._bound(work, start, paths) < paths.best[stop])[possible].any():
                break

    def _bound(self, work: Work, start: int, paths: _Paths) -> Floats:
        """Return what any longer block takes at least, with all that precedes it, by layout.

        Each layout's devices compute no less than what is needed once, and no less than `work`.
        """
        if start == 0:
            return np.full(len(self.layouts.shapes), np.inf)
        alone = self._cost.largest(self._cost.compute(work, np.zeros_like(work.flops)))
        done, rates = self._cost.shared(work)
        before = self._needed[start] - self._needed[:start]
        shared = (done[None, :] + before[:, None]) / rates[None, :]
        earlier = paths.best[:start].min(axis=1)[:, None]
        return np.asarray((earlier + np.maximum(alone[None, :], shared)).min(axis=0))

    def _work_needed(self) -> Floats:
        """Return what is weighed before each cut that one device cannot do without."""
        outputs = {name: self.layouts.tiles(name) for name in self.graph.outputs}
        demand, work = Demand(self.graph, outputs), Work.none(self.layouts.device)
        after = [0.0]
        for number in reversed(range(len(self.layers))):
            self.add(number, demand, work)
            after.append(float(work.weighed[0]))
        return _NEEDED * (after[-1] - np.array(after[::-1]))

    def _shared(self, cut: int) -> list[str]:
        return [name for name in self.live[cut] if name != self.graph.input]

    def _bytes(self, regions: dict[str, Boxes]) -> Floats:
        total = np.zeros(len(self.layouts.layout))
        for name, box in regions.items():
            total += box.sizes() * float(self.graph.itemsize(name))
        return total

    def _is_sealed(self, cut: int) -> bool:
        """Tell whether no graph that keeps every bit is cut here: onnxruntime fuses across it."""
        live = self._shared(cut)
        return self.graph.threads > 0 and any(map(self._fuses_behind, live))

    def _fuses_behind(self, name: str) -> bool:
        """Tell whether a reader has another kernel where it is cut off from what it reads.

        That is a product of two activations behind a transposition, and an operator of a blocked
        tensor that no identity brings into that layout again.
        """
        producer, readers = self.graph.producers[name], self.graph.consumers.get(name, ())
        if producer.op == "Transpose" and any(
            reader.op == "MatMul" and not self.graph.is_folded(reader.inputs[1])
            for reader in readers
        ):
            return True
        return any(loses_its_layout(reader, self.graph) for reader in readers)

    def _possible(self, stop: int, allowed: Allowed, cuts: Sequence[int]) -> Any:
        """Return for each layout whether a block that ends at `stop` may use it."""
        layouts, shared = self.layouts, self._shared(stop)
        fits = np.array(
            [all(layouts.fits(name, n) for name in shared) for n in range(len(layouts.shapes))]
        )
        if self.rules.maps_only and not all(len(layouts.axes(name)) > 1 for name in shared):
            fits &= layouts.counts == 1
        if allowed.layouts is None:
            return fits
        if isinstance(allowed.layouts, int):
            most = max(c for c in layouts.counts[fits] if c <= max(1, allowed.layouts))
            return fits & (layouts.counts == most)
        forced = allowed.layouts[cuts.index(stop) - 1]
        chosen = fits & np.array([shape == forced for shape in layouts.shapes])
        if not chosen.any():
            raise ModelError(
                f"a block that ends at cut {stop} cannot be shared as {forced}: there are "
                f"{len(layouts.devices)} devices, and its tensors fit "
                f"{', '.join(str(s) for s, fit in zip(layouts.shapes, fits, strict=True) if fit)}"
            )
        return chosen

    def _path(self, paths: _Paths, last: int) -> tuple[Choice, ...]:
        choices: list[Choice] = []
        stop, n = len(self.layers), last
        while stop > 0:
            came = paths.came[stop, n]
            choices.append(
                Choice(
                    came.start,
                    stop,
                    n,
                    self.layouts.shapes[n],
                    came.compute_s,
                    came.exchange_s,
                    came.overlapped,
                )
            )
            stop, n = came.start, came.before
        return tuple(choices[::-1])

    def add(self, layer: int, demand: Demand, work: Work) -> list[Reading]:
        """Walk `demand` backwards through a layer and add what it costs; see `Work.add`."""
        return work.add(self.layers[layer], demand, self.graph, self._cost.rates[layer])

    def walk(self, choice: Choice, demand: Demand, work: Work) -> list[Reading]:
        """Walk `demand` backwards through a block and add what it costs; see `Work.add`."""
        backwards = reversed(range(choice.start, choice.stop))
        return [reading for layer in backwards for reading in self.add(layer, demand, work)]

    def compute_seconds(self, work: Work, borders: Iterable[tuple[str, Boxes]]) -> Floats:
        """Return the seconds that some tiles of a block take.

        Args:
            work: what they cost.
            borders: what they read and write.
        """
        total = np.zeros(len(work.flops))
        for name, box in borders:
            total += box.sizes() * float(self.graph.itemsize(name))
        return self._cost.compute(work, total)


def _cuts(allowed: Allowed, end: int) -> list[int]:
    if allowed.cuts is None:
        if isinstance(allowed.layouts, Sequence):
            raise ModelError("layouts for each block need the cuts between the blocks")
        return list(range(end + 1))
    cuts = sorted({0, *allowed.cuts, end})
    if cuts[0] < 0 or cuts[-1] > end:
        raise ModelError(f"cuts {list(allowed.cuts)} must lie between 1 and {end - 1}")
    layouts = allowed.layouts
    if isinstance(layouts, Sequence) and len(layouts) != len(cuts) - 1:
        raise ModelError(f"{len(cuts) - 1} blocks need as many layouts, not {len(layouts)}")
    return cuts
