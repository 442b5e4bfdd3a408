"""The operator table: what each entry computes by tiles, it computes right; and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest

from agent.planner.receptive_field import Field
from tests.planner.oracle import Builder, compare, devices, load

if TYPE_CHECKING:
    from pathlib import Path

Make = Callable[[Builder], str]
_INT = np.int64


def _unary(op: str, **attributes: float) -> Make:
    return lambda b: b.add(op, "x", **attributes)


def _positive(op: str) -> Make:
    return lambda b: b.add(op, b.add("Exp", "x"))


def _binary(op: str, *shape: int) -> Make:
    return lambda b: b.add(op, b.add("Relu", "x"), b.positive(*shape))


def _ints(b: Builder, *values: int) -> str:
    return b.constant(np.array(values, _INT))


def _where(b: Builder) -> str:
    mask = b.add("Greater", "x", b.weight(1, 1, 16, 1))
    return b.add("Where", mask, "x", b.weight(3, 1, 1))


def _cast(b: Builder) -> str:
    return b.add("Cast", b.add("Cast", "x", to=10), to=1)


def _prelu(b: Builder) -> str:
    return b.add("PRelu", "x", b.weight(3, 1, 1))


def _clip(b: Builder) -> str:
    low, high = (b.constant(np.array(v, np.float32)) for v in (-0.5, 0.5))
    return b.add("Clip", "x", low, high)


def _rows_to_front(b: Builder) -> str:
    return b.add("Relu", b.add("Transpose", "x", perm=[0, 2, 3, 1]))


def _shuffle(b: Builder) -> str:
    """ShuffleNet's channel shuffle, on four channels."""
    x = b.add("Reshape", b.conv("x", 4), _ints(b, 1, 2, 2, 14, 6))
    x = b.add("Reshape", b.add("Transpose", x, perm=[0, 2, 1, 3, 4]), _ints(b, 1, 4, 14, 6))
    return b.conv(x, 2)


def _matmul_activations(b: Builder) -> str:
    return b.add("MatMul", "x", b.add("Transpose", "x", perm=[0, 1, 3, 2]))


def _gemm(b: Builder, **attributes: float) -> str:
    x = b.add("Flatten", b.add("GlobalAveragePool", b.conv("x", 20)))
    shape = (40, 20) if attributes.get("transB") else (20, 40)
    return b.add("Gemm", x, b.weight(*shape), b.weight(1, 40), **attributes)


def _squeeze(b: Builder) -> str:
    x = b.add("Squeeze", b.add("GlobalMaxPool", "x"), _ints(b, 2, 3))
    return b.add("Mul", "x", b.add("Unsqueeze", b.add("Sigmoid", x), _ints(b, 2, 3)))


_UNARY = (
    "Relu", "LeakyRelu", "Sigmoid", "Tanh", "Elu", "Selu", "Celu", "HardSigmoid", "HardSwish",
    "Mish", "Softplus", "Softsign", "Abs", "Neg", "Exp", "Erf", "Ceil", "Floor", "Sign", "Sin",
)  # fmt: skip
DISTRIBUTED: dict[str, Make] = {op: _unary(op) for op in _UNARY}
DISTRIBUTED |= {op: _positive(op) for op in ("Sqrt", "Log", "Reciprocal")}
DISTRIBUTED |= {op: _binary(op, 3, 1, 1) for op in ("Add", "Sub", "Mul", "Div", "Max", "Pow")}
DISTRIBUTED |= {f"{op} with rows": _binary(op, 16, 8) for op in ("Add", "Min", "Sum", "Mean")}
DISTRIBUTED |= {
    "Where": _where,
    "Cast": _cast,
    "PRelu": _prelu,
    "Clip": _clip,
    "BatchNormalization": lambda b: b.normalize("x"),
    "LRN": lambda b: b.add("LRN", "x", size=3),
    "Conv": lambda b: b.conv("x", 4, pads=[1, 0, 2, 1], strides=[2, 1]),
    "Conv depthwise": lambda b: b.conv("x", 6, group=3, dilations=[2, 2]),
    "Conv on one pixel": lambda b: b.conv(b.add("GlobalAveragePool", "x"), 48, 1),
    "MaxPool": lambda b: b.add("MaxPool", "x", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    "AveragePool": lambda b: b.add("AveragePool", "x", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    "AveragePool with pads": lambda b: b.add(
        "AveragePool", "x", kernel_shape=[3, 3], pads=[2, 2, 2, 2], count_include_pad=1
    ),
    "Concat": lambda b: b.add("Concat", "x", b.add("Relu", "x"), b.weight(1, 2, 16, 8), axis=1),
    "Softmax over channels": lambda b: b.add("Softmax", "x", axis=1),
    "LogSoftmax over columns": lambda b: b.add("LogSoftmax", "x", axis=-1),
    "GlobalAveragePool": lambda b: b.add("GlobalAveragePool", "x"),
    "ReduceMean": lambda b: b.add("ReduceMean", "x", axes=[1], keepdims=0),
    "ReduceSum": lambda b: b.add("ReduceSum", "x", _ints(b, 2, 3), keepdims=0),
    "Resize to the same size": lambda b: b.add(
        "Resize", b.add("Relu", "x"), "", b.constant(np.array([1, 1, 1.05, 1.1], np.float32)),
        mode="linear",
    ),
    "Transpose": _rows_to_front,
    "Gather by many indices": lambda b: b.add(
        "Gather", "x", _ints(b, *(n % 3 for n in range(600))), axis=1
    ),
    "Reshape": _shuffle,
    "Squeeze": _squeeze,
    "MatMul of activations": _matmul_activations,
    "Gemm by rows": lambda b: _gemm(b, transB=1, alpha=0.5, beta=2.0),
}  # fmt: skip
DISTRIBUTED |= {
    "Softmax over rows": lambda b: b.add("Softmax", "x", axis=2),
    "Concat of rows": lambda b: b.add("Concat", "x", "x", axis=2),
    "Gemm by columns": _gemm,
    "InstanceNormalization": lambda b: b.add(
        "InstanceNormalization", "x", b.positive(3), b.weight(3)
    ),
}


def _computed_kernel(b: Builder) -> str:
    kernel = b.add("Reshape", b.add("GlobalMaxPool", "x"), _ints(b, 1, 3, 1, 1))
    return b.add("Conv", "x", kernel)


WHOLE: dict[str, tuple[Make, str]] = {
    "LRN": (
        lambda b: b.add(
            "LRN", b.add("GlobalAveragePool", b.conv("x", 48)), size=5, alpha=9.0
        ),
        "needs the whole map",
    ),
    "AveragePool": (
        lambda b: b.add(
            "AveragePool", "x", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1,
            count_include_pad=1,
        ),
        "rounds up",
    ),
    "Conv": (lambda b: b.conv("x", 2, 1, pads=[1, 1, 1, 1]), "padding as wide as its kernel"),
    "Conv of a kernel": (_computed_kernel, "has a kernel that is computed"),
    "CumSum": (lambda b: b.add("CumSum", "x", b.constant(np.array(2))), "is not an operator"),
    "Softmax": (
        lambda b: b.add("Softmax", b.add("Flatten", b.add("Tanh", "x")), axis=1), "whole map"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DISTRIBUTED)
def test_tiles_of_an_operator_give_the_whole(name: str, tmp_path: Path) -> None:
    b = Builder((1, 3, 16, 8), opset=18 if name == "Mish" else 17)
    path = b.save(tmp_path / "m.onnx", DISTRIBUTED[name](b))
    error, _, plan = compare(path, devices(3, 2, 2), layouts=3)
    assert error <= 1e-5
    assert plan.undistributed == ()
    assert plan.distributed_share > 0.9


@pytest.mark.parametrize("name", WHOLE)
def test_what_cannot_be_split_is_named_and_still_right(name: str, tmp_path: Path) -> None:
    make, reason = WHOLE[name]
    b = Builder((1, 3, 16, 8))
    path = b.save(tmp_path / "m.onnx", b.add("Relu", make(b)))
    error, _, plan = compare(path, devices(3, 2, 2), layouts=3)
    assert error <= 1e-5
    named = {entry.label.partition(" ")[0]: entry.reason for entry in plan.undistributed}
    assert reason in named[name.partition(" ")[0]]


@pytest.mark.parametrize("opset", [9, 11, 12, 13, 17])
@pytest.mark.parametrize("axis", [1, 3])
def test_softmax_flattens_before_opset_13(opset: int, axis: int, tmp_path: Path) -> None:
    b = Builder((1, 3, 16, 8), opset=opset)
    path = b.save(tmp_path / "m.onnx", b.add("Softmax", b.conv("x", 3), axis=axis))
    error, _, plan = compare(path, devices(1, 1), layouts=2)
    assert error <= 1e-5
    assert bool(plan.undistributed) == (opset < 13 and axis == 1)


def test_slices_are_written_in_the_models_own_opset(tmp_path: Path) -> None:
    for opset in (9, 10, 13):
        b = Builder((1, 3, 16, 8), opset=opset)
        wide = b.conv("x", 3, 5, pads=[2] * 4)
        path = b.save(tmp_path / "m.onnx", b.add("Add", wide, b.add("Relu", "x")))
        error, _, _ = compare(path, devices(1, 1, 1), layouts=3)
        assert error <= 1e-5


def test_arithmetic_of_a_convolution_and_a_gemm(tmp_path: Path) -> None:
    b = Builder((1, 4, 9, 9))
    x = b.conv("x", 6, 3, group=2)
    y = b.add("Gemm", b.add("Flatten", x), b.weight(10, 6 * 7 * 7), b.weight(10), transB=1)
    _, graph = load(b.save(tmp_path / "m.onnx", y))
    flops = {node.op: Field(node, graph).operator.flops for node in graph.nodes}
    assert flops == {"Conv": 2 * 2 * 9, "Flatten": 0, "Gemm": 2 * 6 * 7 * 7}
