"""Strategies: how published systems split a CNN, written as plans of this one.

Agents execute programs and know nothing of strategies, so that all of them run in the same engine.
What was simplified is in docs/strategies.md. Rivals do without partial sums and, but for
`dpfp-paper`, use every device that they are given, as their papers do.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf
from types import MappingProxyType
from typing import TYPE_CHECKING

from agent.errors import ConfigError, ModelError
from agent.planner.cost import Device
from agent.planner.dpfp import FREE, Allowed, Rules, Search
from agent.planner.layers import layers_of
from agent.planner.layout import Shape
from agent.planner.lowering import lowered_for
from agent.planner.plan import compile_plan, ranked, shapes_of_form

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agent.planner.dpfp import Choice
    from agent.planner.graph import Graph
    from agent.planner.plan import Form, Plan
    from agent.wire.manifest import Halos, Objective, Strategy

# DeepThings fuses no more layers than these.
_FUSED = 16

_MODNN = Rules(relayed=True, whole_reductions=True)
_EQUAL_MAPS = Rules(equal=True, maps_only=True, whole_reductions=True)
_HALP = replace(_EQUAL_MAPS, borders_first=True)


RULES: Mapping[Strategy, Rules] = MappingProxyType(
    {
        "single": FREE,
        "modnn": _MODNN,
        "deepthings": _EQUAL_MAPS,
        "halp": _HALP,
        "dpfp-paper": _EQUAL_MAPS,
        "dpfp": FREE,
    }
)
"""What holds for every plan of a strategy, beside its cuts and layouts."""


@dataclass(frozen=True, slots=True)
class _Restriction:
    """What a strategy leaves `compile_plan` to choose."""

    cuts: Sequence[int] | None
    layouts: Sequence[Shape] | int
    form: Form


def compile_strategy(
    strategy: Strategy,
    graph: Graph,
    devices: Sequence[Device],
    *,
    model_name: str,
    exact: bool = False,
    objective: Objective = "latency",
    form: Form = "any",
    halos: Halos = "plain",
) -> Plan:
    """Compile the plan that a strategy makes for a model on these devices.

    Args:
        strategy: whose way of splitting it is to be; "dpfp" is HaloMQ's own.
        graph: the model.
        devices: the devices that may be used, in any order.
        model_name: the name under which the programs serve it.
        exact: split only what is then computed as one device does, to the bit.
        objective: what "dpfp" plans for; the others are of latency.
        form: which layouts "dpfp" has; the others have theirs.
        halos: how halos of "dpfp" may travel; those of the others are plain.

    Raises:
        ModelError: if the devices' memory does not suffice, or there is no device.
        ConfigError: if a rival is to have other layouts than its own.
    """
    if form != "any" and strategy != "dpfp":
        raise ConfigError(f"layout {form} is for strategy dpfp; {strategy} has its own layouts")
    if strategy == "dpfp" or not devices:
        return compile_plan(
            graph,
            devices,
            model_name=model_name,
            form=form,
            exact=exact,
            objective=objective,
            halos=halos,
        )
    if strategy == "single":
        fastest = ranked(devices)[:1]
        return compile_plan(graph, fastest, model_name=model_name)
    restrict = {
        "modnn": _modnn,
        "deepthings": _deepthings,
        "halp": _halp,
        "dpfp-paper": _dpfp_paper,
    }[strategy]
    found = restrict(lowered_for(graph, devices, exact=exact, whole=True), ranked(devices))
    return compile_plan(
        graph,
        devices,
        model_name=model_name,
        cuts=found.cuts,
        layouts=found.layouts,
        form=found.form,
        exact=exact,
        overlap=False,
        rules=RULES[strategy],
    )


def _modnn(graph: Graph, devices: Sequence[Device]) -> _Restriction:
    """Layer by layer, rows weighted by device, all through the first device (DATE 2017)."""
    return _Restriction(_every_cut(graph), len(devices), "rows")


def _halp(graph: Graph, devices: Sequence[Device]) -> _Restriction:
    """Layer by layer, equal rows, exchange hidden behind the interior (arXiv 2211.13778)."""
    return _Restriction(_every_cut(graph), len(devices), "rows")


def _every_cut(graph: Graph) -> range:
    return range(1, len(layers_of(graph)))


def _deepthings(graph: Graph, devices: Sequence[Device]) -> _Restriction:
    """Equal fused tiles of the first layers in a grid, the rest on the gateway (TCAD 2018).

    How many layers are fused its authors choose by hand; here it is what our cost model prefers.
    """
    shapes = shapes_of_form(len(devices), "grid")
    search = Search(graph, devices, shapes, overlap=False, rules=_EQUAL_MAPS)
    grids = [shape for shape in shapes[::-1] if shape.tiles > 1]
    depths = range(1, min(_FUSED, len(search.layers) - 1) + 1)
    for shape in grids:
        found = [(_fused(search, depth, shape), depth) for depth in depths]
        possible = [(seconds, depth) for seconds, depth in found if seconds < inf]
        if possible:
            _, depth = min(possible)
            return _Restriction((depth,), (shape, Shape(1, 1)), "grid")
    return _Restriction((), 1, "grid")


def _fused(search: Search, depth: int, shape: Shape) -> float:
    """Return the predicted seconds with `depth` fused layers; infinity where that cannot be."""
    try:
        found = search.best(Allowed((depth,), (shape, Shape(1, 1))))
    except ModelError:
        return inf
    return inf if found is None else found[1]


def _dpfp_paper(graph: Graph, devices: Sequence[Device]) -> _Restriction:
    """DPFP as published: equal rows, its own cost model, the best number of devices."""
    path = published_dpfp(graph, devices)
    cuts, layouts = [choice.stop for choice in path[:-1]], [choice.shape for choice in path]
    return _Restriction(cuts, layouts, "rows")


def published_dpfp(graph: Graph, devices: Sequence[Device]) -> tuple[Choice, ...]:
    """Return the blocks that DPFP chooses by the paper's own cost model.

    It knows arithmetic over a nominal rate and bytes over a data rate, nothing else.

    Args:
        graph: a model without partial results.
        devices: ranked.

    Raises:
        ModelError: if no number of devices has the memory.
    """
    known = [
        Device(
            device.id,
            device.flops_per_s,
            memory_bytes_per_s=inf,
            link_bytes_per_s=device.link_bytes_per_s,
            link_latency_s=0.0,
            step_overhead_s=0.0,
            memory_limit_bytes=device.memory_limit_bytes,
        )
        for device in devices
    ]
    shapes = shapes_of_form(len(known), "rows")
    search = Search(graph, known, shapes, broker_bytes_per_s=inf, overlap=False, rules=_EQUAL_MAPS)
    found = [search.best(Allowed(layouts=count + 1)) for count in range(len(known))]
    fitting = [plan for plan in found if plan is not None]
    if not fitting:
        raise ModelError("no number of devices has the memory for the paper's DPFP")
    return min(fitting, key=lambda plan: plan[1])[0]
