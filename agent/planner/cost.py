"""The cost model: how long a device computes a tile, and how long an exchange of halos takes.

A layer that the device has measured takes what it took there (`agent.planner.profile`). Of others
each node is limited by arithmetic or by memory. Arithmetic: its operations over the device's rate.
Memory: operators that do little with each element, weights, which each step reads once, and the
copies around a segment: its input is put together from pieces, and onnxruntime
brings it into its own layout and back. A node that is fused behind a kernel costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from agent.planner.profile import load

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agent.planner.graph import Graph
    from agent.planner.layers import Layer
    from agent.planner.layout import Layouts
    from agent.planner.packing import Packing
    from agent.planner.profile import LayerTime
    from agent.planner.receptive_field import Boxes, Demand, Reading

Floats = np.ndarray[Any, np.dtype[np.float64]]

# A segment's inputs and outputs are each copied once more than the model's own tensors.
_BORDER_COPIES = 2.0
_READ = 0.5
# Devices are never quite in step: who waits for another one waits for this share of its work more.
UNEVEN = 0.03
# The broker sends a message on when it has all of it, while the sender's next one comes in.
_FORWARDED = 1.5
# A tile in parts: its two borders are steps of their own.
_BORDER_STEPS = 2.0


@dataclass(frozen=True, slots=True)
class Device:
    """What the planner knows of a device; rates are those of the cores that serve.

    `link_bytes_per_s` is the rate of its link in each direction, `link_latency_s` the time that a
    small message takes from one device to another. `profile` has the times of layers that were
    measured there, by key (`agent.planner.profile`); of others the rates tell. Tiles are shared in
    proportion to `share`, to the flop/s if it is not given. `threads` are those of an operator. It
    packs and unpacks halos at `packing_bytes_per_s`; 0 is not known.
    """

    id: str
    flops_per_s: float
    memory_bytes_per_s: float = 4e9
    link_bytes_per_s: float = 117e6
    link_latency_s: float = 0.0005
    step_overhead_s: float = 0.0003
    memory_limit_bytes: int | None = None
    profile: Mapping[str, LayerTime] | None = None
    share: float | None = None
    threads: int = 1
    packing_bytes_per_s: float = 0.0

    @property
    def shared_by(self) -> float:
        """What the device's part of each tensor is in proportion to."""
        return self.flops_per_s if self.share is None else self.share


class Rates(NamedTuple):
    """How fast one layer is on each device; arrays have the shape (devices,).

    A device that has measured the layer takes `fixed` and `per_load`, others `per_flop` and
    `per_byte`. `weight` turns the layer's arithmetic into what a bound can add up over layers.
    """

    measured: bool
    fixed: Floats
    per_load: Floats
    per_flop: Floats
    per_byte: Floats
    weight: float


@dataclass(slots=True)
class Work:
    """What some tiles of a block cost; every array has the shape (tiles,).

    `device` is the rank of each tile's device. `seconds` are those of the layers alone, and
    `weighed` is arithmetic weighed by `Rates.weight`; both count what is added with rates.
    """

    device: Any
    flops: Floats
    moved: Floats
    weights: Floats
    peak: Floats
    seconds: Floats
    weighed: Floats

    @classmethod
    def none(cls, device: Any) -> Work:
        """Return no work for tiles on the devices of the ranks `device`."""
        return cls(device, *(np.zeros(len(device)) for _ in range(6)))

    def add(
        self, layer: Layer, demand: Demand, graph: Graph, rates: Rates | None = None
    ) -> list[Reading]:
        """Walk `demand` backwards through a layer and add what its nodes cost.

        Nodes of which nothing is wanted are passed over.

        Returns:
            The layer's nodes, last one first, with what each computes and reads for every tile.
        """
        walked = []
        flops, moved = self.flops.copy(), self.moved.copy()
        for field, fused in zip(layer.fields[::-1], layer.fused[::-1], strict=True):
            if demand.boxes.keys().isdisjoint(field.node.outputs):
                continue
            reading = demand.through(field)
            self._add_node(reading, graph, fused=fused)
            walked.append(reading)
        if rates is not None and walked:
            self._add_seconds(rates, self.flops - flops, self.moved - moved, walked)
        return walked

    def _add_seconds(
        self, rates: Rates, flops: Floats, moved: Floats, walked: Sequence[Reading]
    ) -> None:
        device = self.device
        self.seconds += flops * rates.per_flop[device] + moved * rates.per_byte[device]
        self.weighed += flops * rates.weight
        if rates.measured:
            self.seconds += rates.fixed[device] + load(walked) * rates.per_load[device]

    def _add_node(self, reading: Reading, graph: Graph, *, fused: bool) -> None:
        field, computed, reads = reading
        operator = field.operator
        sizes = computed.sizes().astype(np.float64)
        self.flops += operator.flops * sizes
        touched = sizes * graph.itemsize(field.node.outputs[0])
        for index, box in reads.items():
            touched += box.sizes() * float(graph.itemsize(field.node.inputs[index]))
        weights = field.weight_bytes(computed)
        self.weights += weights
        # However small the tile, all of its weights are read once; reading is half of copying.
        self.moved += _READ * weights
        self.peak = np.maximum(self.peak, touched)
        if operator.memory_bound and not fused and not operator.free:
            self.moved += touched


class _Moved(NamedTuple):
    """Bytes of a tensor that tiles receive, (tiles, layouts), and send, (layouts, tiles).

    `packed` are the seconds that packing them for, and unpacking them by, each tile takes.
    """

    into: Floats
    out: Floats
    packed: Any


@dataclass(frozen=True, slots=True)
class Exchange:
    """What passes between two blocks; arrays have the shape (after, before, device) of layouts.

    `travel` are the seconds until a device has what it receives, `copy` those that it then works
    to join it with its own; `foreign` is what it receives in proportion to what it has itself.
    """

    travel: Floats
    copy: Floats
    foreign: Floats


@dataclass(frozen=True, slots=True)
class Passing:
    """A block behind each layout: arrays have the shape (after, before).

    `waiting` are the seconds that the exchange adds, `seconds` those of all; `overlapped` tells
    where computing hides some of the exchange.
    """

    waiting: Floats
    seconds: Floats
    overlapped: Any


class CostModel:
    """Times of blocks for all layouts of some devices at once.

    Args:
        graph: the model.
        layouts: its tiles.
        broker_bytes_per_s: the rate of the broker's own link in each direction, which all
            exchanges share; if None, that of the fastest device; infinite where devices are linked
            to each other, with no broker between.
        overlap: whether devices may compute while halos travel.
        waits: how much of its time a message costs: 1, or less where other requests' work fills it.
        keys: of the graph's layers (`agent.planner.profile.layer_key`).
        packing: how halos travel; None for as they are.
    """

    def __init__(
        self,
        graph: Graph,
        layouts: Layouts,
        broker_bytes_per_s: float | None = None,
        *,
        overlap: bool = True,
        waits: float = 1.0,
        keys: Sequence[str | None] = (),
        packing: Packing | None = None,
    ) -> None:
        self._graph, self._layouts, self._overlap, self._waits = graph, layouts, overlap, waits
        devices = layouts.devices
        self._n = len(devices)
        self._flops = np.array([d.flops_per_s for d in devices])
        self._memory = np.array([d.memory_bytes_per_s for d in devices])
        self._link = np.array([d.link_bytes_per_s for d in devices])
        self._latency = np.array([d.link_latency_s for d in devices])
        self._broker = broker_bytes_per_s or float(self._link.max())
        # The papers' clock, without a broker, knows of neither.
        self._forwarded, self._uneven = (
            (_FORWARDED, UNEVEN) if isfinite(self._broker) else (1.0, 0.0)
        )
        self._overhead = np.array([d.step_overhead_s for d in devices])
        limits = (d.memory_limit_bytes for d in devices)
        self._limit = np.array([np.inf if limit is None else limit for limit in limits])
        device, self._kinds = layouts.device, len(layouts.shapes)
        self._foreign = (device[:, None] != device[None, :]).astype(np.float64)
        self._packing = packing
        self._handed_on: dict[str, _Moved] = {}
        self._in_layout = (layouts.layout[:, None] == np.arange(self._kinds)).astype(np.float64)
        profiles = [device.profile or {} for device in devices]
        self.rates = [self._rates_of(key, profiles) for key in keys]
        self._best_rates = self._fastest()

    def _rates_of(self, key: str | None, profiles: Sequence[Mapping[str, LayerTime]]) -> Rates:
        """Return how fast a layer is on every device."""
        times = [None if key is None else profile.get(key) for profile in profiles]
        measured = np.array([time is not None for time in times])
        fixed = np.array([0.0 if time is None else time.fixed_s for time in times])
        per_load = np.array([0.0 if time is None else time.s_per_unit for time in times])
        per_flop = np.where(measured, 0.0, 1.0 / self._flops)
        per_byte = np.where(measured, 0.0, 1.0 / self._memory)
        weight = float((per_load + per_flop).mean())
        return Rates(bool(measured.any()), fixed, per_load, per_flop, per_byte, weight)

    def _fastest(self) -> Floats:
        """Return for each device how much of `Work.weighed` it does in a second at best."""
        # The load of a layer is no less than its arithmetic.
        rates = [r.weight / (r.per_load + r.per_flop) for r in self.rates]
        return np.max(rates, axis=0) if rates else self._flops

    def compute(self, work: Work, borders: Floats) -> Floats:
        """Return the seconds that each tile's device computes.

        Args:
            work: what the tiles cost.
            borders: bytes of the segment's inputs and outputs, shape (tiles,).
        """
        device = work.device
        copied = _BORDER_COPIES * borders / self._memory[device]
        return np.asarray(work.seconds + copied + self._overhead[device])

    def largest(self, values: Floats) -> Floats:
        """Return the largest value in each layout; shape (layouts,)."""
        return np.asarray(self._by_device(values).max(axis=1))

    def _by_device(self, values: Floats) -> Floats:
        """Return values of tiles as a table: (layouts, devices), 0 where there is no tile."""
        table = np.zeros((self._kinds, self._n))
        table[self._layouts.layout, self._layouts.device] = values
        return table

    def too_large(self, work: Work, borders: Floats) -> Any:
        """Return for each layout whether a device cannot hold its tile's weights and tensors."""
        needed = work.weights + work.peak + borders
        over = needed > self._limit[self._layouts.device]
        return self.largest(over.astype(np.float64)) > 0

    def shared(self, work: Work) -> tuple[Floats, Floats]:
        """Return what is weighed of all tiles of each layout, and its devices' joint rate."""
        rates = self._best_rates[self._layouts.device]
        return work.weighed @ self._in_layout, rates @ self._in_layout

    def exchange(self, needs: Mapping[str, Boxes], kept: Mapping[str, Boxes]) -> Exchange:
        """Return what passes between two blocks, for every pair of layouts.

        Args:
            needs: what the later block's tiles read of each tensor alive at the cut; the model's
                input, which every device has, costs nothing.
            kept: tensors that the later block only hands on, with their tiles.
        """
        tiles = len(self._layouts.layout)
        received, sent = np.zeros((tiles, self._kinds)), np.zeros((self._kinds, tiles))
        copied, packed = np.zeros(tiles), np.zeros((tiles, self._kinds))
        for name, need in needs.items():
            if name == self._graph.input:
                continue
            moved = self._moved_on(name) if need is kept.get(name) else self._moves(name, need)
            received += moved.into
            sent += moved.out
            packed += moved.packed
            copied += need.sizes() * float(self._graph.itemsize(name))
        return self._exchange(received, sent, copied, packed)

    def block(self, compute: Floats, weights: Floats, exchange: Exchange, layers: int) -> Passing:
        """Return how long a block takes behind each layout, the exchange before it included.

        It is the faster of two: all devices wait for what they receive and compute their tile; or
        each computes what it can without (its interior) meanwhile, and then the borders, which
        costs it steps, each with all weights, and border rows of a block of several layers twice.

        Args:
            compute: seconds of each tile, shape (tiles,).
            weights: bytes of each tile's weights, shape (tiles,).
            exchange: what passes before it.
            layers: how many layers the block has.
        """
        table = self._by_device(compute)
        whole = table.max(axis=1)[:, None]
        travel = exchange.travel + self._uneven * self._waits * whole[:, :, None] * (
            exchange.foreign > 0
        )
        waiting = (travel + exchange.copy).max(axis=2)
        if not self._overlap:
            return Passing(waiting, whole + waiting, np.zeros(waiting.shape, dtype=bool))
        own = np.maximum(0.0, 1.0 - exchange.foreign)
        again = exchange.foreign * (1.0 - 1.0 / layers)
        busy = table[:, None, :] * (1.0 + again) + exchange.copy
        step = self._overhead + _READ * self._by_device(weights) / self._memory
        busy += _BORDER_STEPS * step[:, None, :] * (exchange.foreign > 0)
        exposed = np.maximum(0.0, travel - table[:, None, :] * own)
        hidden = (busy + exposed).max(axis=2)
        better = hidden < whole + waiting
        return Passing(
            np.where(better, exposed.max(axis=2), waiting),
            np.minimum(hidden, whole + waiting),
            better,
        )

    def gather(self, outputs: Sequence[str]) -> Floats:
        """Return the seconds to bring whole outputs to the first device, from each layout."""
        whole = {name: self._layouts.tiles(name) for name in outputs}
        exchange = self.exchange(whole, whole)
        # The first tile is that of one device: it owns, and so needs, everything.
        return np.asarray((exchange.travel + exchange.copy).max(axis=2)[0])

    def _moved_on(self, name: str) -> _Moved:
        """Return what passes at a change of layout."""
        if name not in self._handed_on:
            self._handed_on[name] = self._moves(name, self._layouts.tiles(name))
        return self._handed_on[name]

    def _moves(self, name: str, need: Boxes) -> _Moved:
        """Return what passes to tiles of a tensor for what they need of it."""
        own = self._layouts.tiles(name)
        common: Any = float(self._graph.itemsize(name)) * self._foreign
        for axis, extent in enumerate(self._graph.shape(name)):
            if extent > 1:
                start = np.maximum(need.start[:, None, axis], own.start[None, :, axis])
                stop = np.minimum(need.stop[:, None, axis], own.stop[None, :, axis])
                common = common * np.maximum(stop - start, 0)
        if self._packing is None or not self._packing.possible:
            return _Moved(common @ self._in_layout, self._in_layout.T @ common, 0.0)
        device = self._layouts.device
        common, busy = self._packing.travel(name, common, device[None, :], device[:, None])
        return _Moved(common @ self._in_layout, self._in_layout.T @ common, busy @ self._in_layout)

    def _exchange(self, received: Floats, sent: Floats, copied: Floats, packed: Floats) -> Exchange:
        """Turn bytes per tile into seconds per device."""
        layout, device = self._layouts.layout, self._layouts.device
        into, out, copies, busy = (np.zeros((self._kinds, self._kinds, self._n)) for _ in range(4))
        into[layout, :, device] = received
        out[:, layout, device] = sent
        copies[layout, :, device] = copied[:, None]
        busy[layout, :, device] = packed
        moving = np.maximum(into, out)
        travel = self._forwarded * moving / self._link + self._latency * (moving > 0)
        # Everything crosses the broker's own link, once in and once out.
        shared = into.sum(axis=2, keepdims=True) / self._broker
        travel = np.maximum(travel, (shared + self._latency) * (moving > 0))
        travel += busy
        kept = np.maximum(copies - into, 1.0)
        return Exchange(travel * self._waits, copies / self._memory * (into > 0), into / kept)
