"""Plans: what the planner is asked for, from a graph and devices to programs with their figures."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from agent.errors import ModelError
from agent.planner.dpfp import Allowed, Search
from agent.planner.program import compile_programs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.geometry import Region
    from agent.planner.cost import Device
    from agent.planner.dpfp import Choice
    from agent.planner.graph import Graph
    from agent.planner.program import Compiled, CompiledBlock
    from agent.planner.receptive_field import Field
    from agent.wire.program import Program

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
class Plan:
    """One model on one set of devices.

    `devices` are those that take part, fastest first; the first one answers. `cuts` and `counts`
    are the choice itself, as `compile_plan` takes them. `distributed_share` is the share of the
    arithmetic that several devices do together. `undistributed` names what cannot be, and why.
    """

    model: str
    devices: tuple[str, ...]
    programs: dict[str, Program]
    segments: dict[str, bytes]
    blocks: tuple[Block, ...]
    cuts: tuple[int, ...]
    counts: tuple[int, ...]
    predicted_s: float
    distributed_share: float
    undistributed: tuple[str, ...]


def compile_plan(
    graph: Graph,
    devices: Sequence[Device],
    *,
    model_name: str,
    cuts: Sequence[int] | None = None,
    counts: Sequence[int] | int | None = None,
) -> Plan:
    """Find the fastest plan and compile it to programs.

    Args:
        graph: the model.
        devices: the devices that may be used, in any order.
        model_name: the name under which the programs serve it.
        cuts: forced cuts, each the number of layers before it; None lets the planner choose.
        counts: forced numbers of devices, one for each block between `cuts`; or one number that
            every block uses as far as its tensors have rows enough; None lets the planner choose.

    Raises:
        ModelError: if what is forced is impossible, or the devices' memory does not suffice.
    """
    if not devices:
        raise ModelError("a plan needs at least one device")
    usable = sorted(devices, key=lambda device: (-device.flops_per_s, device.id))
    while True:
        plan = _plan_within_memory(graph, usable, model_name, cuts, counts)
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
    cuts: Sequence[int] | None,
    counts: Sequence[int] | int | None,
) -> Plan | None:
    """Return the fastest plan that fits, or None: weights get dearer as long as none does."""
    search = Search(graph, devices)
    limits = {device.id: device.memory_limit_bytes for device in devices}
    for price in _PRICES:
        found = search.best(Allowed(cuts, counts, price))
        if found is None:
            return None
        compiled = compile_programs(search, found[0], model)
        if all(nbytes <= (limits[d] or nbytes) for d, nbytes in compiled.memory.items()):
            return _plan(search, found[0], compiled, found[1])
    return None


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
        counts=tuple(choice.count for choice in choices),
        predicted_s=seconds,
        distributed_share=_distributed_share(search, choices),
        undistributed=_undistributed(search),
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
    axis = search.layouts.axis(field.node.outputs[0])
    return axis is not None and axis not in field.operator.fixed


def _distributed_share(search: Search, choices: Sequence[Choice]) -> float:
    shared = total = 0.0
    for choice in choices:
        for layer in search.layers[choice.start : choice.stop]:
            for field in layer.fields:
                flops = field.operator.flops * prod(field.shape)
                total += flops
                if choice.count > 1 and _can_be_shared(search, field):
                    shared += flops
    return shared / total if total else 0.0


def _undistributed(search: Search) -> tuple[str, ...]:
    return tuple(
        f"{field.node.label} {field.operator.reason or 'has nothing to split'}"
        for layer in search.layers
        for field in layer.fields
        if not field.operator.reshapes and not _can_be_shared(search, field)
    )
