"""How long a device is held back that comes and goes."""

from __future__ import annotations

from agent.coordinator.flapping import CALM_S, FIRST_HOLD_S, FREE, LONGEST_HOLD_S, Flapping


def flap(flapping: Flapping, times: int, now: float = 0.0, every_s: float = 1.0) -> float:
    """Have a device go and come `times`; return the time of its last return."""
    for _ in range(times):
        now += every_s
        flapping.went("a", now)
        flapping.came("a", now)
    return now


def test_restarts_are_free() -> None:
    flapping = Flapping()
    flapping.came("a", 0.0)
    now = flap(flapping, FREE)
    assert flapping.holds("a", now) == 0.0
    assert flapping.next_return(now) is None


def test_each_further_one_holds_it_back_for_longer() -> None:
    flapping = Flapping()
    now = flap(flapping, FREE + 1)
    assert flapping.holds("a", now) == FIRST_HOLD_S
    assert flapping.holds("a", now + 1.0) == FIRST_HOLD_S - 1.0
    assert flapping.holds("b", now) == 0.0
    assert flapping.next_return(now) == now + FIRST_HOLD_S
    now = flap(flapping, 1, now)
    assert flapping.holds("a", now) == 2 * FIRST_HOLD_S
    now = flap(flapping, 1, now)
    assert flapping.holds("a", now) == 4 * FIRST_HOLD_S


def test_there_is_a_longest_time() -> None:
    flapping = Flapping()
    now = flap(flapping, 5000)
    assert flapping.holds("a", now) == LONGEST_HOLD_S
    assert flapping.holds("a", now + LONGEST_HOLD_S) == 0.0


def test_after_a_calm_time_it_is_forgotten() -> None:
    flapping = Flapping()
    now = flap(flapping, FREE + 3)
    now = flap(flapping, 1, now, every_s=CALM_S + 1.0)
    assert flapping.holds("a", now) == 0.0


def test_a_long_absence_is_no_flapping() -> None:
    flapping = Flapping()
    now = flap(flapping, FREE)
    flapping.went("a", now)
    flapping.came("a", now + CALM_S + 1.0)
    assert flapping.holds("a", now + CALM_S + 1.0) == 0.0
