"""Pulses: who is taken for dead because it is silent, and who never is."""

from __future__ import annotations

import random

import pytest

from agent.coordinator.pulses import SILENCE_S, Pulses
from agent.wire.messages import BEAT_S, Beat

FLEET = ("a", "b", "c", "d")


class Listener:
    """What a coordinator hears; each beat of a device tells whom it suspects."""

    def __init__(self, fleet: tuple[str, ...] = FLEET) -> None:
        self.pulses = Pulses()
        self.fleet = fleet
        self.found: dict[str, float] = {}
        self._begun: set[str] = set()

    def beat(self, device: str, now: float, *, waits: bool = True) -> None:
        first = device not in self._begun
        self._begun.add(device)
        self.pulses.take(Beat(device, "s", ("m",) if waits else (), first), now)
        if waits:
            for suspect in self.pulses.suspects("m", {*self.fleet, device}, now):
                self.found.setdefault(suspect, now)

    def pause(self) -> None:
        self._begun.clear()


def run(
    listener: Listener,
    seconds: float,
    *,
    start: float = 0.0,
    silent: dict[str, float] | None = None,
    late_s: float = 0.0,
    waiting: bool = True,
) -> None:
    """Have the fleet beat, each device up to `late_s` late; `silent` gives when some end."""
    chance = random.Random(1)
    ends = silent or {}
    beats = sorted(
        (start + number * BEAT_S + late_s * chance.random(), device)
        for number in range(int(seconds / BEAT_S))
        for device in listener.fleet
    )
    for at, device in beats:
        if at < ends.get(device, 1e9):
            listener.beat(device, at, waits=waiting)


def test_a_device_that_falls_silent_while_others_wait_is_suspected_soon() -> None:
    listener = Listener()
    run(listener, 5.0, silent={"b": 2.0})
    assert set(listener.found) == {"b"}
    assert listener.found["b"] - 2.0 < SILENCE_S + 2 * BEAT_S


def test_a_device_that_was_silent_from_the_beginning_is_suspected_as_soon() -> None:
    listener = Listener()
    run(listener, 2.0, silent={"b": 0.0})
    assert set(listener.found) == {"b"}
    assert listener.found["b"] < SILENCE_S + 2 * BEAT_S


def test_two_of_four_may_be_silent_but_not_three() -> None:
    listener = Listener()
    run(listener, 3.0, silent={"a": 1.0, "b": 1.0})
    assert set(listener.found) == {"a", "b"}
    listener = Listener()
    run(listener, 3.0, silent={"a": 1.0, "b": 1.0, "c": 1.0})
    assert listener.found == {}


def test_nobody_is_suspected_while_nobody_waits() -> None:
    listener = Listener()
    run(listener, 5.0, silent={"b": 2.0}, waiting=False)
    assert listener.found == {}


def test_the_only_device_of_a_plan_is_suspected_when_one_on_standby_waits() -> None:
    listener = Listener(("a",))
    for number in range(10):
        listener.beat("standby", number * BEAT_S)
    assert set(listener.found) == {"a"}


@pytest.mark.parametrize("late_s", [0.05, 0.2, 0.35])
def test_irregular_beats_are_no_silence(late_s: float) -> None:
    listener = Listener()
    run(listener, 60.0, late_s=late_s)
    assert listener.found == {}


def test_whose_beats_are_irregular_is_waited_for_longer() -> None:
    calm, hectic = Listener(), Listener()
    run(calm, 20.0, silent={"b": 10.0})
    run(hectic, 20.0, silent={"b": 10.0}, late_s=0.3)
    assert calm.found["b"] < hectic.found["b"] < 13.0


def test_a_machine_that_stalls_as_a_whole_loses_nobody() -> None:
    listener = Listener()
    run(listener, 2.0)
    # All that was sent before and after the stall is read in one burst.
    for device in FLEET:
        listener.beat(device, 4.0)
    run(listener, 2.0, start=4.001)
    assert listener.found == {}


def test_a_coordinator_that_was_busy_itself_reads_what_waited_before_it_judges() -> None:
    listener = Listener()
    run(listener, 2.0)
    burst = [device for _ in range(20) for device in FLEET]
    for number, device in enumerate(burst):
        listener.beat(device, 4.0 + number * 1e-4)
    assert listener.found == {}


def test_the_time_between_requests_is_no_silence() -> None:
    listener = Listener()
    for start in range(10):
        listener.pause()
        run(listener, 0.3, start=2.0 * start)
    assert listener.found == {}
    run(listener, 3.0, start=30.0, silent={"b": 30.0})
    assert listener.found["b"] - 30.0 < SILENCE_S + 2 * BEAT_S


def test_another_life_of_a_device_begins_anew() -> None:
    listener = Listener()
    run(listener, 2.0, silent={"b": 1.0})
    listener.found.clear()
    for number in range(20, 40):
        now = number * BEAT_S
        listener.pulses.take(Beat("b", "t", ("m",), number == 20), now)
        listener.beat("a", now + 0.01)
        listener.beat("c", now + 0.01)
    assert "b" not in {d for d, at in listener.found.items() if at > 2.2}
