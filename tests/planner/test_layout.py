"""How extents are shared, and which axis is split."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.planner.layers import layers_of, live_tensors
from agent.planner.layout import Layouts, split
from tests.planner.oracle import Builder, devices, load

if TYPE_CHECKING:
    from pathlib import Path


@given(
    shares=st.lists(st.floats(0.01, 100), min_size=1, max_size=8),
    more=st.integers(0, 300),
    multiple=st.sampled_from([1, 16]),
)
def test_shares_cover_everything_and_none_is_empty(
    shares: list[float], more: int, multiple: int
) -> None:
    extent = len(shares) + more
    edges = split(extent, shares, multiple)
    assert (edges[0], edges[-1], len(edges)) == (0, extent, len(shares) + 1)
    assert all(start < stop for start, stop in pairwise(edges))


@given(shares=st.lists(st.integers(1, 4), min_size=1, max_size=6), each=st.integers(8, 50))
def test_shares_follow_capacity(shares: list[int], each: int) -> None:
    edges = split(sum(shares) * each, shares)
    assert [b - a for a, b in pairwise(edges)] == [share * each for share in shares]


def test_channels_are_shared_by_multiples_of_what_kernels_work_on() -> None:
    assert split(100, [1, 1, 1], 16) == [0, 32, 64, 100]
    assert split(40, [1, 1, 1], 16) == [0, 13, 27, 40]


def test_rows_are_followed_and_then_channels_are_split(tmp_path: Path) -> None:
    b = Builder((1, 3, 16, 8))
    last = b.add("Transpose", b.conv("x", 20), perm=[0, 2, 3, 1])  # rows come second
    pooled = b.add("GlobalAveragePool", b.add("Transpose", last, perm=[0, 3, 1, 2]))
    flat = b.add("Flatten", pooled)
    one = b.add("ReduceMean", flat, axes=[1])
    _, graph = load(b.save(tmp_path / "m.onnx", one, last))
    layers = layers_of(graph)
    layouts = Layouts(graph, layers, devices(1, 1))
    assert [layouts.axis(name) for name in ("x", last, pooled, flat, one)] == [2, 1, 1, 1, None]
    assert [layouts.rows(name) for name in ("x", last, pooled, one)] == [16, 14, 20, 1]
    assert layouts.tiles(last).region(layouts.tile(2, 1))[1] == (7, 14)


@pytest.mark.parametrize("relu", [True, False])
def test_no_cut_lies_inside_what_is_fused(relu: bool, tmp_path: Path) -> None:  # noqa: FBT001
    b = Builder((1, 3, 16, 8))
    x = b.conv("x", 16, pads=[1] * 4)
    y = b.add("Add", b.normalize(b.conv(x, 16, pads=[1] * 4)), x)
    y = b.add("Relu", y) if relu else y
    flat = b.add("Gemm", b.add("Flatten", y), b.weight(4, 16 * 16 * 8), transB=1)
    _, graph = load(b.save(tmp_path / "m.onnx", flat))
    layers = layers_of(graph)
    groups = [tuple(field.node.op for field in layer.fields) for layer in layers]
    tail = ("Add", "Relu") if relu else ("Add",)
    assert groups == [("Conv",), ("Conv", "BatchNormalization", *tail), ("Flatten", "Gemm")]
    assert live_tensors(graph, layers) == [("x",), (x,), (y,), (flat,)]


def test_what_cannot_be_shared_comes_last(tmp_path: Path) -> None:
    b = Builder((1, 3, 16, 8))
    odd = b.add("InstanceNormalization", "x", b.positive(3), b.weight(3))
    y = b.conv("x", 3, pads=[1] * 4)
    _, graph = load(
        b.save(tmp_path / "m.onnx", b.add("Mul", odd, b.add("MaxPool", y, kernel_shape=[1, 1])))
    )
    order = [layer.fields[0].node.op for layer in layers_of(graph)]
    assert order == ["Conv", "MaxPool", "InstanceNormalization", "Mul"]
