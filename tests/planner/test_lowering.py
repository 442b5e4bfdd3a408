"""What is taken apart so that it can be split, and when it is put together again."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import onnx
import pytest

from agent.planner import compile_plan
from agent.planner.layout import Shape
from agent.planner.lowering import lower
from tests.planner.oracle import compare, devices, load
from tests.planner.sketch import Sketch

if TYPE_CHECKING:
    from pathlib import Path

    from agent.planner import Graph

_SPACE = (2, 3)
_REDUCTIONS = (
    "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceSumSquare", "ReduceL2",
)  # fmt: skip


def _sketch(opset: int = 17) -> Sketch:
    return Sketch(Random(3), (1, 6, 13, 10), opset)


def _operators(graph: Graph) -> list[str]:
    return [node.op for node in graph.nodes]


@pytest.mark.parametrize("opset", [9, 12, 13, 17, 18, 21])
@pytest.mark.parametrize("op", _REDUCTIONS)
def test_a_reduction_of_what_is_split_is_done_in_two_steps(
    op: str, opset: int, tmp_path: Path
) -> None:
    s = _sketch(opset)
    kept = s.reduce(op, s.add("Tanh", "x"), _SPACE, 1)
    dropped = s.reduce(op, s.add("Sigmoid", "x"), (-1, -2), 0)
    joined = s.add("Add", dropped, s.add("Flatten", kept, axis=1))
    path = s.save(tmp_path / "m.onnx", s.add("Mul", "x", kept), joined)
    lowered = lower(load(path)[1], 4)
    assert _operators(lowered).count("Partial") == _operators(lowered).count("Combined") == 2
    assert op not in _operators(lowered)
    for layouts in ([Shape(4, 1)] * 3, [Shape(2, 2), Shape(1, 3), Shape(3, 1)]):
        error, _, _ = compare(path, devices(3, 1, 1, 1), cuts=[2, 4], layouts=layouts)
        assert error <= 1e-5


@pytest.mark.parametrize("op", ["GlobalAveragePool", "GlobalMaxPool", "InstanceNormalization"])
def test_one_device_runs_the_operator_itself(op: str, tmp_path: Path) -> None:
    s = _sketch()
    parameters = [s.positive(6), s.weight(6)] if op == "InstanceNormalization" else []
    path = s.save(tmp_path / "m.onnx", s.add("Relu", s.add(op, "x", *parameters)))
    _, graph = load(path)
    plan = compile_plan(graph, devices(1, 1, 1), model_name="m", cuts=[], layouts=[Shape(1, 1)])
    (content,) = plan.segments.values()
    nodes = onnx.load_model_from_string(content).graph.node
    assert [node.op_type for node in nodes] == [op, "Relu"]
    _, identical, _ = compare(path, devices(1, 1, 1), cuts=[], layouts=[Shape(1, 1)])
    assert identical


def test_an_operator_that_is_put_together_may_give_some_channels_only(tmp_path: Path) -> None:
    """The whole of a pooling is in a block, but each device has a share of its channels."""
    s = _sketch()
    pooled = s.add("GlobalAveragePool", s.add("Tanh", "x"))
    gate = s.add("Sigmoid", pooled)
    path = s.save(tmp_path / "m.onnx", gate, s.add("Mul", "x", gate))
    for shape in (Shape(3, 1), Shape(1, 2), Shape(2, 2)):
        for cuts in ([], [1], [1, 2]):
            layouts = [Shape(2, 1)] * len(cuts) + [shape]
            error, _, _ = compare(path, devices(2, 1, 1, 1), cuts=cuts, layouts=layouts)
            assert error <= 1e-6


def test_a_reduction_at_the_end_stays_as_it_is(tmp_path: Path) -> None:
    s = _sketch()
    path = s.save(tmp_path / "m.onnx", s.add("Sigmoid", s.add("GlobalAveragePool", "x")))
    assert _operators(lower(load(path)[1], 4)) == ["GlobalAveragePool", "Sigmoid"]


def test_a_reduction_over_channels_stays_as_it_is(tmp_path: Path) -> None:
    s = _sketch()
    y = s.reduce("ReduceMean", "x", (1,), 1)
    lowered = lower(load(s.save(tmp_path / "m.onnx", y))[1], 4)
    assert _operators(lowered) == ["ReduceMean"]


def test_a_reduction_over_channels_stays_as_it_is_behind_a_normalization_of_groups(
    tmp_path: Path,
) -> None:
    """As it is exported, a list of pixels hides rows and columns until it is taken apart."""
    s = _sketch()
    y = s.add("Reshape", "x", s.ints(0, 1, -1))
    y = s.add("InstanceNormalization", y, s.positive(1), s.weight(1), epsilon=0.1)
    y = s.add("Reshape", y, s.ints(*s.shape("x")))
    path = s.save(tmp_path / "m.onnx", s.add("Add", y, s.reduce("ReduceMean", y, (1,), 1)))
    assert "ReduceMean" in _operators(lower(load(path)[1], 4))
    error, _, _ = compare(path, devices(1, 1, 1, 1), cuts=[1], layouts=[Shape(4, 1), Shape(2, 2)])
    assert error <= 1e-6


def test_rows_and_columns_are_reduced_in_two_steps_behind_a_normalization(tmp_path: Path) -> None:
    s = _sketch()
    y = s.add("Reshape", "x", s.ints(0, 1, -1))
    y = s.add("InstanceNormalization", y, s.positive(1), s.weight(1), epsilon=0.1)
    y = s.add("Reshape", y, s.ints(*s.shape("x")))
    path = s.save(tmp_path / "m.onnx", s.add("Mul", y, s.add("GlobalAveragePool", y)))
    assert "GlobalAveragePool" not in _operators(lower(load(path)[1], 4))
    error, _, _ = compare(path, devices(1, 1, 1, 1), layouts=4)
    assert error <= 1e-6


def test_one_device_needs_nothing_taken_apart(tmp_path: Path) -> None:
    s = _sketch()
    path = s.save(tmp_path / "m.onnx", s.add("GlobalAveragePool", "x"))
    assert _operators(lower(load(path)[1], 1)) == ["GlobalAveragePool"]


@pytest.mark.parametrize("opset", [9, 11, 13, 18])
@pytest.mark.parametrize("axis", [1, 2, 3])
def test_a_split_becomes_slices(axis: int, opset: int, tmp_path: Path) -> None:
    s = _sketch(opset)
    extent = s.shape("x")[axis]
    first, unused, last = s.split("x", axis, [2, 3, extent - 5])
    outputs = [s.add("Relu", first), s.add("Tanh", last)]
    path = s.save(tmp_path / "m.onnx", *outputs)
    lowered = lower(load(path)[1], 1)
    assert _operators(lowered).count("Slice") == 2
    assert not any(unused in node.outputs for node in lowered.nodes)
    error, _, _ = compare(path, devices(1, 1), layouts=2)
    assert error == 0


def test_an_instance_normalization_keeps_the_mean_apart_from_the_variance(tmp_path: Path) -> None:
    """Values far from zero: a variance from sums of squares would be noise."""
    s = _sketch()
    far = s.add("Add", "x", s.floats(1000.0))
    y = s.add("InstanceNormalization", far, s.positive(6), s.weight(6))
    path = s.save(tmp_path / "m.onnx", y)
    error, _, _ = compare(path, devices(2, 1, 1), cuts=[1], layouts=[Shape(3, 1), Shape(1, 3)])
    assert error <= 2e-4
