"""What each operator needs of its input, against which outputs change when an input does."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest

from agent.adapters.runtime import WholeModel
from agent.geometry import whole
from agent.planner.layout import Shape
from agent.planner.receptive_field import Field, boxes
from tests.planner.oracle import OPTIONS, compare, devices, load
from tests.planner.sketch import Sketch

if TYPE_CHECKING:
    from pathlib import Path

Make = Callable[[Sketch], str]
_SHAPE = (1, 4, 13, 11)


class Variant(NamedTuple):
    """An operator with attributes; `slack` is how many elements too many its maps may take."""

    make: Make
    slack: int = 0
    opset: int = 17
    shape: tuple[int, ...] = _SHAPE


def _conv(filters: int, *kernel: int, group: int = 1, **attributes: object) -> Make:
    return lambda s: s.add(
        "Conv", "x", s.weight(filters, 4 // group, *kernel), group=group, **attributes
    )


def _transposed(*kernel: int, group: int = 1, **attributes: object) -> Make:
    return lambda s: s.add("ConvTranspose", "x", s.weight(4, 2, *kernel), group=group, **attributes)


def _pool(op: str, *kernel: int, **attributes: object) -> Make:
    return lambda s: s.add(op, "x", kernel_shape=list(kernel), **attributes)


def _resize(rows: float, columns: float, mode: str, place: str, nearest: str = "") -> Make:
    given: dict[str, Any] = {"nearest_mode": nearest} if nearest else {}
    return lambda s: s.resize(
        "x",
        scales=(1, 1, rows, columns),
        mode=mode,
        coordinate_transformation_mode=place,
        **given,
    )


def _sized(rows: int, columns: int, mode: str, place: str) -> Make:
    return lambda s: s.resize(
        "x", sizes=(1, 4, rows, columns), mode=mode, coordinate_transformation_mode=place
    )


def _slice(axis: int, start: int, end: int, step: int) -> Make:
    return lambda s: s.slice("x", axis, start, end, step)


def _reshape(*shape: int) -> Make:
    return lambda s: s.add("Reshape", "x", s.ints(*shape))


_PLACES = ("asymmetric", "half_pixel", "pytorch_half_pixel", "align_corners")
# A map is one line with a slope: positions that are rounded lie beside it. And where a position is
# an element's own, its neighbours have no weight, though their place is read.
_ROUNDED, _LINEAR, _CUBIC = 2, 3, 5
VARIANTS: dict[str, Variant] = {
    "Conv": Variant(_conv(3, 3, 3, pads=[1, 1, 1, 1])),
    "Conv 1x5": Variant(_conv(3, 1, 5, pads=[0, 2, 0, 2])),
    "Conv 5x1": Variant(_conv(3, 5, 1, pads=[0, 0, 1, 0])),
    "Conv strides": Variant(_conv(3, 3, 2, strides=[3, 2], pads=[1, 0, 0, 1])),
    "Conv dilations": Variant(_conv(3, 3, 3, dilations=[3, 2], pads=[4, 1, 2, 3]), slack=2),
    "Conv depthwise": Variant(_conv(4, 3, 3, group=4, auto_pad="SAME_UPPER")),
    "Conv in groups": Variant(_conv(6, 2, 2, group=2, auto_pad="SAME_LOWER", strides=[2, 2])),
    "ConvTranspose": Variant(_transposed(2, 2, strides=[2, 2])),
    "ConvTranspose overlapping": Variant(_transposed(4, 3, strides=[2, 1], pads=[1, 0, 2, 1])),
    "ConvTranspose with gaps": Variant(_transposed(1, 2, strides=[3, 3]), slack=1),
    "ConvTranspose dilations": Variant(
        _transposed(3, 2, dilations=[2, 3], pads=[1, 1, 0, 0]), slack=2
    ),
    "ConvTranspose output_padding": Variant(
        _transposed(3, 3, strides=[3, 2], output_padding=[2, 1], group=2), slack=1
    ),
    "MaxPool": Variant(_pool("MaxPool", 3, 2, strides=[2, 1], pads=[1, 0, 1, 1])),
    "MaxPool rounding up": Variant(_pool("MaxPool", 3, 2, strides=[3, 3], ceil_mode=1)),
    "MaxPool dilations": Variant(_pool("MaxPool", 2, 3, dilations=[3, 2])),
    "AveragePool": Variant(_pool("AveragePool", 2, 3, strides=[1, 2], pads=[1, 1, 0, 2])),
    "AveragePool with pads": Variant(
        _pool("AveragePool", 3, 3, pads=[2, 1, 2, 1], count_include_pad=1)
    ),
    "LpPool": Variant(_pool("LpPool", 2, 2, strides=[2, 2])),
    "DepthToSpace": Variant(lambda s: s.add("DepthToSpace", "x", blocksize=2)),
    "DepthToSpace CRD": Variant(lambda s: s.add("DepthToSpace", "x", blocksize=2, mode="CRD")),
    "SpaceToDepth": Variant(lambda s: s.add("SpaceToDepth", "x", blocksize=3), shape=(1, 2, 12, 9)),
    "Pad": Variant(lambda s: s.pad("x", (0, 0, 2, 1, 0, 1, 0, 3), "constant", 0.5)),
    "Pad edge": Variant(lambda s: s.pad("x", (0, 0, 2, 1, 0, 0, 0, 3), "edge")),
    "Pad reflect": Variant(lambda s: s.pad("x", (0, 0, 2, 1, 0, 0, 3, 2), "reflect"), slack=10),
    "Pad before opset 11": Variant(
        lambda s: s.pad("x", (0, 0, 2, 1, 0, 0, 1, 2), "constant", 1.0), opset=9
    ),
    "Slice": Variant(_slice(2, 2, 11, 1)),
    "Slice by steps": Variant(_slice(3, 1, 11, 3)),
    "Slice backwards": Variant(_slice(2, -1, -(2**31), -1), slack=13),
    "Slice of channels": Variant(_slice(1, 1, 3, 1)),
    "Slice before opset 10": Variant(_slice(2, 1, -2, 1), opset=9),
    "Flatten": Variant(lambda s: s.add("Flatten", "x"), slack=13),
    "Reshape to pixels": Variant(_reshape(1, 4, 143), slack=11),
    "Reshape of channels": Variant(_reshape(1, 2, 2, 13, 11), slack=1),
    "Transpose": Variant(lambda s: s.add("Transpose", "x", perm=[0, 3, 1, 2])),
    "Gather": Variant(lambda s: s.add("Gather", "x", s.ints(3, 0, 0), axis=1), slack=4),
    "Expand": Variant(lambda s: s.add("Expand", "x", s.ints(1, 5, 1, 1)), shape=(1, 1, 9, 7)),
    "Tile": Variant(lambda s: s.add("Tile", "x", s.ints(1, 1, 2, 1)), slack=13),
    "ReduceMean over channels": Variant(lambda s: s.reduce("ReduceMean", "x", (1,), 0)),
    "ReduceL2 over rows": Variant(lambda s: s.reduce("ReduceL2", "x", (2,), 0)),
    "ReduceSum over space": Variant(lambda s: s.reduce("ReduceSum", "x", (-1, -2), 1)),
    "GlobalAveragePool": Variant(lambda s: s.add("GlobalAveragePool", "x")),
    "Softmax over channels": Variant(lambda s: s.add("Softmax", "x", axis=1)),
    "Softmax before opset 13": Variant(lambda s: s.add("Softmax", "x", axis=3), opset=11),
    "LRN": Variant(lambda s: s.add("LRN", "x", size=3, alpha=3.0), slack=2),
    "InstanceNormalization": Variant(
        lambda s: s.add("InstanceNormalization", "x", s.positive(4), s.weight(4))
    ),
    "LayerNormalization": Variant(
        lambda s: s.add("LayerNormalization", "x", s.positive(11), s.weight(11), axis=-1)
    ),
    "PRelu": Variant(lambda s: s.add("PRelu", "x", s.positive(4, 1, 1))),
    "MatMul": Variant(lambda s: s.add("MatMul", "x", s.weight(11, 6))),
    "Upsample": Variant(
        lambda s: s.resize("x", scales=(1, 1, 2, 3), mode="linear"), _LINEAR, opset=9
    ),
    "Upsample by less than a row": Variant(
        lambda s: s.resize("x", scales=(1, 1, 1.05, 1.5), mode="nearest"), _ROUNDED, opset=9
    ),
    "Resize at opset 10": Variant(
        lambda s: s.resize("x", scales=(1, 1, 2, 0.5), mode="nearest"), _ROUNDED, opset=10
    ),
    "Resize at opset 11": Variant(_resize(2, 3, "linear", "half_pixel"), _ROUNDED, opset=11),
}
VARIANTS |= {
    f"Resize {mode} {place} by {rows} and {columns}": Variant(
        _resize(rows, columns, mode, place), slack
    )
    for mode, slack in (("linear", _LINEAR), ("cubic", _CUBIC))
    for place in _PLACES
    for rows, columns in ((2.0, 3.0), (1.7, 0.6))
}
VARIANTS |= {
    f"Resize nearest {way} {place}": Variant(_resize(2.0, 1.7, "nearest", place, way), _ROUNDED)
    for way in ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")
    for place in _PLACES
}
VARIANTS |= {
    f"Resize to sizes {place}": Variant(_sized(20, 7, "linear", place), _LINEAR)
    for place in _PLACES
}
# In float32 a position of 3.5 or 5.5 comes out beside the middle of two pixels.
VARIANTS |= {
    f"Resize {way} beside the middle": Variant(
        _resize(1.0833333, scale, "nearest", place, way), _ROUNDED, shape=(1, 2, 13, 7)
    )
    for way, place, scale in (
        ("round_prefer_ceil", "asymmetric", 8 / 7), ("round_prefer_floor", "half_pixel", 2.0),
    )
}  # fmt: skip


def _save(name: str, folder: Path) -> Path:
    variant = VARIANTS[name]
    s = Sketch(Random(1), variant.shape, variant.opset)
    return s.save(folder / "model.onnx", variant.make(s))


@pytest.mark.parametrize("name", VARIANTS)
def test_a_map_covers_what_changes_an_output_and_little_else(name: str, tmp_path: Path) -> None:
    path = _save(name, tmp_path)
    _, graph = load(path)
    (node,) = graph.nodes
    field = Field(node, graph)
    inner, outer = graph.shape("x"), field.shape
    model = WholeModel(path, OPTIONS)
    value = np.random.default_rng(1).uniform(0.5, 1.5, inner).astype(np.float32)
    (plain,) = model.run([value])
    maps = field.operator.maps[0] or ()
    for axis, axis_map in enumerate(maps):
        touched = np.zeros((inner[axis], outer[axis_map.axis]), bool)
        others = tuple(a for a in range(len(outer)) if a != axis_map.axis)
        for place in range(inner[axis]):
            changed = value.copy()
            changed[(slice(None),) * axis + (place,)] *= 300
            (found,) = model.run([changed])
            touched[place] = (found != plain).any(axis=others)
        for at in range(outer[axis_map.axis]):
            region = list(whole(outer))
            if axis_map.axis not in field.operator.fixed:
                region[axis_map.axis] = (at, at + 1)
            start, stop = field.needed(0, field.computed(boxes([tuple(region)]))).region(0)[axis]
            used = np.flatnonzero(touched[:, at] if axis_map.stride else touched.any(axis=1))
            if used.size == 0:
                assert stop - start <= 1 + VARIANTS[name].slack
                continue
            assert start <= used[0]
            assert used[-1] < stop
            assert (stop - start) - (used[-1] + 1 - used[0]) <= VARIANTS[name].slack


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("shape", [Shape(2, 1), Shape(3, 1), Shape(1, 3), Shape(2, 2)], ids=str)
def test_tiles_in_a_layout_give_the_whole(name: str, shape: Shape, tmp_path: Path) -> None:
    path = _save(name, tmp_path)
    if not _fits(path, shape):
        shape = Shape(1, 1)
    rates = (2, 1, 1, 1)[: shape.tiles]
    error, _, plan = compare(path, devices(*rates), cuts=[], layouts=[shape])
    assert error <= 1e-5
    assert plan.layouts == (shape,)


def _fits(path: Path, shape: Shape) -> bool:
    """Tell whether the output has as many tiles: one of a pixel for each channel has not."""
    _, graph = load(path)
    extents = [n for n in graph.shape(graph.outputs[0])[1:] if n > 1]
    return min(extents) >= shape.tiles


@pytest.mark.parametrize("name", VARIANTS)
def test_more_devices_than_rows_leave_some_out(name: str, tmp_path: Path) -> None:
    error, _, plan = compare(_save(name, tmp_path), devices(*[1] * 15), cuts=[], layouts=15)
    assert error <= 1e-5
    assert len(plan.devices) <= 15
