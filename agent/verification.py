"""Compares a split model with the whole one: the same input through both, in this process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from agent.adapters.runtime import RuntimeOptions, run_whole
from agent.local import LocalFleet
from agent.packaging import package_model
from agent.planner import Device, compile_plan

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from agent.planner import Plan

# Slow devices on a fast link: so that a plan is made which shares whatever can be shared.
FLOPS_PER_S = 1e9
LINK_BYTES_PER_S = 1e9
LINK_LATENCY_S = 2e-5
STEP_OVERHEAD_S = 2e-5


@dataclass(frozen=True)
class Verdict:
    """How a split model compares with the whole; errors relative to the largest output."""

    model: str
    devices: int
    blocks: int
    identical: bool
    max_rel_error: float
    distributed_share: float
    undistributed: tuple[str, ...]


def verify_model(path: Path, devices: int, *, seed: int = 0) -> Verdict:
    """Plan the model at `path` for `devices` equal devices and compare on a seeded input.

    Raises:
        ModelError: if the model cannot be served.
    """
    packaged = package_model(path)
    graph = packaged.graph
    members = [
        Device(
            id=f"device-{number + 1}",
            flops_per_s=FLOPS_PER_S,
            link_bytes_per_s=LINK_BYTES_PER_S,
            link_latency_s=LINK_LATENCY_S,
            step_overhead_s=STEP_OVERHEAD_S,
        )
        for number in range(devices)
    ]
    plan = compile_plan(graph, members, model_name=packaged.package.name)
    image = seeded_input(graph.shape(graph.input), graph.tensors[graph.input].dtype, seed)
    options = RuntimeOptions(threads=1)
    whole = dict(zip(graph.outputs, run_whole(path, [image], options), strict=True))
    split = run_plan(plan, packaged.blobs, image, options)
    return Verdict(
        model=packaged.package.name,
        devices=devices,
        blocks=len(plan.blocks),
        identical=all(equal(whole[name], split[name]) for name in whole),
        max_rel_error=max(relative_error(whole[name], split[name]) for name in whole),
        distributed_share=round(plan.distributed_share, 4),
        undistributed=tuple(map(str, plan.undistributed)),
    )


def run_plan(
    plan: Plan,
    blobs: Mapping[str, bytes | memoryview],
    image: NDArray[Any],
    options: RuntimeOptions,
) -> dict[str, NDArray[Any]]:
    """Run one request through a plan's programs in this process; outputs by name."""
    contents = {**blobs, **plan.segments}
    programs = {device: plan.programs[device] for device in plan.devices}
    return LocalFleet(programs, contents, options).infer(image)


def seeded_input(shape: tuple[int, ...], dtype: str, seed: int) -> NDArray[Any]:
    """Return a random input: like a normalised picture for floats, any value for integers."""
    random = np.random.default_rng(seed)
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return random.standard_normal(shape).astype(kind)
    if kind.kind == "b":
        return random.integers(0, 2, shape).astype(kind)
    limits = np.iinfo(kind)
    return random.integers(limits.min, limits.max, shape, kind, endpoint=True)


def equal(left: NDArray[Any], right: NDArray[Any]) -> bool:
    """Tell whether two arrays hold the same bytes."""
    return left.shape == right.shape and left.tobytes() == right.tobytes()


def relative_error(reference: NDArray[Any], other: NDArray[Any]) -> float:
    """Return the largest difference, relative to the largest absolute value of `reference`."""
    if reference.shape != other.shape:
        return float("inf")
    exact, near = reference.astype(np.float64), other.astype(np.float64)
    # Equal infinities and NaN at the same place are no difference.
    same = (exact == near) | (np.isnan(exact) & np.isnan(near))
    difference = np.where(same, 0.0, np.abs(exact - near))
    scale = float(np.max(np.abs(exact), initial=0.0, where=np.isfinite(exact)))
    largest = float(np.max(difference, initial=0.0))
    if np.isnan(largest):
        return float("inf")
    return largest / scale if scale > 0 else largest
