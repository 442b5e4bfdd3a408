"""The pulse: beats while requests are in flight, and whom it is said that one waits for."""

from __future__ import annotations

from agent.wire.messages import BEAT_S, Answer, Standby
from agent.worker import WorkerCore
from agent.worker import events as ev
from tests.builders import chain, header_of, only

TILES = {"a": (0, 4), "b": (4, 8)}
PROGRAMS = chain([TILES, TILES], 8, "a", "m")
PLAN = header_of(PROGRAMS, 1, model="m", coordinator="boss")
KEY = ev.RequestKey("m", "r", "0" * 32)


class Device:
    """A worker core that serves a plan, if it has a part in it; `now` is its clock."""

    def __init__(self, name: str = "a") -> None:
        self.core = WorkerCore(name, "s")
        self.now = 0.0
        if name not in PLAN.devices:
            self.do(ev.StandbyOffered(Standby("m", "boss", ())))
            return
        self.do(ev.PlanAnnounced("m", PLAN))
        self.do(ev.Fetched(f"{PLAN.digest}/program"))
        self.do(ev.PlanRead(PLAN.digest, PROGRAMS[name], None))
        self.do(ev.Fetched(f"{PLAN.digest}/blobs"))
        self.do(ev.Loaded(PLAN.digest))

    def do(self, event: ev.Event) -> list[ev.Effect]:
        return self.core.handle(event, self.now)

    def ask(self) -> None:
        self.do(ev.RequestArrived("m", "r", "0" * 32, b"p", ev.ReplyTo()))

    def beats(self, at: float) -> list[ev.Beat]:
        self.now = at
        return only(ev.Beat, self.do(ev.Tick()))

    def run_all(self) -> None:
        """Run what can be run without the other device."""
        effects = self.do(ev.Decoded(KEY, PLAN.digest, "image", 0.0))
        while runs := only(ev.Run, effects):
            effects = self.do(ev.StepFinished(KEY, PLAN.digest, runs[0].step, ("t",), 0.0, 0.0))


def test_an_idle_device_does_not_beat() -> None:
    device = Device()
    assert device.core.next_timer() is None
    assert device.beats(10.0) == []


def test_a_device_beats_while_a_request_is_in_flight() -> None:
    device = Device()
    device.ask()
    assert device.core.next_timer() == BEAT_S
    assert device.beats(0.9 * BEAT_S) == []
    # It is decoding: nobody keeps it waiting.
    assert device.beats(BEAT_S) == [ev.Beat((), first=True)]
    assert device.beats(1.5 * BEAT_S) == []
    assert device.beats(2 * BEAT_S) == [ev.Beat((), first=False)]


def test_a_device_with_nothing_to_do_for_a_request_says_that_it_waits() -> None:
    device = Device()
    device.ask()
    device.run_all()
    assert device.beats(BEAT_S) == [ev.Beat(("m",), first=True)]


def test_the_beats_end_with_the_last_request() -> None:
    device = Device()
    device.ask()
    assert len(device.beats(BEAT_S)) == 1
    device.do(ev.ResultSeen(KEY))
    assert device.beats(5 * BEAT_S) == []
    device.ask()
    assert device.beats(6 * BEAT_S) == [ev.Beat((), first=True)]


def test_a_request_that_was_answered_here_needs_no_beats() -> None:
    device = Device()
    device.ask()
    (refused,) = only(ev.PublishAnswer, device.do(ev.DecodeRefused(KEY, PLAN.digest, "no picture")))
    assert isinstance(refused.answer, Answer)
    assert device.beats(BEAT_S) == []


def test_a_device_on_standby_waits_for_those_that_serve() -> None:
    device = Device("c")
    device.ask()
    assert device.beats(BEAT_S) == [ev.Beat(("m",), first=True)]


def test_a_request_that_nobody_has_named_is_waited_for() -> None:
    device = Device("b")
    device.do(ev.RequestArrived("m", None, "0" * 32, b"p", ev.ReplyTo()))
    assert device.beats(BEAT_S) == [ev.Beat(("m",), first=True)]


def test_a_device_that_still_loads_the_plan_does_not_say_that_it_waits() -> None:
    device = Device("c")
    programs = chain([{"c": (0, 8)}], 8, "c", "m")
    device.do(ev.PlanAnnounced("m", header_of(programs, 2, model="m", coordinator="boss")))
    device.ask()
    assert device.beats(BEAT_S) == [ev.Beat((), first=True)]
