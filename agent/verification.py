"""Compares a split model with the whole one: the same input through both, in this process."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any

import numpy as np

from agent.adapters.runtime import RuntimeOptions, run_whole
from agent.comparison import equal, relative_error
from agent.first_difference import FirstDifference, Locator
from agent.local import LocalFleet
from agent.packaging import package_model
from agent.planner import Device, compile_plan
from agent.planner.lowering import lowered_for
from agent.planner.strategies import RULES, compile_strategy

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from agent.planner import Graph, Plan
    from agent.planner.plan import Form, Undistributed
    from agent.wire.manifest import Halos, Strategy

__all__ = [
    "FirstDifference",
    "Verdict",
    "Verification",
    "equal",
    "relative_error",
    "run_plan",
    "seeded_input",
    "verify_model",
]

# Slow devices on a fast link: so that a plan is made which shares whatever can be shared.
FLOPS_PER_S = 1e9
LINK_BYTES_PER_S = 1e9
LINK_LATENCY_S = 2e-5
STEP_OVERHEAD_S = 2e-5

# What rounding explains, relative to the largest output.
BOUND, HALF_BOUND = 1e-5, 2e-3
_QUANTIZED = frozenset({"int8", "uint8"})


@dataclass(frozen=True)
class Verdict:
    """How a split model compares with the whole; errors relative to the largest output.

    `bound` is the error that the precision of the model's tensors explains; `quantized` tells
    whether it computes with integers of 8 bits, where a difference of rounding is a whole step.
    `first_difference` is known where it was asked for and the answers differ.
    """

    model: str
    devices: int
    layout: Form
    blocks: int
    identical: bool
    max_rel_error: float
    distributed_share: float
    undistributed: tuple[Undistributed, ...]
    bound: float
    quantized: bool
    first_difference: FirstDifference | None = None
    strategy: Strategy = "dpfp"
    halos: Halos = "plain"


class Verification:
    """A model and its answer on a single device, to compare any number of plans with.

    Args:
        path: the model.
        seed: of the random input.
        exact: whether to keep every bit, whatever its manifest says.
        threads: of an operator, on every device.
        halos: how halos travel; None for what its manifest says. Only "half" changes anything; then
            all that may be rounded is.

    Raises:
        ModelError: if the model cannot be served.
    """

    def __init__(
        self,
        path: Path,
        *,
        seed: int = 0,
        exact: bool = False,
        halos: Halos | None = None,
        threads: int = 1,
    ) -> None:
        self._packaged = package_model(path, exact=exact, halos=halos)
        graph = self._packaged.graph
        self._image = seeded_input(graph.shape(graph.input), graph.tensors[graph.input].dtype, seed)
        self._options = RuntimeOptions(threads=threads)
        outputs = run_whole(path, [self._image], self._options)
        self._whole = dict(zip(graph.outputs, outputs, strict=True))

    def verify(
        self,
        devices: int,
        layout: Form = "any",
        *,
        strategy: Strategy | None = None,
        locate: bool = False,
    ) -> Verdict:
        """Plan for `devices` equal devices in layouts of one form, run it and compare.

        Args:
            devices: how many.
            layout: rows, columns, grid or any, of strategy "dpfp".
            strategy: how it is split; None for what its manifest says.
            locate: also find the first difference, if there is one.
        """
        packaged, whole = self._packaged, self._whole
        strategy = strategy or packaged.manifest.strategy
        members = _members(devices, self._options.threads)
        halos = self._halos(strategy)
        plan = compile_strategy(
            strategy,
            packaged.graph,
            members,
            model_name=packaged.package.name,
            exact=packaged.manifest.exact,
            form=layout,
            halos=halos,
        )
        split = run_plan(plan, packaged.blobs, self._image, self._options)
        errors = {name: relative_error(whole[name], split[name]) for name in whole}
        differing = {n: e for n, e in errors.items() if not equal(whole[n], split[n])}
        first = None
        if locate and differing:
            first = self._locate(plan, members, strategy, differing)
        return Verdict(
            model=packaged.package.name,
            devices=devices,
            layout=layout,
            blocks=len(plan.blocks),
            identical=not differing,
            max_rel_error=max(errors.values()),
            distributed_share=round(plan.distributed_share, 4),
            undistributed=plan.undistributed,
            bound=bound_of(packaged.graph, halos),
            quantized=any(t.dtype in _QUANTIZED for t in packaged.graph.tensors.values()),
            first_difference=first,
            strategy=strategy,
            halos=halos,
        )

    def _halos(self, strategy: Strategy) -> Halos:
        """Return how halos are to travel: where nothing is rounded they are the same bytes."""
        manifest = self._packaged.manifest
        rounded = manifest.halos == "half" and strategy == "dpfp" and not manifest.exact
        return "half" if rounded else "plain"

    def _locate(
        self,
        plan: Plan,
        members: Sequence[Device],
        strategy: Strategy,
        differing: dict[str, float],
    ) -> FirstDifference:
        """Find the first difference of a plan of some strategy, which has some."""
        packaged, rules = self._packaged, RULES[strategy]
        exact = packaged.manifest.exact
        lowered = lowered_for(packaged.graph, members, exact=exact, whole=rules.whole_reductions)
        replan = partial(
            compile_plan,
            packaged.graph,
            members,
            model_name=packaged.package.name,
            exact=exact,
            overlap=strategy == "dpfp",
            rules=rules,
            halos=self._halos(strategy),
        )
        locator = Locator(packaged, lowered, self._image, members, self._options)
        return locator.locate(plan, replan, differing)


def verify_model(
    path: Path, devices: int, *, layout: Form = "any", seed: int = 0, locate: bool = False
) -> Verdict:
    """Plan the model at `path` for `devices` equal devices and compare on a seeded input.

    Raises:
        ModelError: if the model cannot be served.
    """
    return Verification(path, seed=seed).verify(devices, layout, locate=locate)


def bound_of(graph: Graph, halos: Halos = "plain") -> float:
    """Return the largest error, relative to the largest output, that rounding explains."""
    if halos == "half":
        return HALF_BOUND
    # Onnxruntime computes much of it in float32; its weights tell that the model is of 16 bits.
    kinds = {tensor.dtype for tensor in graph.tensors.values()}
    kinds |= {weight.dtype for weight in graph.weights.values()}
    return HALF_BOUND if "float16" in kinds else BOUND


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


def _members(devices: int, threads: int) -> list[Device]:
    return [
        Device(
            id=f"device-{number + 1}",
            flops_per_s=FLOPS_PER_S,
            link_bytes_per_s=LINK_BYTES_PER_S,
            link_latency_s=LINK_LATENCY_S,
            step_overhead_s=STEP_OVERHEAD_S,
            threads=threads,
            packing_bytes_per_s=inf,
        )
        for number in range(devices)
    ]
