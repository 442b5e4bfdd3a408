"""onnxruntime's adapter: external weights, clear errors, and the whole model for comparison."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from agent.adapters.runtime import RuntimeOptions, Segment, check_providers, run_whole
from agent.errors import ConfigError, InputError, ModelError
from agent.planner import compile_plan
from tests.planner.oracle import OPTIONS, devices, load, vgg

if TYPE_CHECKING:
    from pathlib import Path

    from agent.planner import ImportedModel


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vgg(tmp_path_factory.mktemp("runtime") / "vgg.onnx")


def _whole(path: Path) -> tuple[bytes, ImportedModel]:
    model, graph = load(path)
    plan = compile_plan(graph, devices(1), model_name="m", layouts=1)
    (content,) = plan.segments.values()
    return content, model


@pytest.mark.parametrize("threads", [0, 1, 2])
def test_a_segment_reads_mapped_weights_in_place(path: Path, threads: int) -> None:
    content, model = _whole(path)
    weights = model.arrays()
    assert all(isinstance(array, np.memmap) for array in weights.values())
    value = np.random.default_rng(3).standard_normal((1, 3, 64, 64)).astype(np.float32)
    segment = Segment(content, weights, RuntimeOptions(threads=threads))
    (expected,) = run_whole(path, [value], OPTIONS)
    for _ in range(2):
        (found,) = segment.run([value])
        assert np.abs(found - expected).max() <= 1e-6


def test_a_segment_without_its_weights_is_refused(path: Path) -> None:
    content, model = _whole(path)
    weights = model.arrays()
    del weights[next(iter(weights))]
    with pytest.raises(ModelError, match="onnxruntime cannot load this") as refused:
        Segment(content, weights, OPTIONS)
    assert "\n" not in str(refused.value)


def test_a_damaged_segment_is_refused() -> None:
    with pytest.raises(ModelError, match="cannot load"):
        Segment(b"no graph", {}, OPTIONS)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], "takes 1 inputs, not 0"),
        ([np.zeros((1, 3, 64, 63), np.float32)], "cannot run"),
        ([np.zeros((1, 3, 64, 64), np.float64)], "cannot run"),
    ],
)
def test_wrong_inputs_are_refused(path: Path, inputs: list[np.ndarray], message: str) -> None:
    content, model = _whole(path)
    with pytest.raises(InputError, match=message):
        Segment(content, model.arrays(), OPTIONS).run(inputs)


def test_a_whole_model_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot load"):
        run_whole(tmp_path / "none.onnx", [], OPTIONS)


def test_a_provider_that_is_not_here_is_named() -> None:
    with pytest.raises(ConfigError, match=r"NoSuchProvider here; it has .*CPUExecutionProvider"):
        check_providers(RuntimeOptions(providers=("NoSuchProvider",)))
