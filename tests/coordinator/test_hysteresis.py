"""Noise leads to no new plan; what lasts does, and not too often."""

from __future__ import annotations

from random import Random

import pytest

from agent.coordinator.hysteresis import (
    FIRST_PAUSE_S,
    LASTS_S,
    LONGEST_PAUSE_S,
    STATUSES,
    Drift,
    Pause,
    is_misleading,
    worth_switching,
)

STATUS_S = 15.0


@pytest.mark.parametrize(
    ("new", "current", "expected"),
    [
        (100.0, 100.0, False),
        (98.0, 100.0, False),
        (96.0, 100.0, True),
        (0.9, 1.0, False),  # a tenth, but nobody notices so little time
        (110.0, 100.0, False),
    ],
)
def test_only_a_plan_that_is_better_by_a_margin_is_switched_to(
    new: float, current: float, *, expected: bool
) -> None:
    assert worth_switching(new, current) is expected


@pytest.mark.parametrize("ratio", [2.0, 0.5])
def test_a_drift_has_to_last(ratio: float) -> None:
    drift = Drift()
    told = [drift.lasts(ratio, number * STATUS_S) for number in range(4)]
    assert told == [False, False, True, True]
    assert STATUSES == 3
    assert LASTS_S == 2 * STATUS_S


def test_statuses_in_quick_succession_do_not_last() -> None:
    drift = Drift()
    assert not any(drift.lasts(2.0, number * 1.0) for number in range(20))


def test_what_goes_back_or_turns_begins_anew() -> None:
    drift = Drift()
    ratios = [2.0, 2.0, 1.0, 2.0, 2.0, 0.5, 0.5, 2.0, 2.0]
    assert not any(drift.lasts(r, n * STATUS_S) for n, r in enumerate(ratios))


def test_noise_never_lasts() -> None:
    drift, random = Drift(), Random(1)
    assert not any(drift.lasts(random.uniform(0.85, 1.2), n * STATUS_S) for n in range(10_000))


def test_pauses_grow_until_it_was_calm() -> None:
    pause, now, waits = Pause(), 0.0, []
    for _ in range(12):
        assert pause.over(now)
        pause.begin(now)
        assert not pause.over(now)
        waits.append(pause.until - now)
        now = pause.until
    assert waits[:3] == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S]
    assert max(waits) == LONGEST_PAUSE_S
    now = pause.until + 10 * LONGEST_PAUSE_S
    pause.begin(now)
    assert pause.until - now == FIRST_PAUSE_S


@pytest.mark.parametrize(
    ("told", "current", "expected"),
    [(100.0, 105.0, False), (100.0, 115.0, True), (115.0, 100.0, True), (0.0, 100.0, True)],
)
def test_a_prediction_that_is_far_off_is_told_anew(
    told: float, current: float, *, expected: bool
) -> None:
    assert is_misleading(told, current) is expected
