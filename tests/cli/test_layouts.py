"""`halomq plan` and `halomq verify` with layouts, lists, and what is not shared."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import models
from agent.cli import verify as command
from agent.cli.plan import tiles_text, undistributed_json, undistributed_lines
from agent.first_difference import FirstDifference
from agent.planner.layout import Shape
from agent.planner.plan import Block, Undistributed
from agent.verification import Verdict, Verification
from tests.field.support import halomq

if TYPE_CHECKING:
    from agent.geometry import Region

DEFECTS = Path(models.__file__).parent / "defects.onnx"


def block(*regions: Region) -> Block:
    """Return a block of which each device has one region."""
    tiles = {f"d{number}": [("t", region)] for number, region in enumerate(regions)}
    return Block(0, ("Conv 'c'",), tuple(tiles), tiles, 0, 0.0, 0.0, 0.0, False, frozenset())


@pytest.mark.parametrize(
    ("layout", "fits"),
    [
        ("rows", lambda shape: shape[1] == 1),
        ("columns", lambda shape: shape[0] == 1),
        ("grid", lambda shape: tuple(shape) in {(1, 1), (2, 1), (1, 2), (3, 1), (1, 3), (2, 2)}),
        ("any", lambda _: True),
    ],
)
def test_plan_keeps_to_the_layout(layout: str, fits: object) -> None:
    told = halomq("plan", DEFECTS, "--devices", 4, "--gflops", 1, "--layout", layout, "--json")
    assert told.status == 0, told.err
    assert callable(fits)
    shapes = [item["layout"] for item in told.json["blocks"]]
    assert all(fits(shape) for shape in shapes)
    assert max(rows * columns for rows, columns in shapes) == 4
    for item, (rows, columns) in zip(told.json["blocks"], shapes, strict=True):
        assert len(item["devices"]) == rows * columns


def test_the_table_shows_grids_as_ranges_of_rows_and_columns() -> None:
    told = halomq("plan", DEFECTS, "--devices", 4, "--gflops", 1, "--layout", "grid")
    assert "2x2" in told.out
    assert "0:48 48:96" in told.out


@pytest.mark.parametrize("name", ["plan", "verify"])
def test_a_layout_that_there_is_not_is_refused(name: str) -> None:
    halomq(name, DEFECTS, "--layout", "circles").check_refused(2, "--layout circles", "grid")


@pytest.mark.parametrize("devices", ["", "0", "65", "2,", "two", "2,-1"])
def test_verify_refuses_what_is_no_number_of_devices(devices: str) -> None:
    halomq("verify", DEFECTS, f"--devices={devices}").check_refused(2, "--devices", "64")


ROW, ALL = ((0, 1), (0, 8)), (0, 8)


@pytest.mark.parametrize(
    ("shape", "regions", "text"),
    [
        (Shape(1, 1), [(*ROW, ALL, ALL)], "whole"),
        (Shape(2, 1), [(*ROW, (0, 5), ALL), (*ROW, (5, 8), ALL)], "0:5 5:8 x 0:8"),
        (Shape(1, 2), [(*ROW, ALL, (0, 5)), (*ROW, ALL, (5, 8))], "0:8 x 0:5 5:8"),
        (Shape(2, 1), [(*ROW, (0, 1), (0, 1)), (*ROW, (1, 2), (0, 1))], "0:1 1:2"),
        (Shape(1, 2), [((0, 1), (0, 16)), ((0, 1), (16, 32))], "0:16 16:32"),
        (
            Shape(2, 2),
            [(*ROW, r, c) for r in ((0, 4), (4, 8)) for c in ((0, 3), (3, 8))],
            "0:4 4:8 x 0:3 3:8",
        ),
        (
            Shape(2, 2),
            [
                (*ROW, (0, 5), (0, 3)), (*ROW, (0, 5), (3, 8)),
                (*ROW, (5, 8), (0, 4)), (*ROW, (5, 8), (4, 8)),
            ],
            "0:5 x 0:3\n0:5 x 3:8\n5:8 x 0:4\n5:8 x 4:8",
        ),
    ],
)  # fmt: skip
def test_tiles_in_words(shape: Shape, regions: list[Region], text: str) -> None:
    assert tiles_text(block(*regions), shape) == text


def test_what_is_not_shared_is_told_dearest_first_and_not_endlessly() -> None:
    operators = [Undistributed(f"Op '{n}'", "is whole", n * 1e-3) for n in range(1, 9)]
    lines = list(undistributed_lines(operators))
    assert len(lines) == 6
    assert lines[0] == "not shared: Op '8' is whole (8 ms on one device)"
    assert lines[-1] == "not shared: and 3 more, 6 ms together"
    assert list(undistributed_lines([])) == []
    told = undistributed_json(operators)
    assert told[0] == {"label": "Op '8'", "reason": "is whole", "ms": 8.0}
    assert len(told) == 8


def test_verify_checks_several_in_one_run() -> None:
    told = halomq("verify", DEFECTS, "--devices", "1,2", "--layout", "rows,columns", "--json")
    assert told.status == 0, told.err
    runs = told.json["runs"]
    assert [(run["devices"], run["layout"]) for run in runs] == [
        (1, "rows"), (1, "columns"), (2, "rows"), (2, "columns"),
    ]  # fmt: skip
    assert told.json["ok"] is True
    assert told.json["identical"] == all(run["identical"] for run in runs)
    assert all((run["first_difference"] is None) == run["identical"] for run in runs)
    words = halomq("verify", DEFECTS, "--devices", "1,2")
    assert "on 1 devices" in words.out
    assert "on 2 devices" in words.out


def test_verify_says_for_several_why_it_refuses(tmp_path: Path) -> None:
    told = halomq("verify", tmp_path / "no.onnx", "--devices", "1,2", "--json")
    told.check_refused(3, "No such file")
    assert told.json["identical"] is None
    assert "No such file" in told.json["refused"]
    assert len(told.json["runs"]) == 2


def test_verify_names_the_first_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    first = FirstDifference(("Conv 'a'", "Relu 'b'"), "t", 0.5)
    verdict = Verdict("m", 4, "grid", 3, False, float("inf"), 1.0, (), 1e-5, True, first)
    monkeypatch.setattr(Verification, "__init__", lambda *_, **__: None)
    monkeypatch.setattr(Verification, "verify", lambda *_, **__: verdict)
    told = halomq("verify", DEFECTS)
    assert told.status == 1
    assert "on 4 devices (grid) in 3 blocks" in told.out
    assert "first difference: Conv 'a' .. Relu 'b', 0.5 in 't'" in told.out
    assert "more than the 1e-05 that is allowed" in told.out
    assert "integers of 8 bits" in told.out
    found = halomq("verify", DEFECTS, "--json").json
    assert found["max_rel_error"] is None
    assert found["first_difference"] == {
        "operators": ["Conv 'a'", "Relu 'b'"], "tensor": "t", "max_rel_error": 0.5,
    }  # fmt: skip
    assert command._allowed(verdict, None) == 1e-5
    assert command._allowed(verdict, 0.0) == 0.0


@pytest.mark.parametrize("ending", ["svg", "html", "json"])
def test_plan_draws_what_is_predicted(ending: str, tmp_path: Path) -> None:
    target = tmp_path / f"plan.{ending}"
    told = halomq("plan", DEFECTS, "--devices", 3, "--gflops", 1, "--timeline", target)
    assert told.status == 0, told.err
    drawn = target.read_text()
    assert all(f"device-{number}" in drawn for number in (1, 2, 3))


def test_plan_refuses_a_timeline_of_another_kind(tmp_path: Path) -> None:
    told = halomq("plan", DEFECTS, "--timeline", tmp_path / "plan.pdf")
    assert told.status != 0
    assert "give a file that ends in" in told.err


def test_plans_for_throughput_leave_less_to_do() -> None:
    """With requests to fill the waits, fewer border rows are computed twice."""
    link = ("--devices", 4, "--gflops", 5, "--link-mbit", 20, "--latency-ms", 4, "--json")
    busy = {
        objective: sum(
            block["compute_ms"]
            for block in halomq("plan", DEFECTS, "--objective", objective, *link).json["blocks"]
        )
        for objective in ("latency", "throughput")
    }
    assert busy["throughput"] < busy["latency"]


def test_plan_refuses_an_unknown_objective() -> None:
    told = halomq("plan", DEFECTS, "--objective", "thrift")
    assert told.status != 0
    assert "give one of latency, throughput" in told.err
