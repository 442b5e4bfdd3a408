"""The picture of a plan."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from agent.planner import compile_plan
from agent.planner.draw import draw_plan
from agent.planner.layout import Shape
from tests.planner.oracle import devices, load, vgg

if TYPE_CHECKING:
    from pathlib import Path

SVG = "{http://www.w3.org/2000/svg}"


def test_a_plan_is_drawn_with_every_tile_to_scale(tmp_path: Path) -> None:
    _, graph = load(vgg(tmp_path / "vgg.onnx"))
    layouts = [Shape(2, 1), Shape(2, 1), Shape(1, 1)]
    plan = compile_plan(graph, devices(3, 1), model_name="<vgg>", cuts=[1, 18], layouts=layouts)
    root = ET.fromstring(draw_plan(plan, graph))  # noqa: S314 - our own text
    tiles = [r for r in root.iter(f"{SVG}rect") if r.get("stroke")]
    assert len(tiles) == 5
    heights = [float(r.get("height", "0")) for r in tiles[:2]]
    assert heights == [240.0, 80.0]
    words = " ".join(text.text or "" for text in root.iter(f"{SVG}text"))
    assert "<vgg> on 2 devices" in words
    assert "block 2" in words
