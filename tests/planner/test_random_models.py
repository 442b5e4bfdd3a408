"""Whatever is cut, wherever: the devices together give what one device gives."""

from __future__ import annotations

import tempfile
from pathlib import Path
from unittest.mock import patch

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.errors import ModelError
from agent.planner import compile_plan, model_file
from tests.planner.oracle import Builder, Fleet, compare, devices, load
from tests.planner.strategies import models

TOLERANCE = 1e-5
_SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


@settings(max_examples=60, deadline=None, suppress_health_check=_SLOW)
@given(
    model=models(),
    rates=st.lists(st.sampled_from([1.0, 1.5, 3.0]), min_size=1, max_size=4),
    cuts=st.lists(st.integers(1, 30), max_size=5),
    large=st.sampled_from([16, 4096]),
)
def test_a_model_cut_anywhere_gives_the_same(
    model: tuple[Builder, list[str]], rates: list[float], cuts: list[int], large: int
) -> None:
    builder, outputs = model
    # Few bytes make even small kernels travel as weights.
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.object(model_file, "LARGE_BYTES", large),
    ):
        path = builder.save(Path(folder, "model.onnx"), *outputs)
        layers = _layers(path)
        forced = sorted({cut for cut in cuts if cut < layers})
        error, _, plan = compare(path, devices(*rates), cuts=forced, layouts=len(rates))
    assert error <= TOLERANCE
    assert set(plan.cuts) == set(forced)


@settings(max_examples=30, deadline=None, suppress_health_check=_SLOW)
@given(model=models(), counts=st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_blocks_may_use_different_numbers_of_devices(
    model: tuple[Builder, list[str]], counts: list[int]
) -> None:
    builder, outputs = model
    with tempfile.TemporaryDirectory() as folder:
        path = builder.save(Path(folder, "model.onnx"), *outputs)
        layers = _layers(path)
        counts = counts[:layers]
        cuts = [layers * number // len(counts) for number in range(1, len(counts))]
        try:
            error, _, plan = compare(path, devices(4, 3, 2, 1), cuts=cuts, counts=counts)
        except ModelError as refused:
            assert "devices" in str(refused)  # noqa: PT017 - too few rows for so many
            return
    assert error <= TOLERANCE
    assert plan.counts == tuple(counts)


def _layers(path: Path) -> int:
    _, graph = load(path)
    plan = compile_plan(graph, devices(1), model_name="count")
    return sum(len(block.layers) for block in plan.blocks)


def test_a_fleet_answers_again_and_again(tmp_path: Path) -> None:
    b = Builder((1, 3, 12, 8))
    path = b.save(tmp_path / "model.onnx", b.conv(b.conv("x", 4), 4))
    model, graph = load(path)
    fleet = Fleet(compile_plan(graph, devices(1, 1), model_name="m", layouts=2), model)
    first = b.rng.standard_normal((1, 3, 12, 8)).astype("float32")
    once, other, again = fleet.run(first), fleet.run(first + 1), fleet.run(first)
    assert once[0].tobytes() == again[0].tobytes() != other[0].tobytes()
