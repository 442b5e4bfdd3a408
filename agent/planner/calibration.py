"""Calibration: probes of a model's layers, and what their times say of a device.

A probe is a segment of one layer for a tile of it. Each distinct layer has two, of different size,
so that the time has a fixed part (weights are read, threads start) and one in proportion to the
tile's size. A device tells the time of the layer's kernels apart from that of the whole run: what
is left is what a step costs around its layers, which a layer inside a block does not pay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from agent.geometry import shape_of
from agent.planner.blocked import blocked_tensors
from agent.planner.cost import Work
from agent.planner.layers import layers_of, live_tensors
from agent.planner.layout import split_axes
from agent.planner.lowering import lower
from agent.planner.profile import LayerTime, layer_key, load
from agent.planner.receptive_field import Demand, boxes
from agent.planner.segments import build_segment
from agent.wire.calibration import ArraySpec, Probe

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agent.geometry import Region
    from agent.planner.graph import Graph
    from agent.planner.layers import Layer
    from agent.planner.segments import Segment
    from agent.wire.calibration import Timing

# A probe must be over soon on a slow device, which may be asked for something meanwhile.
_LARGEST_LOAD = 1e9
_LARGEST_BYTES = 32 << 20
# The smaller tile of a layer has at most this share of the larger one's load, if it can.
_SMALLER = 0.3
_HALVINGS = 8
# No layer takes no time, even where the clock of onnxruntime's profile is too coarse for it.
_LEAST_SLOPE = 1e-15
# Of less than this share of a model's arithmetic nothing is concluded for all of it.
_ENOUGH = 0.5
# How many operations take as long as moving a byte, to order probes: devices differ little in it.
_FLOPS_A_BYTE = 4.0


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A layer at some sizes of its tile: one row of each array for each."""

    layer: Layer
    loads: Any
    nbytes: Any
    weight: float


def probes(graph: Graph) -> tuple[Probe, ...]:
    """Return the probes of a model's layers, those that take most of its time first.

    Layers that cannot be probed within a device's memory are left out.
    """
    weights: dict[str, float] = {}
    made: dict[str, tuple[Probe, ...]] = {}
    # On one device nothing is taken apart, so layers may be others.
    for slots in (1, 2):
        prober = _Prober(lower(graph, slots))
        counted: dict[str, float] = {}
        for number, key in enumerate(prober.keys):
            if key is None:
                continue
            if key not in made:
                made[key] = prober.probes(number, key)
            counted[key] = counted.get(key, 0.0) + prober.weight(number)
        weights = counted | weights
    ordered = sorted(made, key=lambda key: -weights[key])
    return tuple(probe for key in ordered for probe in made[key])


class _Prober:
    """Makes probes of one graph's layers."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._layers = layers_of(graph)
        self._blocked = blocked_tensors(graph)
        self._live = live_tensors(graph, self._layers)
        self._axes = split_axes(graph, self._layers)
        self.keys = [layer_key(layer, graph, self._blocked) for layer in self._layers]

    def weight(self, number: int) -> float:
        """Return how much of the model's time a layer takes, in no unit."""
        demand, work = Demand(self._graph, self._tiles(number, 1)), Work.none([0])
        work.add(self._layers[number], demand, self._graph)
        return float(work.flops[0] + _FLOPS_A_BYTE * work.moved[0])

    def whole(self, number: int) -> tuple[float, float]:
        """Return the arithmetic and the load of a whole layer."""
        demand, work = Demand(self._graph, self._tiles(number, 1)), Work.none([0])
        walked = work.add(self._layers[number], demand, self._graph)
        return float(work.flops[0]), float(np.sum(load(walked)))

    def probes(self, number: int, key: str) -> tuple[Probe, ...]:
        """Return the probes of a layer: a large tile and a smaller one, or what there is."""
        layer = self._layers[number]
        tiles = self._tiles(number, _HALVINGS)
        count = len(next(iter(tiles.values())).start)
        demand, work = Demand(self._graph, tiles), Work.none([0] * count)
        walked = work.add(layer, demand, self._graph)
        loads = np.broadcast_to(load(walked), (count,))
        borders = np.zeros(count)
        for name, box in (*tiles.items(), *demand.boxes.items()):
            borders += box.sizes() * float(self._graph.itemsize(name))
        held = borders + work.peak + work.weights
        fit = np.flatnonzero((loads <= _LARGEST_LOAD) & (held <= _LARGEST_BYTES))
        if not fit.size:
            return ()
        sizes = [int(fit[0])]
        smaller = np.flatnonzero(loads <= _SMALLER * loads[sizes[0]])
        if smaller.size:
            sizes.append(int(smaller[0]))
        elif loads[-1] < loads[sizes[0]]:
            sizes.append(count - 1)
        made = []
        for tile in sizes:
            reads = {name: box.region(tile) for name, box in sorted(demand.boxes.items())}
            segment = build_segment(
                self._graph, walked[::-1], reads, list(tiles), tile, blocked=self._blocked
            )
            made.append(self._probe(key, segment, float(loads[tile])))
        return tuple(made)

    def _tiles(self, number: int, halvings: int) -> dict[str, Any]:
        """Return tiles of what a layer gives: all of it, a half, a quarter and so on."""
        made = {name for field in self._layers[number].fields for name in field.node.outputs}
        outputs = [name for name in self._live[number + 1] if name in made]
        regions: dict[str, list[Region]] = {name: [] for name in outputs}
        for halving in range(halvings):
            for name in outputs:
                regions[name].append(self._share(name, halving))
        rows = {name: boxes(found) for name, found in regions.items()}
        different = [
            n
            for n in range(halvings)
            if n == 0 or any(regions[name][n] != regions[name][n - 1] for name in outputs)
        ]
        return {name: type(b)(b.start[different], b.stop[different]) for name, b in rows.items()}

    def _share(self, name: str, halving: int) -> Region:
        """Return the first rows (or columns, or features) of a tensor."""
        shape, axes = self._graph.shape(name), self._axes.get(name, ())
        return tuple(
            (0, max(1, extent >> halving) if axes and axis == axes[0] else extent)
            for axis, extent in enumerate(shape)
        )

    def _probe(self, key: str, segment: Segment, amount: float) -> Probe:
        inputs = tuple(
            ArraySpec(name, self._graph.tensors[name].dtype, shape_of(region))
            for name, region in segment.reads
        )
        weights = tuple(ArraySpec(w.name, w.dtype, w.shape) for w in segment.weights)
        borders = _borders(segment)
        return Probe(key, segment.graph, inputs, weights, borders, amount)


def _borders(segment: Segment) -> tuple[str, ...]:
    """Return the nodes that only bring what arrives into the layout that it has in a block."""
    arriving = {name for name, _ in segment.reads}
    nodes = onnx.load_model_from_string(segment.graph).graph.node
    return tuple(
        node.name
        for node in nodes
        if node.input[0] in arriving
        and node.op_type in {"MaxPool", "Conv"}
        and node.name == f"{node.input[0]}.{node.op_type}"
    )


def model_rate(graph: Graph, layers: Mapping[str, LayerTime]) -> float | None:
    """Return the flop/s at which a device computes a model, or None if too little is known of it.

    Args:
        graph: the model.
        layers: the times of its layers on the device, by key.
    """
    prober = _Prober(lower(graph, 1))
    seconds = flops = total = 0.0
    for number, key in enumerate(prober.keys):
        work, amount = prober.whole(number)
        total += work
        if key is not None and key in layers:
            flops += work
            seconds += layers[key].fixed_s + layers[key].s_per_unit * amount
    return flops / seconds if flops > _ENOUGH * total and seconds > 0.0 else None


def figures(
    probed: Sequence[Probe], timings: Sequence[Timing | None]
) -> dict[str, LayerTime] | None:
    """Return the layers' times that timings of probes say, by key, or None if there are none.

    Args:
        probed: a model's probes.
        timings: what a device measured of each; None for what it did not reach.
    """
    reached = [(p, t) for p, t in zip(probed, timings, strict=False) if t is not None]
    if not reached:
        return None
    sizes: dict[str, list[tuple[float, float]]] = {}
    for probe, timing in reached:
        sizes.setdefault(probe.key, []).append((probe.load, timing.kernels_s))
    return {key: layer_time(points) for key, points in sizes.items()}


def layer_time(points: Sequence[tuple[float, float]]) -> LayerTime:
    """Return the time of a layer from (load, seconds) of one or two tiles.

    Neither part is negative: a fixed part that noise makes so is none, and where the larger tile
    took no longer than the smaller one, time is in proportion to the larger.
    """
    most, longest = max(points)
    least, shortest = min(points)
    slope = (longest - shortest) / (most - least) if most > least else 0.0
    if not 0.0 < slope * most <= longest:
        return LayerTime(0.0, max(longest / most, _LEAST_SLOPE))
    return LayerTime(longest - slope * most, slope)
