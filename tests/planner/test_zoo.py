"""The zoo's small models: whatever the number of devices and the form, the answer is the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from agent.adapters.runtime import run_whole
from agent.planner import Device, check, compile_plan
from agent.verification import relative_error, seeded_input
from models.zoo import ZOO, build
from tests.planner.oracle import OPTIONS, Fleet, load

if TYPE_CHECKING:
    from agent.planner.plan import Form

# Exact but for rounding; half precision rounds at each Cast, and integers not at all.
_BOUNDS = {"fp16": 2e-3, "int8": 0.0}
_BOUND = 1e-5
_FLEETS: tuple[tuple[int, Form], ...] = (
    (2, "rows"), (4, "grid"), (3, "rows"), (8, "grid"), (4, "rows"), (2, "grid"), (8, "rows"),
    (3, "grid"),
)  # fmt: skip
# Every model at two fleets, every fleet at a quarter of the models.
_CASES = [
    (name, *_FLEETS[(number + turn * 3) % len(_FLEETS)])
    for number, name in enumerate(ZOO)
    for turn in range(2)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tmp_path_factory.mktemp("zoo")


@pytest.mark.parametrize(("name", "count", "form"), _CASES)
def test_a_published_model_is_split_rightly(name: str, count: int, form: Form, folder: Any) -> None:
    path = folder / f"{name}.onnx"
    if not path.exists():
        build(name, folder, small=True)
    model, graph = load(path)
    # Slow devices on a fast link share whatever can be shared.
    fleet = [
        Device(f"d{n}", 1e7 * (1 + n % 2), 1e8, 1e9, link_latency_s=1e-5, step_overhead_s=1e-5)
        for n in range(count)
    ]
    plan = compile_plan(graph, fleet, model_name=model.name, form=form)
    check(plan.programs)
    tensor = graph.tensors[graph.input]
    value = seeded_input(tensor.shape, tensor.dtype, 1)
    expected, found = run_whole(path, [value], OPTIONS), Fleet(plan, model).run(value)
    error = max(relative_error(a, b) for a, b in zip(expected, found, strict=True))
    assert error <= _BOUNDS.get(name.rpartition("_")[2], _BOUND)
    assert plan.distributed_share > 0.5
    assert len(plan.devices) > 1
    if form == "rows":
        assert all(shape.columns == 1 for shape in plan.layouts)
    assert all(np.isfinite(array).all() for array in expected)
