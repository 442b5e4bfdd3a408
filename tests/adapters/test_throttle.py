"""Of many lines that are alike some are told, and how many more there were."""

from __future__ import annotations

import string

from agent.adapters.throttle import BURST, MAX_KINDS, OTHER_BURST, WINDOW_S, Throttle


def refused(number: int) -> str:
    return f"refused a message on halomq/1/home/device/pi-{number}/inbox: not a message"


def test_lines_alike_are_counted_and_told_when_their_time_is_over() -> None:
    throttle = Throttle()
    told = [throttle.admits("warning", refused(n), n / 100) for n in range(OTHER_BURST + 41)]
    assert sum(told) == OTHER_BURST
    assert all(told[:OTHER_BURST])
    assert throttle.admits("warning", "another kind of line", 1.0)
    assert throttle.settle(WINDOW_S - 0.01) == []
    assert throttle.settle(WINDOW_S) == [
        ("warning", "... 41 more like this in the last 10 s: refused a message on *")
    ]
    assert throttle.admits("warning", refused(1), WINDOW_S)


def test_what_was_told_in_full_is_not_counted() -> None:
    throttle = Throttle()
    assert throttle.admits("warning", refused(1), 0.0)
    assert throttle.settle(2 * WINDOW_S) == []


def test_a_fleet_may_tell_more_of_its_ordinary_life() -> None:
    throttle = Throttle()
    told = [throttle.admits("info", f"pi-{n} is online", 0.0) for n in range(2 * BURST["info"])]
    assert sum(told) == BURST["info"]


def test_kinds_of_lines_are_bounded() -> None:
    throttle = Throttle()
    letters = string.ascii_lowercase
    names = [a + b + c for a in letters for b in letters for c in "abc"]
    told = [throttle.admits("warning", f"{name} is refused", 0.0) for name in names]
    assert sum(told) == MAX_KINDS + OTHER_BURST
    rest = len(names) - MAX_KINDS - OTHER_BURST
    assert throttle.settle(WINDOW_S) == [
        ("warning", f"... {rest} more like this in the last 10 s: others")
    ]
