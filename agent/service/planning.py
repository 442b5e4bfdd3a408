"""Runs the planner for a coordinator: blobs in, blobs and a computed plan out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from agent.coordinator.events import ComputedPlan, Member
from agent.errors import ConfigError, HaloMQError, ModelError, WireError
from agent.planner import Device, compile_plan, read_graph
from agent.planner.calibration import figures as figures_of
from agent.planner.calibration import model_rate, probes
from agent.planner.profile import LayerTime
from agent.planner.strategies import compile_strategy
from agent.wire.calibration import Figures, Probes, decode_probes, encode_probes
from agent.wire.manifest import check_fits, decode_manifest
from agent.wire.program import blob_ref, encode_program

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agent.adapters.store import BlobStore
    from agent.planner import Graph, Plan
    from agent.planner.layout import Shape
    from agent.wire.manifest import Manifest
    from agent.wire.model import ModelPackage
    from agent.wire.program import BlobRef


@dataclass(frozen=True, slots=True)
class Chosen:
    """A plan as it can be weighed again: its cuts and layouts, and by what rates tiles were cut."""

    cuts: tuple[int, ...]
    layouts: tuple[Shape, ...]
    rates: Mapping[str, float]


def planner_device(member: Member) -> Device:
    """Return what the planner needs to know of a member of which only its capacity is known."""
    capacity = member.capacity
    return Device(
        id=member.device,
        flops_per_s=max(1e6, capacity.flops_per_s),
        memory_bytes_per_s=max(1e6, capacity.memory_bytes_per_s),
        link_bytes_per_s=max(1e3, capacity.link_bytes_per_s),
        link_latency_s=capacity.link_latency_s,
        step_overhead_s=capacity.step_overhead_s,
        memory_limit_bytes=capacity.memory_limit_bytes,
        threads=max(1, capacity.threads),
        packing_bytes_per_s=capacity.packing_bytes_per_s,
    )


def calibrated(device: Device, known: Figures, graph: Graph, store: BlobStore) -> Device:
    """Return a device as it is by its timings and its drift."""
    slower = known.factor
    found = None
    if known.timings is not None and known.timings.probes in store:
        try:
            probed = decode_probes(store.read(known.timings.probes)).probes
        except HaloMQError:  # damaged: the figures come back with the next calibration
            probed = ()
        found = figures_of(probed, known.timings.timings)
    if found is None:
        return replace(
            device,
            flops_per_s=device.flops_per_s / slower,
            memory_bytes_per_s=device.memory_bytes_per_s / slower,
            packing_bytes_per_s=device.packing_bytes_per_s / slower,
        )
    rate = model_rate(graph, found) or device.flops_per_s
    return replace(
        device,
        flops_per_s=rate / slower,
        memory_bytes_per_s=device.memory_bytes_per_s / slower,
        packing_bytes_per_s=device.packing_bytes_per_s / slower,
        profile={
            key: LayerTime(time.fixed_s * slower, time.s_per_unit * slower)
            for key, time in found.items()
        },
    )


def make_probes(package: ModelPackage, store: BlobStore) -> BlobRef:
    """Make the probes of a model, put them into `store` and return the blob.

    Raises:
        ModelError: if the model cannot be read.
        StoreError: if the store is full or lacks the model's graph.
    """
    graph = read_graph(bytes(store.read(package.graph.digest)), package.weights)
    content = encode_probes(Probes(probes(graph)))
    ref = blob_ref(content)
    store.put(ref.digest, content)
    return ref


def compute_plan(
    package: ModelPackage,
    members: tuple[Member, ...],
    store: BlobStore,
    figures: Mapping[str, Figures] | None = None,
    against: ComputedPlan | None = None,
) -> ComputedPlan:
    """Plan `package` for `members`; the plan's segments and programs are put into `store`.

    Args:
        package: the model.
        members: the devices.
        store: has the model's blobs, and the probes that figures are of.
        figures: what is known of some devices beyond their capacity.
        against: a plan of the same devices that is to be weighed against what is made.

    Raises:
        ModelError: if the model cannot be planned.
        StoreError: if the store is full or lacks the model's graph.
    """
    graph = read_graph(bytes(store.read(package.graph.digest)), package.weights)
    try:
        manifest = decode_manifest(bytes(store.read(package.manifest.digest)))
        outputs = [graph.shape(name) for name in graph.outputs]
        dtypes = [graph.tensors[name].dtype for name in graph.outputs]
        check_fits(manifest, graph.shape(graph.input), outputs, dtypes)
    except (WireError, ConfigError) as error:
        raise ModelError(f"the manifest does not fit: {error}") from error
    devices = [planner_device(member) for member in members]
    known = figures or {}
    devices = [
        calibrated(device, known[device.id], graph, store) if device.id in known else device
        for device in devices
    ]
    plan = compile_strategy(
        manifest.strategy,
        graph,
        devices,
        model_name=package.name,
        exact=manifest.exact,
        objective=manifest.objective,
        halos=manifest.halos,
    )
    for digest, content in plan.segments.items():
        store.put(digest, content)
    programs = {}
    for device, program in plan.programs.items():
        content = encode_program(program)
        programs[device] = blob_ref(content)
        store.put(programs[device].digest, content)
    weighed = None
    if against is not None and manifest.strategy == "dpfp":
        weighed = _weighed(against, graph, devices, manifest)
    return ComputedPlan(
        fleet=frozenset(member.device for member in members),
        devices=plan.devices,
        programs=programs,
        blobs={device: program.blobs() for device, program in plan.programs.items()},
        predicted_ms=plan.predicted_s * 1e3,
        notes=tuple(map(str, plan.undistributed)),
        choice=_chosen(plan, devices),
        instead_of_ms=weighed,
    )


def _chosen(plan: Plan, devices: Sequence[Device]) -> Chosen:
    return Chosen(plan.cuts, plan.layouts, {device.id: device.shared_by for device in devices})


def _weighed(
    against: ComputedPlan, graph: Graph, devices: Sequence[Device], manifest: Manifest
) -> float | None:
    """Return the ms that an earlier plan takes by today's figures, or None if it cannot be."""
    chosen = against.choice
    if not isinstance(chosen, Chosen) or chosen.rates.keys() != {device.id for device in devices}:
        return None
    as_then = [replace(device, share=chosen.rates[device.id]) for device in devices]
    try:
        plan = compile_plan(
            graph,
            as_then,
            model_name="weighed",
            cuts=chosen.cuts,
            layouts=chosen.layouts,
            exact=manifest.exact,
            halos=manifest.halos,
        )
    except ModelError:
        return None
    return plan.predicted_s * 1e3
