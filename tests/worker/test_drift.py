"""Drift: what steps take against what was predicted."""

from __future__ import annotations

from random import Random

import pytest

from agent.worker.drift import FEWEST_REQUESTS, Drifts


def noted(drifts: Drifts, *ratios: float, plan: str = "p") -> list[bool]:
    return [drifts.note("m", plan, ratio * 0.1, 0.1) for ratio in ratios]


def test_a_slowdown_is_told_once_and_its_end_again() -> None:
    drifts = Drifts()
    noted(drifts, *[1.0] * 20)
    assert drifts.ratios({"m": "p"}) == {"m": 1.0}
    assert noted(drifts, *[2.0] * 30).count(True) <= 4
    assert drifts.ratios({"m": "p"})["m"] == pytest.approx(2.0, rel=0.02)
    assert any(noted(drifts, *[1.0] * 30))
    assert drifts.ratios({"m": "p"})["m"] == pytest.approx(1.0, rel=0.02)


def test_noise_and_a_single_slow_request_are_not_told() -> None:
    drifts, random = Drifts(), Random(1)
    assert not any(noted(drifts, *(random.uniform(0.9, 1.15) for _ in range(500))))
    assert not any(noted(drifts, 2.0, 1.0, 1.0))


def test_cold_requests_and_a_few_say_nothing() -> None:
    drifts = Drifts()
    noted(drifts, 9.0, 9.0, *[1.0] * (FEWEST_REQUESTS - 3))
    assert drifts.ratios({"m": "p"}) == {}
    noted(drifts, 1.0)
    assert drifts.ratios({"m": "p"}) == {"m": 1.0}


def test_another_plan_begins_anew() -> None:
    drifts = Drifts()
    noted(drifts, *[2.0] * 20)
    noted(drifts, *[1.0] * 3, plan="q")
    assert drifts.ratios({"m": "q"}) == {}
    assert drifts.ratios({"m": "p"}) == {}


def test_what_was_not_predicted_or_not_measured_is_no_drift() -> None:
    drifts = Drifts()
    assert not any(drifts.note("m", "p", 1.0, 0.0) for _ in range(20))
    assert drifts.ratios({"m": "p"}) == {}
