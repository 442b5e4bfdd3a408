"""The director on a clock of the test's own, against a fleet that is played by a few lines."""

from __future__ import annotations

import heapq
from itertools import count, pairwise
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest

from agent.drill import director as dr
from agent.drill.course import At, Course
from agent.drill.director import Director
from agent.drill.load import MOST_OPEN, Ask
from agent.wire.drill import Drilled
from agent.wire.messages import Answer, Failure, Status
from agent.wire.tensors import tensor_message
from tests.builders import header_of
from tests.worker.test_core import PROGRAMS

if TYPE_CHECKING:
    from agent.drill.report import Figures
    from agent.wire.drill import Drill

ANSWER_S = 0.2
ASKED = "drill-1-9"  # in peace, before anything fails
RESTART_S = 4.0
OUTPUTS = {"scores": np.arange(4.0, dtype=np.float32)}


class Played:
    """Devices a, b and c that answer each request after `ANSWER_S`, and do as drills say.

    `quiet` are the faults that the fleet does not plan around; `deaf` devices tell nothing.
    """

    def __init__(self, course: Course, **how: Any) -> None:
        self.now = 0.0
        self.how = how
        self.director = Director(course, [None, None], "alice", "drill-1")
        self._events: list[tuple[float, int, Any]] = []
        self._order = count()
        self.header = header_of(PROGRAMS, 1)
        self.lives = dict.fromkeys("abc", 1)
        self.drill: Drill | None = None
        self.asked: list[str] = []
        self.down: set[str] = set()

    def later(self, seconds: float, act: Any) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._order), act))

    def tell(self, event: dr.Event) -> None:
        for effect in self.director.handle(event, self.now):
            if isinstance(effect, Ask):
                self._asked(effect)
            else:
                self._drilled(effect)

    def told(self, state: str) -> None:
        assert self.drill is not None
        drilled = {"device": self.device, "reference": self.drill.reference, "state": state}
        self.tell(dr.DrilledSeen(msgspec.convert(drilled, Drilled)))

    def announce(self, devices: str) -> None:
        self.header = msgspec.structs.replace(
            self.header, epoch=self.header.epoch + 1, devices=tuple(devices)
        )
        self.tell(dr.PlanSeen(self.header))
        self.statuses()

    def statuses(self) -> None:
        for device, life in self.lives.items():
            state = "offline" if device in self.down else "online"
            plans = {"m": self.header.epoch} if device in self.header.devices else {}
            status = {"device": device, "session": f"{device}{life}", "state": state}
            self.tell(dr.StatusSeen(msgspec.convert({**status, "plans": plans}, Status)))

    def run(self, seconds: float = 600.0) -> Director:
        self.tell(dr.PlanSeen(self.header))
        self.statuses()
        while not self.director.done and self.now < seconds:
            due = self.director.next_timer(self.now)
            assert due > self.now
            if self._events and self._events[0][0] <= due:
                self.now, _, act = heapq.heappop(self._events)
                act()
            else:
                self.now = due
                self.tell(dr.Tick())
        return self.director

    def _asked(self, ask: Ask) -> None:
        self.asked.append(ask.request)
        drill = self.drill
        if drill is not None and ask.request == drill.request:
            self.later(0.05, self._fail if self.how.get("meets", True) else self._miss)
        answers = self.how.get("answers", self._right)(ask)
        for number, answer in enumerate(answers):
            seconds = ANSWER_S * (number + 1)
            self.later(seconds, lambda answer=answer: self.tell(dr.AnswerSeen(ask.request, answer)))

    @staticmethod
    def _right(ask: Ask) -> list[Answer]:
        return [answer_of(ask.request)]

    def _miss(self) -> None:
        self.told("missed")

    def _drilled(self, effect: dr.AskDrill) -> None:
        self.device, self.drill = effect.device, effect.drill
        assert effect.drill.session == f"{effect.device}{self.lives[effect.device]}"
        reply = self.how.get("reply", "armed")
        if reply:
            self.later(0.02, lambda: self.told(reply))

    def _fail(self) -> None:
        assert self.drill is not None
        self.told("met")
        fault = self.drill.fault
        if fault in self.how.get("unnoticed", ()):
            self.later(self.drill.seconds, lambda: self.told("over"))
            return
        self.down.add(self.device)
        self.later(0.1, lambda: self.announce("abc".replace(self.device, "")))
        if fault != "die":
            self.later(self.drill.seconds, lambda: self.told("over"))
        if fault != "die" or self.how.get("restarts", True):
            self.later(RESTART_S, lambda: self._back(restarted=fault == "die"))

    def _back(self, *, restarted: bool) -> None:
        self.down.discard(self.device)
        self.lives[self.device] += restarted
        self.statuses()
        self.later(1.0, lambda: self.announce("abc"))


def answer_of(request: str, outputs: Any = None, error: Failure | None = None) -> Answer:
    told = outputs or OUTPUTS
    return Answer(
        request,
        "m",
        "0" * 32,
        ok=error is None,
        outputs=None if error else {name: tensor_message(value) for name, value in told.items()},
        error=error,
    )


def course(**fields: Any) -> Course:
    return Course("m", **{"devices": ("b",), "faults": ("die",), **fields})


def only_row(played: Played) -> Figures:
    (row,) = played.director.report().figures
    return row


# A fault that is overcome ------------------------------------------------------------------------


def test_a_device_dies_and_comes_back() -> None:
    played = Played(course())
    report = played.run().report()
    row = only_row(played)
    assert report.ok
    assert (row.outcome, row.in_flight, row.reason) == ("back", "identical", "")
    assert row.replanned_s == pytest.approx(0.1)
    assert row.back_s == pytest.approx(RESTART_S + 1.0)
    for latency in (row.before_ms, row.during_ms, row.after_ms, row.in_flight_ms):
        assert latency == pytest.approx(ANSWER_S * 1e3)
    assert report.totals.sent == report.totals.right == len(played.asked)
    assert 0 < row.tally.sent < report.totals.sent


def test_a_freeze_that_nobody_notices_is_over_when_the_agent_says_so() -> None:
    played = Played(course(faults=("freeze",), seconds=2.0), unnoticed=("freeze",))
    assert played.run().report().ok
    assert only_row(played).replanned_s is None
    assert only_row(played).back_s == pytest.approx(2.0)


def test_a_freeze_that_is_noticed_only_once_it_is_over_is_waited_for() -> None:
    played = Played(course(faults=("freeze",), seconds=2.0), unnoticed=("freeze",))
    played.later(9.0, lambda: played.announce("abc"))
    played.later(9.5, lambda: played.announce("ac"))
    played.later(11.0, lambda: played.announce("abc"))
    assert played.run().report().ok
    row = only_row(played)
    # Serving again, it was not yet back to stay; and a plan with the device in it is no help.
    assert row.replanned_s is not None
    assert row.back_s is not None
    assert 2.0 < row.replanned_s < row.back_s
    assert row.back_s - row.replanned_s == pytest.approx(1.5)


def test_every_fault_comes_to_every_device_at_every_point() -> None:
    points = (At("received"), At("step", 3))
    all_of_it = course(
        devices=("a", "b", "c"), faults=("die", "drop"), points=points, rounds=2, seconds=1.0
    )
    report = Played(all_of_it).run(3000.0).report()
    assert report.ok
    rows = [(row.case.fault, row.case.device, str(row.case.at)) for row in report.figures]
    assert len(rows) == 24
    assert set(rows) == {
        (fault, device, at)
        for fault in ("die", "drop")
        for device in "abc"
        for at in ("received", "step:3")
    }
    # No device is struck twice in a row.
    assert all(one[1] != other[1] for one, other in pairwise(rows))


def test_requests_go_out_while_the_device_is_away() -> None:
    played = Played(course(interval_s=0.5, pause_s=2.0))
    played.run()
    assert only_row(played).tally.sent >= (RESTART_S + 1.0 + 2.0) / 0.5


# What breaks the promise -------------------------------------------------------------------------


def check_bad(answers: Any, **counts: Any) -> None:
    report = Played(course(), answers=answers).run().report()
    totals = report.as_json()["totals"]
    assert {name: totals[name] for name in counts} == counts
    assert not report.ok
    assert any(name in " ".join(report.verdict()) for name in ("drill-1-20", "drill-1-21"))


def test_a_lost_request_fails_the_drill() -> None:
    check_bad(lambda ask: [] if ask.request == "drill-1-20" else Played._right(ask), lost=1)


def test_a_second_answer_that_differs_fails_the_drill() -> None:
    late = Failure("deadline", "the deadline passed")
    twice = ("drill-1-20", "drill-1-21")

    def answers(ask: Ask) -> list[Answer]:
        more = [answer_of(ask.request, error=late)] if ask.request in twice else []
        return [*Played._right(ask), *more]

    check_bad(answers, duplicated=2, wrong=0, errors={})


def test_the_same_answer_again_does_not_fail_the_drill() -> None:
    answers = lambda ask: Played._right(ask) * (2 if ask.request == ASKED else 1)  # noqa: E731
    report = Played(course(), answers=answers).run().report()
    assert report.ok
    assert report.totals.repeated == (ASKED,)


def test_what_the_broker_delivers_again_is_no_second_answer() -> None:
    played = Played(course())
    played.later(5.0, lambda: played.tell(dr.AnswerSeen(ASKED, answer_of(ASKED), again=True)))
    report = played.run().report()
    assert report.ok
    assert ASKED in played.asked
    assert report.totals.repeated == ()


def test_a_request_that_is_lost_in_peace_fails_the_drill() -> None:
    answers = lambda ask: [] if ask.request == ASKED else Played._right(ask)  # noqa: E731
    report = Played(course(), answers=answers).run().report()
    assert report.totals.lost == (ASKED,)
    assert all(row.passed for row in report.figures)
    assert not report.ok


def test_a_fleet_that_answers_nothing_gets_no_more_requests() -> None:
    silent = lambda ask: Played._right(ask) if len(ask.request) <= len(ASKED) else []  # noqa: E731
    played = Played(course(timeout_s=1000.0), answers=silent)
    played.run(60.0)
    assert played.director.report().totals.open == MOST_OPEN + 1  # and the one in flight


def test_a_wrong_answer_fails_the_drill() -> None:
    off = {"scores": OUTPUTS["scores"] + np.float32(1.0)}
    check_bad(
        lambda ask: [answer_of(ask.request, off if ask.request == "drill-1-20" else None)], wrong=1
    )


def test_an_error_does_not_fail_the_drill_but_is_counted() -> None:
    late = Failure("deadline", "the deadline passed")
    answers = lambda ask: [  # noqa: E731
        answer_of(ask.request, error=late if ask.request == "drill-1-20" else None)
    ]
    report = Played(course(), answers=answers).run().report()
    assert report.ok
    assert report.totals.errors == {"deadline": 1}


def test_a_device_that_does_not_come_back_ends_the_drill() -> None:
    both = course(faults=("drop", "die"), patience_s=30.0)
    mixed = Played(both, restarts=False).run().report()
    assert [row.outcome for row in mixed.figures] == ["back", "not back"]
    assert not mixed.ok
    played = Played(course(devices=("b", "c"), patience_s=30.0), restarts=False)
    report = played.run().report()
    row = only_row(played)
    assert (row.outcome, row.back_s) == ("not back", None)
    assert "nothing started it again" in row.reason
    assert row.replanned_s == pytest.approx(0.1)
    assert [case.device for case in report.left] == ["c"]


# What does not come to a fault -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "outcome"),
    [
        ({"reply": "refused"}, "refused"),
        ({"reply": None}, "silent"),
        ({"meets": False}, "missed"),
    ],
)
def test_a_fault_that_does_not_come_is_told_and_the_next_one_asked_for(
    how: dict[str, Any], outcome: str
) -> None:
    report = Played(course(devices=("b", "c")), **how).run().report()
    assert [row.outcome for row in report.figures] == [outcome] * 2
    assert not report.ok
    assert sum(outcome in line for line in report.verdict()) == 2


def test_only_the_answering_device_can_fail_before_its_answer() -> None:
    played = Played(course(devices=("a", "b"), points=(At("answer"),)))
    rows = played.run().report().figures
    assert [(row.case.device, row.outcome) for row in rows] == [("a", "back"), ("b", "skipped")]


def test_nothing_fails_on_a_fleet_that_is_not_whole() -> None:
    played = Played(course(patience_s=20.0))
    played.down.add("b")
    director = played.run()
    assert director.failure == "nothing was drilled: b did not come to serve m by its plan"
    assert played.drill is None


def test_nothing_fails_where_the_fleet_answers_with_errors() -> None:
    refused = Failure("input", "a picture of 96 x 96 is wanted")
    played = Played(course(), answers=lambda ask: [answer_of(ask.request, error=refused)])
    director = played.run()
    assert director.done
    assert director.failure is not None
    assert refused.text in director.failure
    assert played.drill is None
