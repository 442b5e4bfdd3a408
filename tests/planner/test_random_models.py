"""Whatever is cut, wherever: the devices together give what one device gives."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis.strategies import randoms

from agent.planner import compile_plan
from tests.planner import soak, sweep
from tests.planner.oracle import Builder, Fleet, devices, load
from tests.planner.sketch import Sketch

if TYPE_CHECKING:
    from pathlib import Path

EXAMPLES = 500  # for more see soak.py


@soak.exploring(EXAMPLES, derandomize=True)
@given(random=randoms(use_true_random=False))
def test_a_model_split_anyhow_gives_the_same(
    tmp_path_factory: pytest.TempPathFactory, random: Random
) -> None:
    soak.run(random, tmp_path_factory.getbasetemp() / "random.onnx")


@pytest.mark.parametrize("kind", [[], ["--exact"], ["--integers"]])
def test_the_soak_tells_how_far_it_is_and_removes_what_is_right(
    kind: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert soak.main(["--examples", "3", "--keep", str(tmp_path), *kind]) == 0
    assert "3 examples" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_the_soak_keeps_the_smallest_model_that_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(random: Random, path: Path, _kind: soak.Kind) -> soak.Outcome:
        size = random.randint(0, 1000)
        path.write_text(str(size))
        if size > 6:
            raise soak.WrongAnswerError("error 0.5; cuts [1], layouts 2x1 1x2")
        return soak.Outcome(0.0, "")

    monkeypatch.setattr(soak, "run", fail)
    assert soak.main(["--first", "7", "--examples", "40", "--keep", str(tmp_path)]) == 1
    assert "error 0.5; cuts [1], layouts 2x1 1x2" in capsys.readouterr().out
    assert (tmp_path / "7.onnx").read_text() == "7"


def test_the_sweep_tells_what_became_of_every_quantized_model(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "FLEETS", sweep.FLEETS[:1])
    assert sweep.main(["--models", "espcn", "--threads", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == [f"espcn, {way}" for way in sweep.WAYS]


def test_a_class_may_be_another_one_only_if_it_scores_as_high() -> None:
    s = Sketch(Random(0), (1, 3, 2, 2), 17)
    classes = s.add("ArgMax", "x", axis=1, keepdims=0)
    scores = np.array([0.5, 1.0, 1.0 + 1e-7], np.float32).reshape(1, 3, 1, 1).repeat(2, 2)
    expected = np.full((1, 2, 1), 2)

    def error(found: int) -> float:
        answers = {classes: (np.full((1, 2, 1), found), expected), "x": (scores, scores)}
        return soak.error_of(s, answers)

    assert error(2) == 0
    assert 0 < error(1) < 1e-6
    assert error(0) == pytest.approx(0.5)


def test_a_fleet_answers_again_and_again(tmp_path: Path) -> None:
    b = Builder((1, 3, 12, 8))
    path = b.save(tmp_path / "model.onnx", b.conv(b.conv("x", 4), 4))
    model, graph = load(path)
    fleet = Fleet(compile_plan(graph, devices(1, 1), model_name="m", layouts=2), model)
    first = b.rng.standard_normal((1, 3, 12, 8)).astype("float32")
    once, other, again = fleet.run(first), fleet.run(first + 1), fleet.run(first)
    assert once[0].tobytes() == again[0].tobytes() != other[0].tobytes()
