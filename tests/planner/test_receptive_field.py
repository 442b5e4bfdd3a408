"""Receptive fields against index arithmetic that knows nothing of regions."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.planner.receptive_field import Demand, Field, boxes, hull
from agent.planner.windows import tile_pads
from tests.planner.oracle import Builder, load

if TYPE_CHECKING:
    from agent.geometry import Region
    from agent.planner import Graph


@settings(max_examples=80, deadline=None)
@given(
    rows=st.integers(9, 40),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    pads=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    data=st.data(),
)
def test_a_window_reads_exactly_the_rows_that_it_touches(
    *,
    rows: int,
    kernel: int,
    stride: int,
    dilation: int,
    pads: tuple[int, int],
    data: st.DataObject,
) -> None:
    field, count = _conv_field(rows, kernel, stride, dilation, pads)
    start = data.draw(st.integers(0, count - 1))
    stop = data.draw(st.integers(start + 1, count))
    padding_only = pads[0] > dilation * (kernel - 1) or (count - 1) * stride - pads[0] >= rows
    if padding_only:  # some output sees no row at all: such a node is not split
        assert set(field.operator.fixed) == {0, 1, 2, 3}
        return
    touched = {
        row * stride - pads[0] + tap * dilation
        for row in range(start, stop)
        for tap in range(kernel)
    }
    reached = (max(0, min(touched)), min(rows, max(touched) + 1))
    needed = field.needed(0, boxes([((0, 1), (0, 1), (start, stop), (0, 5))]))
    assert needed.region(0)[2] == reached
    assert tile_pads(
        field.operator.maps[0] or (), ((0, 1), (0, 1), (start, stop), (0, 5)), (1, 1, rows, 5)
    ) == [max(0, -min(touched)), 0, max(0, max(touched) + 1 - rows), 0]


def _conv_field(
    rows: int, kernel: int, stride: int, dilation: int, pads: tuple[int, int]
) -> tuple[Field, int]:
    b = Builder((1, 1, rows, 5))
    weight = b.weight(1, 1, kernel, 1)
    window = {"strides": [stride, 1], "dilations": [dilation, 1]}
    y = b.add("Conv", "x", weight, pads=[pads[0], 0, pads[1], 0], **window)
    with tempfile.TemporaryDirectory() as folder:
        _, graph = load(b.save(Path(folder, "m.onnx"), y))
    return Field(graph.nodes[0], graph), graph.shape(y)[2]


def test_many_tiles_are_walked_as_one(tmp_path: Path) -> None:
    b = Builder((1, 2, 20, 8))
    y = b.conv(b.conv("x", 3, pads=[1] * 4), 3, 5, strides=[2, 2])
    _, graph = load(b.save(tmp_path / "m.onnx", y))
    tiles: list[Region] = [((0, 1), (0, 3), (a, a + 2), (0, 2)) for a in range(7)]
    together = _walk(graph, tiles)
    assert together == [_walk(graph, [tile])[0] for tile in tiles]
    # Rows [a, a + 2) of the last layer: 2a .. 2a + 7 of the first, one more on each side before.
    assert [region[2] for region in together] == [
        (max(0, 2 * a - 1), min(20, 2 * a + 8)) for a in range(7)
    ]


def _walk(graph: Graph, tiles: list[Region]) -> list[Region]:
    demand = Demand(graph, {graph.outputs[0]: boxes(tiles)})
    for node in reversed(graph.nodes):
        demand.through(Field(node, graph))
    return [demand.boxes["x"].region(tile) for tile in range(len(tiles))]


def test_two_readers_need_the_hull_of_what_each_needs() -> None:
    left, right = boxes([((2, 5),), ((0, 1),)]), boxes([((4, 9),), ((3, 4),)])
    both = hull(left, right)
    assert [both.region(tile) for tile in range(2)] == [((2, 9),), ((0, 4),)]
    assert hull(None, right) is right


def test_a_scalar_has_a_region_without_axes() -> None:
    box = boxes([(), ()])
    assert box.region(1) == ()
    assert np.array_equal(box.sizes(), [1, 1])


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_auto_pad_is_made_explicit(tmp_path: Path, mode: str, stride: int) -> None:
    b = Builder((1, 1, 11, 11))
    y = b.conv("x", 1, 4, auto_pad=mode, strides=[stride, stride])
    _, graph = load(b.save(tmp_path / "m.onnx", y))
    count = graph.shape(y)[2]
    total = max(0, (count - 1) * stride + 4 - 11)
    begin = {"VALID": 0, "SAME_UPPER": total // 2, "SAME_LOWER": total - total // 2}[mode]
    maps = Field(graph.nodes[0], graph).operator.maps[0]
    assert maps is not None
    assert (maps[2].low, maps[2].stride) == (-begin, stride)
