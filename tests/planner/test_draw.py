"""The picture of a plan."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from agent.planner import compile_plan
from agent.planner.draw import draw_plan
from agent.planner.layout import Shape
from models.zoo import build
from tests.planner.oracle import devices, load, vgg

if TYPE_CHECKING:
    from pathlib import Path

    from agent.planner import Plan

SVG = "{http://www.w3.org/2000/svg}"


def drawn(plan: Plan) -> tuple[list[tuple[float, ...]], str]:
    """Return each tile's left, top, width and height, and all words."""
    root = ET.fromstring(draw_plan(plan))  # noqa: S314 - our own text
    tiles = [r for r in root.iter(f"{SVG}rect") if r.get("stroke")]
    boxes = [tuple(float(r.get(key, "0")) for key in ("x", "y", "width", "height")) for r in tiles]
    return boxes, " ".join(text.text or "" for text in root.iter(f"{SVG}text"))


def test_a_plan_is_drawn_with_every_tile_to_scale(tmp_path: Path) -> None:
    _, graph = load(vgg(tmp_path / "vgg.onnx"))
    layouts = [Shape(2, 1), Shape(1, 2), Shape(1, 1)]
    plan = compile_plan(graph, devices(3, 1), model_name="<vgg>", cuts=[1, 16], layouts=layouts)
    boxes, words = drawn(plan)
    assert [box[3] for box in boxes[:2]] == [240.0, 80.0]  # 3 to 1: of the rows
    assert boxes[0][0] == boxes[1][0]
    assert boxes[2][3] == boxes[3][3] == 320.0  # columns of a map of 2 by 2
    assert boxes[2][2] + boxes[3][2] == boxes[4][2] == 150.0
    assert boxes[3][0] == boxes[2][0] + boxes[2][2]
    assert len(boxes) == 5
    assert "<vgg> on 2 devices" in words
    assert "block 1: 1x2, 15 layers" in words


def test_a_grid_is_drawn_as_one(tmp_path: Path) -> None:
    _, graph = load(vgg(tmp_path / "vgg.onnx"))
    plan = compile_plan(
        graph, devices(1, 1, 1, 1), model_name="vgg", cuts=[3], layouts=[Shape(2, 2), Shape(4, 1)]
    )
    boxes, words = drawn(plan)
    corners = {(x - boxes[0][0], y - boxes[0][1]) for x, y, _, _ in boxes[:4]}
    assert corners == {(0, 0), (0, 160), (75, 0), (75, 160)}
    assert {box[2:] for box in boxes[:4]} == {(75.0, 160.0)}
    assert "block 0: 2x2, 3 layers" in words


def test_shares_by_channels_are_drawn_flat(tmp_path: Path) -> None:
    _, graph = load(vgg(tmp_path / "vgg.onnx"))
    layers = sum(len(b.layers) for b in compile_plan(graph, devices(1), model_name="vgg").blocks)
    plan = compile_plan(
        graph,
        devices(1, 1),
        model_name="vgg",
        cuts=[layers - 3, layers - 2],
        layouts=[Shape(1, 2), Shape(1, 2), Shape(1, 1)],
    )
    boxes, _ = drawn(plan)
    assert [box[2:] for box in boxes[2:4]] == [(150.0, 160.0)] * 2


def test_steps_of_an_operator_that_was_taken_apart_are_drawn(tmp_path: Path) -> None:
    _, graph = load(build("mobilenet_v3", tmp_path, small=True))
    layers = sum(len(b.layers) for b in compile_plan(graph, devices(1), model_name="m").blocks)
    cuts = list(range(1, layers))
    plan = compile_plan(graph, devices(1, 1), model_name="m", cuts=cuts, layouts=2)
    assert any(".parts" in name for b in plan.blocks for name, _ in b.tiles[b.devices[0]])
    boxes, _ = drawn(plan)
    assert all(width > 0 and height > 0 for _, _, width, height in boxes)
