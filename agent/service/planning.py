"""Runs the planner for a coordinator: blobs in, blobs and a computed plan out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.coordinator.events import ComputedPlan, Member
from agent.errors import ConfigError, ModelError, WireError
from agent.planner import Device, read_graph
from agent.planner.strategies import compile_strategy
from agent.wire.manifest import check_fits, decode_manifest
from agent.wire.program import blob_ref, encode_program

if TYPE_CHECKING:
    from agent.adapters.store import BlobStore
    from agent.wire.model import ModelPackage


def planner_device(member: Member) -> Device:
    """Return what the planner needs to know of a member."""
    capacity = member.capacity
    return Device(
        id=member.device,
        flops_per_s=max(1e6, capacity.flops_per_s),
        memory_bytes_per_s=max(1e6, capacity.memory_bytes_per_s),
        link_bytes_per_s=max(1e3, capacity.link_bytes_per_s),
        link_latency_s=capacity.link_latency_s,
        memory_limit_bytes=capacity.memory_limit_bytes,
    )


def compute_plan(
    package: ModelPackage, members: tuple[Member, ...], store: BlobStore
) -> ComputedPlan:
    """Plan `package` for `members`; the plan's segments and programs are put into `store`.

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
    plan = compile_strategy(
        manifest.strategy, graph, devices, model_name=package.name, exact=manifest.exact
    )
    for digest, content in plan.segments.items():
        store.put(digest, content)
    programs = {}
    for device, program in plan.programs.items():
        content = encode_program(program)
        programs[device] = blob_ref(content)
        store.put(programs[device].digest, content)
    return ComputedPlan(
        fleet=frozenset(member.device for member in members),
        devices=plan.devices,
        programs=programs,
        blobs={device: program.blobs() for device, program in plan.programs.items()},
        predicted_ms=plan.predicted_s * 1e3,
        notes=tuple(map(str, plan.undistributed)),
    )
