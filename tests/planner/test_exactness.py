"""Where every bit is kept: integer models always, others where that is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from agent.adapters.runtime import RuntimeOptions, run_whole
from agent.planner import Device, compile_plan
from agent.planner.layout import Shape
from agent.planner.operators import rounding
from models.zoo import build
from models.zoo.converted import quantized
from tests.planner.oracle import Builder, Fleet, compare, load

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agent.planner import Plan


def fleet(count: int, threads: int = 1) -> list[Device]:
    return [
        Device(f"d{n}", 1e7, 1e7, 1e9, link_latency_s=1e-5, step_overhead_s=1e-5, threads=threads)
        for n in range(count)
    ]


def differs(
    path: Path, count: int, threads: int = 1, *, exact: bool = False
) -> tuple[list[bool], Plan]:
    """Tell for each of several inputs whether any byte is another one than a device gives."""
    model, graph = load(path)
    plan = compile_plan(graph, fleet(count, threads), model_name="m", exact=exact, layouts=count)
    options = RuntimeOptions(threads=threads)
    split = Fleet(plan, model, options)
    found = []
    for seed in range(3):
        shape = graph.shape(graph.input)
        value = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
        pairs = zip(split.run(value), run_whole(path, [value], options), strict=True)
        found.append(any(one.tobytes() != other.tobytes() for one, other in pairs))
    return found, plan


def _between_convolutions(b: Builder, inner: Callable[[str], str]) -> str:
    x = b.add("Relu", b.conv("x", 16, pads=[1] * 4))
    return b.conv(inner(x), 8, pads=[1] * 4)


def _wide(b: Builder) -> str:
    return _between_convolutions(b, lambda x: b.add("Relu", b.conv(x, 16, pads=[1] * 4)))


def _raised(b: Builder) -> str:
    weight = b.weight(16, 16, 2, 2, scale=0.2)
    return _between_convolutions(b, lambda x: b.add("ConvTranspose", x, weight, strides=[2, 2]))


def _scored(b: Builder) -> str:
    pooled = b.add("MaxPool", _wide(b), kernel_shape=[4, 4], strides=[4, 4])
    flat = b.add("Flatten", pooled)
    depth = b.shape(flat)[1]
    hidden = b.add("Gemm", flat, b.weight(depth, 200, scale=depth**-0.5), b.weight(200))
    return b.add("Gemm", b.add("Elu", hidden), b.weight(200, 32, scale=0.1), b.weight(32))


def _averaged(b: Builder) -> str:
    return _between_convolutions(
        b, lambda x: b.add("AveragePool", x, kernel_shape=[3, 3], pads=[1] * 4)
    )


def _gated(b: Builder) -> str:
    def gate(x: str) -> str:
        return b.add("Mul", x, b.add("Sigmoid", b.conv(b.add("GlobalAveragePool", x), 16, 1)))

    return _between_convolutions(b, gate)


_MODELS = {
    "wide": _wide,
    "raised": _raised,
    "scored": _scored,
    "averaged": _averaged,
    "gated": _gated,
}
_QUANTIZED: dict[str, dict[str, Any]] = {
    "all": {},
    "the middle left out": {"left_out": ("Conv2", "ConvTranspose2", "AveragePool2", "Mul4")},
    "sums left as floats": {"float_outputs": ("Conv", "ConvTranspose", "Gemm", "AveragePool")},
}


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("what", _QUANTIZED)
@pytest.mark.parametrize("name", _MODELS)
def test_signed_integers_and_floats_between_them_keep_every_bit(
    name: str, what: str, threads: int, tmp_path: Path
) -> None:
    b = Builder((1, 3, 20, 20))
    plain = b.save(tmp_path / "plain.onnx", _MODELS[name](b))
    path = quantized(plain, tmp_path / "m.onnx", activations="s8", **_QUANTIZED[what])
    found, plan = differs(path, 8, threads)
    assert not any(found)
    assert len(plan.devices) > 1


@pytest.mark.parametrize("name", ["mobilenet_v2", "shufflenet_v1", "fpn", "efficientnet_b0"])
def test_floats_keep_every_bit_where_that_is_asked_for(name: str, tmp_path: Path) -> None:
    path = build(name, tmp_path, small=True)
    found, plan = differs(path, 4, exact=True)
    assert not any(found)
    assert plan.distributed_share > 0.5


@pytest.mark.parametrize("shape", [Shape(1, 1), Shape(4, 1), Shape(2, 2)])
def test_what_would_be_rounded_otherwise_is_computed_whole(shape: Shape, tmp_path: Path) -> None:
    b = Builder((1, 18, 8, 9))
    # Of the last row and column of what it reads, nobody needs anything.
    last = b.conv(b.conv("x", 18, pads=[1] * 4), 18, 2, strides=[2, 2])
    path = b.save(tmp_path / "m.onnx", b.add("MaxPool", last, kernel_shape=[2, 2]))
    _, same, plan = compare(path, fleet(4), cuts=[2], layouts=[shape, Shape(1, 1)], exact=True)
    assert same
    assert [item.label for item in plan.undistributed] == ["Conv 'Conv0'"]
    assert plan.distributed_share < 0.1
    _, same, plan = compare(path, fleet(4), cuts=[2], layouts=[shape, Shape(1, 1)])
    assert not same or shape.tiles == 1


def test_what_is_answered_may_be_read_by_a_sum_that_is_never_cut_off(tmp_path: Path) -> None:
    b = Builder((1, 3, 20, 20))
    x = b.conv("x", 18, pads=[1] * 4)
    # Nothing brings 18 channels into the blocked layout again.
    y = b.add("Add", b.conv(x, 18, pads=[1] * 4), x)
    path = b.save(tmp_path / "m.onnx", x, y)
    _, same, _ = compare(path, fleet(4), exact=True)
    assert same
    assert not compare(path, fleet(4), cuts=[1], layouts=4)[1]


@pytest.mark.parametrize(
    ("depth", "threads", "extents", "kept"),
    [
        (128, 1, (1, 8, 1, 2), True),
        (128, 1, (1, 8, 2, 1), False),
        (129, 1, (1, 8, 1, 64), False),
        (129, 1, (1, 8, 1, 65), True),
        (129, 4, (1, 8, 8, 56), False),
        (129, 4, (1, 8, 8, 57), True),
        (128, 16, (1, 8, 8, 57), False),
    ],
)
def test_the_order_of_sums_depends_on_pixels_and_threads(
    depth: int, threads: int, extents: tuple[int, ...], *, kept: bool
) -> None:
    tiles = np.array([extents])
    assert rounding.windows(depth, threads)(tiles, tiles) == [kept]
