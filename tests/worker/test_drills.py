"""Drills in the core: where the failure comes among the effects, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from agent.errors import WireError
from agent.wire.drill import Drill, Drilled
from agent.wire.messages import decode_json, encode_json
from agent.worker import events as ev
from tests.builders import only
from tests.worker.test_core import (
    KEY,
    PICTURE,
    REPLY,
    Device,
    border,
    concluding,
    plan,
    serving,
)

if TYPE_CHECKING:
    from agent.worker.events import Effect


def drill(point: str, **fields: Any) -> Drill:
    given = {"session": "life-of-a", "fault": "die", "model": "m", "request": "r1", **fields}
    return msgspec.convert({"reference": "d1", "sender": "alice", "point": point, **given}, Drill)


def armed(point: str, **fields: Any) -> Device:
    """Return a serving device with a drill."""
    return arm(serving(drills=True), point, **fields)


def arm(device: Device, point: str, **fields: Any) -> Device:
    assert states(device.do(ev.DrillAsked(drill(point, **fields)))) == ["armed"]
    return device


def states(effects: list[Effect]) -> list[str]:
    return [told.drilled.state for told in only(ev.TellDrilled, effects)]


def kinds(effects: list[Effect]) -> list[type]:
    return [type(effect) for effect in effects]


def step(device: Device, job: ev.Run) -> list[Effect]:
    return device.finish(job, plan()[1]["a"])


# Points ------------------------------------------------------------------------------------------


def test_a_request_that_is_received_meets_the_drill_before_all_else() -> None:
    effects = armed("received").ask()
    assert kinds(effects) == [ev.FailNow, ev.Decode]


def test_a_request_that_is_passed_on_is_received_as_well() -> None:
    device = armed("received")
    mine = ev.RequestArrived("m", "r1", KEY.input, PICTURE, REPLY, 3.0, redelivered=True)
    assert only(ev.FailNow, device.do(mine))


def test_the_drill_comes_before_its_step() -> None:
    device = armed("step", step=2)
    device.ask()
    first = device.decoded()
    assert kinds(first) == [ev.Run]
    step(device, only(ev.Run, first)[0])
    assert kinds(device.do(border("a", 3)))[:2] == [ev.FailNow, ev.Run]


def test_a_device_with_fewer_steps_fails_before_its_last() -> None:
    device = armed("step", step=9)
    device.ask()
    (first,) = only(ev.Run, device.decoded())
    step(device, first)
    assert only(ev.FailNow, device.do(border("a", 3)))


def test_the_drill_comes_after_the_first_halo() -> None:
    device = armed("sent")
    device.ask()
    (first,) = only(ev.Run, device.decoded())
    effects = step(device, first)
    sent = [number for number, kind in enumerate(kinds(effects)) if kind is ev.SendPiece]
    assert kinds(effects).index(ev.FailNow) == sent[0] + 1


def test_the_drill_comes_before_the_answer() -> None:
    device = arm(concluding(drills=True), "answer")
    effects = device.do(ev.Concluded(KEY, plan()[0].digest, {"task": "tensor"}, None))
    assert kinds(effects)[:2] == [ev.FailNow, ev.PublishAnswer]


def test_other_requests_do_not_meet_it() -> None:
    for point in ("received", "step", "sent"):
        device = armed(point, request="mine")
        effects = device.ask()
        (first,) = only(ev.Run, device.decoded())
        effects += step(device, first)
        assert not only(ev.FailNow, effects), point
    assert not only(ev.FailNow, armed("received", model="n").ask())


def test_a_drill_is_met_once() -> None:
    device = armed("received")
    assert only(ev.FailNow, device.ask())
    assert not only(ev.FailNow, device.ask("r1", b"the same id for another picture"))
    assert states(device.do(ev.ResultSeen(KEY))) == []


# Refusals ----------------------------------------------------------------------------------------


def refusal(device: Device, asked: Drill) -> Drilled:
    (told,) = only(ev.TellDrilled, device.do(ev.DrillAsked(asked)))
    assert told.sender == "alice"
    assert told.drilled.state == "refused"
    return told.drilled


def test_a_device_that_does_not_allow_drills_says_how_to() -> None:
    device = serving()
    told = refusal(device, drill("received"))
    assert (told.device, told.reference) == ("a", "d1")
    assert "allowed = true under [drill]" in told.reason
    assert not only(ev.FailNow, device.ask())


def test_a_drill_for_an_earlier_life_of_the_process_is_refused() -> None:
    device = serving(drills=True)
    assert "restarted" in refusal(device, drill("received", session="before")).reason
    assert not only(ev.FailNow, device.ask())


def test_a_second_drill_waits_for_the_first_to_be_over() -> None:
    device = armed("received", request="r2")
    assert "try again later" in refusal(device, drill("received", reference="d2")).reason
    assert not only(ev.FailNow, device.ask())


# Forgotten ---------------------------------------------------------------------------------------


def test_a_drill_lapses() -> None:
    device = armed("received", lapses_s=5.0)
    assert device.core.next_timer() == 5.0
    assert states(device.tick(4.9)) == []
    assert states(device.tick(5.0)) == ["lapsed"]
    assert device.core.next_timer() is None
    assert not only(ev.FailNow, device.ask())


def test_a_drill_whose_request_is_answered_without_it_is_missed() -> None:
    device = armed("answer")
    device.ask()
    assert states(device.do(ev.ResultSeen(ev.RequestKey("m", "other", KEY.input)))) == []
    assert states(device.do(ev.ResultSeen(KEY))) == ["missed"]
    arm(device, "answer")


# Messages ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"fault": "explode"},
        {"point": "tomorrow"},
        {"seconds": 0.0},
        {"seconds": 61.0},
        {"seconds": float("nan")},
        {"lapses_s": 301.0},
        {"step": 0},
        {"request": "a/b"},
        {"sender": "#"},
        {"reference": "+"},
        {"more": 1},
    ],
    ids=str,
)
def test_a_drill_out_of_bounds_is_refused(wrong: dict[str, Any]) -> None:
    good = msgspec.to_builtins(drill("sent"))
    assert decode_json(encode_json(drill("sent")), Drill) == drill("sent")
    with pytest.raises(WireError):
        decode_json(msgspec.json.encode(good | wrong), Drill)
