"""Whatever is cut, wherever: the devices together give what one device gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from agent.planner import compile_plan
from tests.planner import soak
from tests.planner.oracle import Builder, Fleet, devices, load

if TYPE_CHECKING:
    from pathlib import Path

EXAMPLES = 250  # for more see soak.py
_TOGETHER = 25


@pytest.mark.parametrize("first", range(0, EXAMPLES, _TOGETHER))
def test_a_model_split_anyhow_gives_the_same(first: int, tmp_path: Path) -> None:
    for number in range(first, first + _TOGETHER):
        error, split = soak.run(number, tmp_path / "model.onnx")
        assert error <= soak.TOLERANCE, f"example {number}: {split}"


def test_the_soak_tells_how_far_it_is_and_removes_what_is_right(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert soak.main(["--examples", "3", "--keep", str(tmp_path)]) == 0
    assert "3 examples" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_the_soak_keeps_the_model_that_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int, path: Path) -> soak.Outcome:
        path.write_bytes(b"a model")
        return soak.Outcome(0.5, "cuts [1], layouts 2x1 1x2")

    monkeypatch.setattr(soak, "run", fail)
    assert soak.main(["--first", "7", "--examples", "1", "--keep", str(tmp_path)]) == 1
    assert "error 0.5; cuts [1], layouts 2x1 1x2" in capsys.readouterr().out
    assert (tmp_path / "7.onnx").read_bytes() == b"a model"


def test_a_fleet_answers_again_and_again(tmp_path: Path) -> None:
    b = Builder((1, 3, 12, 8))
    path = b.save(tmp_path / "model.onnx", b.conv(b.conv("x", 4), 4))
    model, graph = load(path)
    fleet = Fleet(compile_plan(graph, devices(1, 1), model_name="m", layouts=2), model)
    first = b.rng.standard_normal((1, 3, 12, 8)).astype("float32")
    once, other, again = fleet.run(first), fleet.run(first + 1), fleet.run(first)
    assert once[0].tobytes() == again[0].tobytes() != other[0].tobytes()
