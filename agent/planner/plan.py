"""Plans: what the planner is asked for, from a graph and devices to programs with their figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Literal

from agent.errors import ModelError
from agent.planner.dpfp import Allowed, Search
from agent.planner.layout import Shape, shapes_for, split_axes
from agent.planner.lowering import lower
from agent.planner.program import compile_programs

if TYPE_CHECKING:
    from agent.geometry import Region
    from agent.planner.cost import Device
    from agent.planner.dpfp import Choice
    from agent.planner.graph import Graph
    from agent.planner.program import Compiled, CompiledBlock
    from agent.planner.receptive_field import Field
    from agent.wire.program import Program

Form = Literal["any", "rows", "columns", "grid"]

# Seconds that a byte of weights costs; the last is dearer than any exchange.
_PRICES = (0.0, 1e-9, 1e-8, 1e-7, 1e-6, 1e-3)


@dataclass(frozen=True, slots=True)
class Block:
    """One block of a plan: its layers, the tile of each device, and what it is predicted to cost.

    `halo_bytes` are sent and `exchange_s` passes before it, `compute_s` is the slowest device's,
    `flops` counts what all devices compute, border rows that two of them compute included.
    """

    index: int
    layers: tuple[str, ...]
    devices: tuple[str, ...]
    tiles: dict[str, list[tuple[str, Region]]]
    halo_bytes: int
    compute_s: float
    exchange_s: float
    flops: float


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
    are the choice itself, as `compile_plan` takes them. `distributed_share` is the share of the
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
        exact: do without partial results, which are summed in another order than by one device.

    Raises:
        ModelError: if what is forced is impossible, or the devices' memory does not suffice.
    """
    if not devices:
        raise ModelError("a plan needs at least one device")
    lowered = lower(graph, 1 if exact else len(devices))
    usable = sorted(devices, key=lambda device: (-device.flops_per_s, device.id))
    while True:
        plan = _plan_within_memory(lowered, usable, model_name, Allowed(cuts, layouts), form)
        if plan is not None:
            return plan
        tightest = min(usable, key=lambda device: device.memory_limit_bytes or float("inf"))
        usable.remove(tightest)
        if not usable:
            raise ModelError(
                f"no layout of '{model_name}' fits into the devices' memory; "
                "add devices or raise their memory limits"
            )


def _plan_within_memory(
    graph: Graph,
    devices: Sequence[Device],
    model: str,
    allowed: Allowed,
    form: Form,
) -> Plan | None:
    """Return the fastest plan that fits, or None: weights get dearer as long as none does."""
    shapes = shapes_of_form(len(devices), form, wide=_is_wide(graph, allowed))
    search = Search(graph, devices, shapes)
    limits = {device.id: device.memory_limit_bytes for device in devices}
    for price in _PRICES:
        found = search.best(replace(allowed, seconds_per_byte=price))
        if found is None:
            return None
        compiled = compile_programs(search, found[0], model)
        if all(nbytes <= (limits[d] or nbytes) for d, nbytes in compiled.memory.items()):
            return _plan(search, found[0], compiled, found[1])
    return None


def _is_wide(graph: Graph, allowed: Allowed) -> bool:
    """Tell whether columns are worth a look: the input is wider than high, or they are forced."""
    forced = allowed.layouts if isinstance(allowed.layouts, Sequence) else ()
    if any(shape.rows == 1 < shape.columns for shape in forced):
        return True
    axes = split_axes(graph, ()).get(graph.input, ())
    extents = [graph.shape(graph.input)[axis] for axis in axes]
    return len(extents) > 1 and extents[1] > extents[0]


def _plan(search: Search, choices: Sequence[Choice], compiled: Compiled, seconds: float) -> Plan:
    programs = compiled.programs
    first = next(iter(programs.values()))
    return Plan(
        model=first.model,
        devices=tuple(programs),
        programs=programs,
        segments=compiled.segments,
        blocks=tuple(_block(search, n, block) for n, block in enumerate(compiled.blocks)),
        cuts=tuple(choice.stop for choice in choices[:-1]),
        layouts=tuple(choice.shape for choice in choices),
        predicted_s=seconds,
        distributed_share=_distributed_share(search, choices),
        undistributed=_undistributed(search, choices),
    )


def _block(search: Search, index: int, block: CompiledBlock) -> Block:
    choice = block.choice
    return Block(
        index=index,
        layers=tuple(layer.label for layer in search.layers[choice.start : choice.stop]),
        devices=tuple(block.tiles),
        tiles=block.tiles,
        halo_bytes=block.halo_bytes,
        compute_s=choice.compute_s,
        exchange_s=choice.exchange_s,
        flops=block.flops,
    )


def _can_be_shared(search: Search, field: Field) -> bool:
    axes = search.layouts.axes(field.node.outputs[0])
    return any(axis not in field.operator.fixed for axis in axes)


def _distributed_share(search: Search, choices: Sequence[Choice]) -> float:
    shared = total = 0.0
    for choice in choices:
        for layer in search.layers[choice.start : choice.stop]:
            for field in layer.fields:
                flops = field.operator.flops * prod(field.shape)
                total += flops
                if choice.shape.tiles > 1 and _can_be_shared(search, field):
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
                found.append(Undistributed(node.label, reason, seconds))
    return tuple(found)
