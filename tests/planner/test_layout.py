"""How extents are shared, which axes are split, and the tiles of every layout."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.geometry import slices_within, whole
from agent.planner.layers import layers_of, live_tensors
from agent.planner.layout import Layouts, Shape, split
from agent.planner.lowering import lower
from agent.planner.plan import shapes_of_form
from tests.planner.oracle import Builder, devices, load

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from agent.planner.plan import Form


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
    layouts = Layouts(graph, layers_of(graph), devices(1, 1))
    names = ("x", last, pooled, flat, one)
    assert [layouts.axes(name) for name in names] == [(2, 3), (1, 2), (1,), (1,), ()]
    assert layouts.shapes == ((1, 1), (2, 1), (1, 2))
    rows, columns = (layouts.tiles_of(n)[1] for n in (1, 2))
    assert layouts.tiles(last).region(rows) == ((0, 1), (7, 14), (0, 6), (0, 20))
    assert layouts.tiles(last).region(columns) == ((0, 1), (0, 14), (3, 6), (0, 20))
    assert [layouts.fits(one, n) for n in range(3)] == [True, False, False]
    assert layouts.tiles(one).region(rows) == ((0, 1), (0, 1))  # the whole, where nothing fits


def _map_layouts(path: Path, rates: Sequence[float], rows: int, columns: int) -> Layouts:
    b = Builder((1, 2, rows, columns))
    _, graph = load(b.save(path / "m.onnx", b.add("Relu", "x")))
    return Layouts(graph, layers_of(graph), devices(*rates))


@pytest.mark.parametrize("rates", [(1, 1, 1, 1), (8, 4, 2, 1), (3, 3, 1, 1), (5, 1, 1, 1, 1, 1)])
def test_tiles_of_every_layout_cover_a_map_once(rates: tuple[float, ...], tmp_path: Path) -> None:
    layouts = _map_layouts(tmp_path, rates, 24, 10)
    tiles = layouts.tiles("x")
    for layout in range(len(layouts.shapes)):
        covered = np.zeros((1, 2, 24, 10), np.int64)
        for tile in layouts.tiles_of(layout):
            region = tiles.region(tile)
            assert all(stop > start for start, stop in region)
            covered[slices_within(region, whole(covered.shape))] += 1
        assert (covered == 1).all()


def test_a_grid_gives_each_device_the_area_that_its_capacity_is_of_all(tmp_path: Path) -> None:
    layouts = _map_layouts(tmp_path, (6, 3, 2, 1), 40, 30)
    grid = layouts.shapes.index(Shape(2, 2))
    regions = [layouts.tiles("x").region(tile)[2:] for tile in layouts.tiles_of(grid)]
    assert regions == [
        ((0, 30), (0, 20)), ((0, 30), (20, 30)), ((30, 40), (0, 20)), ((30, 40), (20, 30)),
    ]  # fmt: skip


def test_a_layout_fits_where_every_device_gets_a_row_and_a_column(tmp_path: Path) -> None:
    layouts = _map_layouts(tmp_path, [1] * 6, 2, 5)
    fitting = {shape for number, shape in enumerate(layouts.shapes) if layouts.fits("x", number)}
    assert set(map(str, fitting)) == {"1x1", "2x1", "1x2", "1x3", "2x2", "1x4", "1x5", "2x3"}


def test_a_tensor_of_one_axis_is_shared_along_it_by_every_layout(tmp_path: Path) -> None:
    b = Builder((1, 3, 8, 8))
    flat = b.add("Flatten", b.add("GlobalAveragePool", b.conv("x", 64)))
    _, graph = load(b.save(tmp_path / "m.onnx", flat))
    layouts = Layouts(graph, layers_of(graph), devices(1, 1, 1, 1))
    grid = layouts.shapes.index(Shape(2, 2))
    shares = [layouts.tiles(flat).region(tile)[1] for tile in layouts.tiles_of(grid)]
    assert shares == [(0, 16), (16, 32), (32, 48), (48, 64)]


def test_slots_of_partial_results_follow_the_tiles_that_they_are_made_of(tmp_path: Path) -> None:
    b = Builder((1, 3, 12, 8))
    pooled = b.add("GlobalAveragePool", b.add("Relu", "x"))
    _, graph = load(b.save(tmp_path / "m.onnx", b.add("Mul", "x", pooled)))
    lowered = lower(graph, 4)
    layouts = Layouts(lowered, layers_of(lowered), devices(4, 2, 1, 1))
    slots = next(node.outputs[0] for node in lowered.nodes if node.op == "Partial")
    assert lowered.shape(slots) == (1, 3, 4, 1)
    for number, shape in enumerate(layouts.shapes):
        spans = [layouts.tiles(slots).region(tile)[2] for tile in layouts.tiles_of(number)]
        assert spans[0][0] == 0
        assert spans[-1][1] == 4
        assert len(spans) == shape.tiles
        assert all(a[1] == b[0] for a, b in pairwise(spans))
        assert layouts.fits(slots, number) == layouts.fits(
            next(n.inputs[0] for n in lowered.nodes if n.op == "Partial"), number
        )


@pytest.mark.parametrize(
    ("form", "shapes"),
    [
        ("any", "1x1 2x1 1x2 3x1 1x3 4x1 2x2 1x4"),
        ("rows", "1x1 2x1 3x1 4x1"),
        ("columns", "1x1 1x2 1x3 1x4"),
        ("grid", "1x1 2x1 3x1 2x2"),
    ],
)
def test_forms_are_some_of_the_shapes(form: Form, shapes: str) -> None:
    assert set(map(str, shapes_of_form(4, form))) == set(shapes.split())
    assert [shape.tiles for shape in shapes_of_form(8, "grid")] == [1, 2, 3, 4, 5, 6, 7, 8]


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
    # A kernel that is computed makes a convolution that one device computes alone.
    kernel = b.add("Reshape", b.add("GlobalMaxPool", "x"), b.constant(np.array([1, 3, 1, 1])))
    odd = b.add("Conv", "x", kernel)
    y = b.conv("x", 3, pads=[1] * 4)
    _, graph = load(
        b.save(tmp_path / "m.onnx", b.add("Mul", odd, b.add("MaxPool", y, kernel_shape=[1, 1])))
    )
    order = [layer.fields[-1].node.op for layer in layers_of(graph)]
    assert order.index("MaxPool") < order.index("Conv", order.index("MaxPool"))
    assert order[-1] == "Mul"
