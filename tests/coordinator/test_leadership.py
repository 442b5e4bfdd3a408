"""Who leads, by scripted statuses and times."""

from __future__ import annotations

import pytest

from agent.coordinator.leadership import BEAT_S, CLAIM_S, LISTEN_S, MAX_TERM, MISSED_S, Leadership
from agent.wire.messages import Status


def told(name: str, term: int = 0, session: str = "1", priority: int = 0) -> Status:
    return Status(name, session, "online", "coordinator", term=term, priority=priority)


def gone(name: str, session: str = "1") -> Status:
    return Status(name, session, "offline", "coordinator")


class Seat:
    """The leadership of one coordinator, on a clock of its own."""

    def __init__(self, name: str = "b", priority: int = 0) -> None:
        self.now = 100.0
        self.name = name
        self.leadership = Leadership(name, "1", priority, self.now)
        self.leadership.connected(self.now)

    def hear(self, *statuses: Status) -> None:
        for status in statuses:
            self.leadership.see(status, self.now)

    def later(self, seconds: float) -> bool:
        """Let time pass, a tick at least every beat; tell whether this coordinator leads."""
        until = self.now + seconds
        while self.now < until:
            self.now = min(until, self.now + BEAT_S)
            self.leadership.wake(self.now)
            self.leadership.pass_time(self.now)
        return self.leadership.leads


def listening(name: str = "b", *others: Status, priority: int = 0) -> Seat:
    """Return a coordinator that has heard all that the broker has, but not for long enough."""
    seat = Seat(name, priority)
    seat.hear(*others, told(name))
    return seat


def test_who_is_alone_leads_once_he_has_listened() -> None:
    seat = listening()
    assert not seat.later(LISTEN_S - 0.1)
    assert seat.later(0.1)
    assert (seat.leadership.term, seat.leadership.leader) == (1, "b")


def test_nobody_leads_before_his_own_status_came_back() -> None:
    seat = Seat()
    assert not seat.later(10 * LISTEN_S)
    seat.hear(told("b", session="of another life"))
    assert not seat.later(10 * LISTEN_S)
    seat.hear(told("b"))
    assert seat.later(LISTEN_S)


def test_who_hears_of_a_leader_stands_by() -> None:
    seat = listening("b", told("c", term=3))
    for _ in range(20):
        assert not seat.later(BEAT_S)
        seat.hear(told("c", term=3))
    assert seat.leadership.leader == "c"


def test_a_will_is_acted_on_at_once_with_a_new_term() -> None:
    seat = listening("b", told("c", term=3))
    seat.later(1.0)
    seat.hear(gone("c"))
    seat.leadership.pass_time(seat.now)
    assert seat.leadership.term == 4


def test_an_old_will_says_nothing_of_a_new_life() -> None:
    seat = listening("b", told("c", term=3, session="2"), gone("c", session="1"))
    assert not seat.later(MISSED_S - 0.1)


def test_silence_is_acted_on_once_beats_are_missed() -> None:
    seat = listening("b", told("c", term=3))
    assert not seat.later(MISSED_S - 0.1)
    assert seat.later(0.1)


@pytest.mark.parametrize(
    ("name", "priority", "turn"), [("a", 0, 0), ("b", 0, 1), ("a", -1, 2), ("b", 2, 0)]
)
def test_claims_are_made_in_order(name: str, priority: int, turn: int) -> None:
    others = [told(other) for other in ("a", "b", "c") if other != name]
    seat = listening(name, told("boss", term=1), *others, priority=priority)
    seat.later(0.5)
    seat.hear(gone("boss"))
    if turn:
        assert not seat.later(turn * CLAIM_S - 0.1)
    assert seat.later(0.1)


def test_who_is_not_ready_gives_others_time() -> None:
    seat = listening("b", told("c", term=1))
    seat.leadership.handicap_s = 3.0
    seat.later(0.5)
    seat.hear(gone("c"))
    assert not seat.later(2.9)
    assert seat.later(0.1)


def test_who_claims_before_keeps_the_others_from_it() -> None:
    seat = listening("b", told("boss", term=1), told("a"))
    seat.hear(gone("boss"))
    seat.later(CLAIM_S / 2)
    seat.hear(told("a", term=2))
    assert not seat.later(CLAIM_S)


def leading(name: str = "b") -> Seat:
    seat = listening(name)
    assert seat.later(LISTEN_S)
    return seat


@pytest.mark.parametrize(
    ("other", "stays"), [(told("a", 1), True), (told("c", 1), False), (told("a", 2), False)]
)
def test_of_two_leaders_one_steps_down(other: Status, stays: bool) -> None:  # noqa: FBT001
    seat = leading()
    seat.hear(other)
    assert seat.leadership.leads == stays


def test_a_leader_that_hears_of_a_later_reign_listens_anew() -> None:
    seat = leading()
    seat.leadership.hear_of_term(1, seat.now)
    assert seat.leadership.leads
    seat.leadership.hear_of_term(7, seat.now)
    assert not seat.leadership.leads
    seat.hear(told("b"))
    seat.later(LISTEN_S)
    assert seat.leadership.term == 8


def test_a_leader_that_slept_listens_anew() -> None:
    seat = leading()
    seat.now += MISSED_S + 0.1
    seat.leadership.wake(seat.now)
    assert not seat.leadership.leads
    # What it said when it led may still be on the way back.
    seat.hear(told("b", term=1))
    assert not seat.later(5 * LISTEN_S)
    seat.hear(told("b"))
    assert seat.later(LISTEN_S)


def test_a_standby_that_slept_does_not_take_its_own_silence_for_the_leaders() -> None:
    seat = listening("b", told("c", term=3))
    seat.now += 10 * MISSED_S
    seat.leadership.wake(seat.now)
    seat.leadership.pass_time(seat.now)
    assert not seat.later(MISSED_S - 0.1)
    assert seat.leadership.leader == "c"


def test_the_silence_of_a_broken_connection_is_nobodys() -> None:
    seat = listening("b", told("c", term=3))
    seat.later(MISSED_S - 1.0)
    seat.leadership.connected(seat.now)
    assert not seat.later(MISSED_S - 0.1)


def test_statuses_are_due_every_beat() -> None:
    seat = leading()
    beats = 0
    for _ in range(100):
        seat.later(0.1)
        beats += seat.leadership.beats(seat.now)
    assert beats == pytest.approx(10.0 / BEAT_S, abs=1)


def test_an_impossible_term_is_not_believed() -> None:
    seat = leading()
    seat.hear(told("c", term=MAX_TERM))
    seat.leadership.hear_of_term(MAX_TERM, seat.now)
    assert seat.leadership.term == 1
