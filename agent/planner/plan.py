"""Plans: what the planner is asked for, from a graph and devices to programs with their figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Literal, NamedTuple

from agent.errors import ModelError
from agent.planner.dpfp import FREE, Allowed, Choice, Search
from agent.planner.layout import Shape, shapes_for, split_axes
from agent.planner.lowering import lowered_for
from agent.planner.operators.entry import UNEVEN
from agent.planner.packing import Packing
from agent.planner.program import compile_programs
from agent.planner.schedule import codings, halo_bytes, make_schedule
from agent.planner.simulate import simulate

if TYPE_CHECKING:
    from agent.geometry import Region
    from agent.planner.cost import Device
    from agent.planner.dpfp import Rules
    from agent.planner.graph import Graph
    from agent.planner.program import Compiled
    from agent.planner.receptive_field import Field
    from agent.planner.schedule import Schedule
    from agent.planner.simulate import Simulated
    from agent.spans import Span
    from agent.wire.manifest import Halos, Objective
    from agent.wire.program import Coding, Program

Form = Literal["any", "rows", "columns", "grid"]

# What is in flight where throughput counts, and how much waiting then costs: other requests' work
# fills it.
_IN_FLIGHT = 4
_WAITS: dict[Objective, float] = {"latency": 1.0, "throughput": 0.1}

# Seconds that a byte of weights costs; the last is dearer than any exchange.
_PRICES = (0.0, 1e-9, 1e-8, 1e-7, 1e-6, 1e-3)


@dataclass(frozen=True, slots=True)
class Block:
    """One block of a plan: its layers, the tile of each device, and what it is predicted to cost.

    `halo_bytes` are sent before it and `exchange_s` is what that adds, `compute_s` is the slowest
    device's, `flops` counts what all devices compute, border rows that two of them compute
    included. `overlapped` tells whether borders are apart from the interior, so that computing
    hides some of the exchange, `codings` how halos travel.
    """

    index: int
    layers: tuple[str, ...]
    devices: tuple[str, ...]
    tiles: dict[str, list[tuple[str, Region]]]
    halo_bytes: int
    compute_s: float
    exchange_s: float
    flops: float
    overlapped: bool
    codings: frozenset[Coding]


@dataclass(frozen=True, slots=True)
class Undistributed:
    """An operator that one device computes for all: its label, why, and what that costs."""

    label: str
    reason: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.label} {self.reason} ({self.seconds * 1e3:.2g} ms on one device)"


@dataclass(frozen=True, slots=True)
class Plan:
    """One model on one set of devices.

    `devices` are those that take part, fastest first; the first one answers. `cuts` and `layouts`
    are the choice itself, as `compile_plan` takes them. `predicted_s` is the time of a request that
    is alone, and `spans` what devices do meanwhile. `distributed_share` is the share of the
    arithmetic that several devices do together. `undistributed` are the operators that are not.
    """

    model: str
    devices: tuple[str, ...]
    programs: dict[str, Program]
    segments: dict[str, bytes]
    blocks: tuple[Block, ...]
    cuts: tuple[int, ...]
    layouts: tuple[Shape, ...]
    predicted_s: float
    spans: tuple[Span, ...]
    distributed_share: float
    undistributed: tuple[Undistributed, ...]


def shapes_of_form(devices: int, form: Form, *, wide: bool = True) -> tuple[Shape, ...]:
    """Return the layouts of one form for up to `devices` devices.

    "any" leaves columns out unless the picture is `wide`: rows have the shorter halos otherwise,
    and lie together in memory.
    """
    shapes = shapes_for(devices)
    if form == "any":
        return tuple(s for s in shapes if wide or s.columns == 1 or s.rows > 1)
    if form == "rows":
        return tuple(shape for shape in shapes if shape.columns == 1)
    if form == "columns":
        return tuple(shape for shape in shapes if shape.rows == 1)
    squarest = {
        shape.tiles: shape
        for shape in sorted(shapes, key=lambda shape: (shape.rows - shape.columns) ** 2)[::-1]
    }
    return tuple(squarest[count] for count in sorted(squarest))


def compile_plan(
    graph: Graph,
    devices: Sequence[Device],
    *,
    model_name: str,
    cuts: Sequence[int] | None = None,
    layouts: Sequence[Shape] | int | None = None,
    form: Form = "any",
    exact: bool = False,
    overlap: bool = True,
    objective: Objective = "latency",
    broker_bytes_per_s: float | None = None,
    rules: Rules = FREE,
    halos: Halos = "plain",
) -> Plan:
    """Find the fastest plan and compile it to programs.

    Args:
        graph: the model.
        devices: the devices that may be used, in any order.
        model_name: the name under which the programs serve it.
        cuts: forced cuts, each the number of layers before it; None lets the planner choose.
        layouts: forced layouts, one for each block between `cuts`; or one number of devices that
            every block uses as far as its tensors can be split; None lets the planner choose.
        form: which layouts there are: rows, columns, grids (as square as can be), or any.
        exact: split only what is then computed as one device does, to the bit.
        overlap: whether devices may compute while halos travel.
        objective: the time of a request that is alone, or that of several in flight.
        broker_bytes_per_s: rate of the broker's own link in each direction; None for the fastest
            device's.
        rules: what else the plan must keep to.
        halos: how halos may travel, where that pays.

    Raises:
        ModelError: if what is forced is impossible, or the devices' memory does not suffice.
    """
    if not devices:
        raise ModelError("a plan needs at least one device")
    lowered = lowered_for(graph, devices, exact=exact, whole=rules.whole_reductions)
    usable = ranked(devices)
    allowed_halos: Halos = "lossless" if exact and halos == "half" else halos
    allowed = Allowed(cuts, layouts)
    while True:
        shapes = shapes_of_form(len(usable), form, wide=_is_wide(lowered, allowed))
        broker = broker_bytes_per_s or max(device.link_bytes_per_s for device in usable)
        search = Search(
            lowered,
            usable,
            shapes,
            broker_bytes_per_s=broker,
            overlap=overlap,
            waits=_WAITS[objective],
            rules=rules,
            packing=(packing := Packing(lowered, usable, broker, allowed_halos)),
        )
        requests = 1 if objective == "latency" else _IN_FLIGHT
        plan = _Planner(search, model_name, broker, requests, packing).plan(allowed)
        if plan is not None:
            return plan
        tightest = min(usable, key=lambda device: device.memory_limit_bytes or float("inf"))
        usable.remove(tightest)
        if not usable:
            raise ModelError(
                f"no layout of '{model_name}' fits into the devices' memory; "
                "add devices or raise their memory limits"
            )


def ranked(devices: Sequence[Device]) -> list[Device]:
    """Return devices in the order in which plans use them: the fastest one first."""
    return sorted(devices, key=lambda device: (-device.shared_by, device.id))


class _Candidate(NamedTuple):
    """A choice of blocks, with what the simulation says of it: alone, and as many as wanted."""

    choices: tuple[Choice, ...]
    schedule: Schedule
    alone: Simulated
    seconds: float


class _Planner:
    """Finds and compiles plans on some devices."""

    def __init__(
        self, search: Search, model: str, broker: float, requests: int, packing: Packing
    ) -> None:
        self._search, self._model = search, model
        self._broker, self._requests = broker, requests
        self._packing = packing

    def plan(self, allowed: Allowed) -> Plan | None:
        """Return the fastest plan that fits, or None: weights get dearer as long as none does."""
        for price in _PRICES:
            found = self._search.best(replace(allowed, seconds_per_byte=price))
            if found is None:
                return None
            free = allowed.cuts is None and allowed.layouts is None
            for candidate in self._ranked(found[0], single=free):
                compiled = compile_programs(
                    self._search, candidate.schedule, candidate.alone.starts, self._model
                )
                if self._fits(compiled):
                    return _plan(self._search, candidate, compiled)
        return None

    def _ranked(self, found: tuple[Choice, ...], *, single: bool) -> list[_Candidate]:
        """Return what may be the fastest, the fastest first.

        Args:
            found: the choice of the search, whose cost model is coarser than the simulation.
            single: whether one device alone is a candidate.
        """
        search = self._search
        if search.rules.borders_first:
            return [self._candidate(tuple(replace(choice, overlapped=True) for choice in found))]
        options = [found]
        if any(choice.overlapped for choice in found):
            options.append(tuple(replace(choice, overlapped=False) for choice in found))
        if single and search.layouts.shapes[0].tiles == 1 < max(c.shape.tiles for c in found):
            options.append((Choice(0, len(search.layers), 0, search.layouts.shapes[0]),))
        candidates = [self._candidate(option) for option in options]
        if self._packing.possible:
            candidates += [self._candidate(option, self._packing) for option in options]
        return sorted(candidates, key=lambda candidate: candidate.seconds)

    def _candidate(self, choices: tuple[Choice, ...], packing: Packing | None = None) -> _Candidate:
        schedule = make_schedule(self._search, choices, packing)
        alone = self._simulate(schedule, 1)
        several = alone if self._requests == 1 else self._simulate(schedule, self._requests)
        return _Candidate(choices, schedule, alone, several.seconds)

    def _simulate(self, schedule: Schedule, requests: int) -> Simulated:
        devices = self._search.layouts.devices
        return simulate(schedule, self._search.graph, devices, self._broker, requests)

    def _fits(self, compiled: Compiled) -> bool:
        limits = {device.id: device.memory_limit_bytes for device in self._search.layouts.devices}
        return all(nbytes <= (limits[d] or nbytes) for d, nbytes in compiled.memory.items())


def _is_wide(graph: Graph, allowed: Allowed) -> bool:
    """Tell whether columns are worth a look: the input is wider than high, or they are forced."""
    forced = allowed.layouts if isinstance(allowed.layouts, Sequence) else ()
    if any(shape.rows == 1 < shape.columns for shape in forced):
        return True
    axes = split_axes(graph, ()).get(graph.input, ())
    extents = [graph.shape(graph.input)[axis] for axis in axes]
    return len(extents) > 1 and extents[1] > extents[0]


def _plan(search: Search, candidate: _Candidate, compiled: Compiled) -> Plan:
    choices, programs = candidate.choices, compiled.programs
    return Plan(
        model=next(iter(programs.values())).model,
        devices=tuple(programs),
        programs=programs,
        segments=compiled.segments,
        blocks=_blocks(search, candidate),
        cuts=tuple(choice.stop for choice in choices[:-1]),
        layouts=tuple(choice.shape for choice in choices),
        predicted_s=candidate.alone.seconds,
        spans=candidate.alone.spans,
        distributed_share=_distributed_share(search, choices),
        undistributed=_undistributed(search, choices),
    )


def _blocks(search: Search, candidate: _Candidate) -> tuple[Block, ...]:
    schedule, devices = candidate.schedule, search.layouts.devices
    sent, travelling = halo_bytes(schedule), codings(schedule)
    busy = [[0.0] * schedule.devices for _ in candidate.choices]
    for task in schedule.tasks:
        busy[task.block][task.device] += task.seconds
    divided = {task.block for task in schedule.tasks if task.parted}
    return tuple(
        Block(
            index=index,
            layers=tuple(layer.label for layer in search.layers[choice.start : choice.stop]),
            devices=tuple(devices[rank].id for rank in schedule.tiles[index]),
            tiles={devices[rank].id: tile for rank, tile in schedule.tiles[index].items()},
            halo_bytes=sent[index],
            compute_s=max(busy[index]),
            exchange_s=choice.exchange_s,
            flops=schedule.flops[index],
            overlapped=index in divided,
            codings=travelling[index],
        )
        for index, choice in enumerate(candidate.choices)
    )


def _can_be_shared(search: Search, field: Field, tiles: slice = slice(None)) -> bool:
    """Tell whether devices can have parts of a node each, in the layouts of some tiles."""
    name = field.node.outputs[0]
    if all(axis in field.operator.fixed for axis in search.layouts.axes(name)):
        return False
    if field.operator.keeps is None:
        return True
    computed = field.computed(search.layouts.tiles(name).rows(tiles))
    return bool((computed.stop - computed.start != field.shape).any())


def _distributed_share(search: Search, choices: Sequence[Choice]) -> float:
    shared = total = 0.0
    for choice in choices:
        numbers = search.layouts.tiles_of(choice.layout)
        tiles = slice(numbers.start, numbers.stop)
        for layer in search.layers[choice.start : choice.stop]:
            for field in layer.fields:
                flops = field.operator.flops * prod(field.shape)
                total += flops
                if choice.shape.tiles > 1 and _can_be_shared(search, field, tiles):
                    shared += flops
    return shared / total if total else 0.0


def _undistributed(search: Search, choices: Sequence[Choice]) -> tuple[Undistributed, ...]:
    """Name what one device computes though several could use their time better."""
    fastest = search.layouts.devices[0]
    found = []
    for choice in choices:
        for layer in search.layers[choice.start : choice.stop]:
            for field in layer.fields:
                node, operator = field.node, field.operator
                if operator.free or node.origin or _can_be_shared(search, field):
                    continue
                elements = prod(field.shape)
                moved = elements * search.graph.itemsize(node.outputs[0])
                seconds = operator.flops * elements / fastest.flops_per_s
                if operator.memory_bound:
                    seconds += 2 * moved / fastest.memory_bytes_per_s
                split = search.layouts.axes(node.outputs[0])
                reason = operator.reason if split else "has nothing to split"
                if split and not set(split) <= set(operator.fixed):
                    reason = UNEVEN
                found.append(Undistributed(node.label, reason, seconds))
    return tuple(found)
