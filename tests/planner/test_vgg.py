"""VGG-16, small: every byte is that of one device, and shares of weights are fetched in part."""

from __future__ import annotations

from typing import TYPE_CHECKING
from unittest.mock import patch

import numpy as np
import pytest
from msgspec.structs import replace

from agent.errors import ModelError
from agent.geometry import shape_of
from agent.planner import check, compile_plan, importer
from agent.planner.layout import Shape
from agent.wire.program import Part, Send, decode_program, encode_program
from tests.planner.oracle import Builder, Fleet, compare, devices, load, vgg

if TYPE_CHECKING:
    from pathlib import Path

    from agent.planner import Plan


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vgg(tmp_path_factory.mktemp("vgg") / "vgg.onnx")


@pytest.mark.parametrize("count", range(1, 9))
@pytest.mark.parametrize("cuts", [None, [2, 5, 9, 13, 17], list(range(1, 22)), []])
def test_tiles_give_the_bytes_of_the_whole(count: int, cuts: list[int] | None, path: Path) -> None:
    _, identical, plan = compare(path, devices(*[1] * count), cuts=cuts, layouts=count)
    assert identical
    assert max(shape.tiles for shape in plan.layouts) == count


def test_unequal_devices_give_the_bytes_of_the_whole(path: Path) -> None:
    _, identical, plan = compare(path, devices(5, 2, 1), cuts=[3, 6, 10, 14, 17], layouts=3)
    assert identical
    assert plan.distributed_share > 0.99


def test_a_gemm_is_shared_by_features_and_fetched_in_part(path: Path) -> None:
    with patch.object(importer, "PART_BYTES", 1 << 14):
        model, graph = load(path)
        plan = compile_plan(graph, devices(1, 1, 1, 1), model_name="m", cuts=[18, 19], layouts=4)
        Fleet(plan, model).run(np.zeros(graph.shape(graph.input), np.float32))
    entry = max((w for w in model.weights if len(w.shape) == 2), key=lambda w: len(w.parts))
    used = [
        {part.digest for s in program.segments for w in s.weights for part in w.parts}
        & {part.digest for part in entry.parts}
        for program in plan.programs.values()
    ]
    assert len(entry.parts) >= 16
    assert all(len(parts) <= len(entry.parts) // 4 + 1 for parts in used)
    assert set.union(*used) == {part.digest for part in entry.parts}
    shares = [
        shape_of(region)
        for block in plan.blocks[1:2]
        for tiles in block.tiles.values()
        for _, region in tiles
    ]
    assert shares == [(1, 64)] * 4


def test_equal_tiles_are_one_segment(path: Path) -> None:
    _, graph = load(path)
    plan = compile_plan(
        graph, devices(*[1] * 4), model_name="m", cuts=[1], layouts=[Shape(4, 1), Shape(1, 1)]
    )
    digests = [p.segments[p.steps[0].segment].graph.digest for p in plan.programs.values()]
    # The first and the last tile keep some padding; the two between them are the same.
    assert len(set(digests)) == 3
    assert digests[1] == digests[2]
    again = compile_plan(
        graph, devices(*[1] * 4), model_name="m", cuts=[1], layouts=[Shape(4, 1), Shape(1, 1)]
    )
    assert again.programs == plan.programs
    assert again.segments == plan.segments


def test_segments_hold_no_weights(path: Path) -> None:
    _, graph = load(path)
    plan = compile_plan(graph, devices(1, 1), model_name="m", layouts=2)
    assert max(len(content) for content in plan.segments.values()) < 16_000


def test_programs_survive_the_wire(path: Path) -> None:
    _, graph = load(path)
    plan = compile_plan(graph, devices(1, 1, 1), model_name="m", layouts=3)
    for program in plan.programs.values():
        assert decode_program(encode_program(program)) == program


@pytest.fixture
def small_plan(tmp_path: Path) -> Plan:
    b = Builder((1, 2, 16, 8))
    y = b.conv(b.conv("x", 4, pads=[1] * 4), 4, pads=[1] * 4)
    _, graph = load(b.save(tmp_path / "m.onnx", y))
    plan = compile_plan(graph, devices(1, 1), model_name="m", cuts=[1], layouts=2)
    check(plan.programs)
    return plan


def test_check_finds_a_halo_that_is_not_sent(small_plan: Plan) -> None:
    program = small_plan.programs["d1"]
    program = replace(program, sends=program.sends[1:])
    with pytest.raises(ModelError, match="never happen"):
        check({**small_plan.programs, "d1": program})


def test_check_finds_a_send_of_what_is_not_there(small_plan: Plan) -> None:
    program = small_plan.programs["d1"]
    far = Send(Part(program.sends[0].part.tensor, ((0, 1), (0, 4), (0, 1), (0, 8))), "d0")
    program = replace(program, sends=(*program.sends, far))
    with pytest.raises(ModelError, match="never happen"):
        check({**small_plan.programs, "d1": program})


def test_check_finds_repeated_sends_and_missing_answers(small_plan: Plan) -> None:
    program = small_plan.programs["d1"]
    twice = replace(program, sends=(*program.sends, program.sends[0]))
    with pytest.raises(ModelError, match="twice"):
        check({**small_plan.programs, "d1": twice})
    silent = replace(small_plan.programs["d0"], answers=())
    with pytest.raises(ModelError, match="whole output"):
        check({**small_plan.programs, "d0": silent})
