"""Drills on real processes: the command as a user gives it, and agents that do not allow it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Self

import pytest

from agent.adapters.fleet import ProcessFleet
from agent.wire.drill import Drill, Drilled
from agent.wire.messages import decode_json, encode_json
from tests.conftest import need_mosquitto
from tests.field.conftest import MODELS
from tests.field.support import (
    NOMINAL,
    POLL_S,
    Field,
    Outcome,
    Reference,
    field_of,
    halomq,
    picture,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.field

ALLOWED = {"HALOMQ_DRILL_ALLOWED": "true"}
QUICK = ("--seconds", "1", "--pause", "0.5", "--yes", "--json")


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory, defects: Reference) -> Iterator[Field]:
    """Three agents, of which device-3 does not allow drills."""
    need_mosquitto()
    folder = tmp_path_factory.mktemp("drilled")
    own = {"device-1": ALLOWED, "device-2": ALLOWED}
    with ProcessFleet(folder, 3, settings=NOMINAL, own=own) as fleet:
        made = field_of(fleet, folder)
        made.wait_online()
        made.deploy(defects)
        made.wait_for_plan(defects.name, fleet.names)
        yield made


class Supervisor:
    """Starts agents again that have ended, as systemd does."""

    def __init__(self, fleet: ProcessFleet) -> None:
        self._fleet = fleet
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.ended: list[int] = []

    def _watch(self) -> None:
        while not self._stop.wait(POLL_S):
            for name, process in list(self._fleet.processes.items()):
                if (status := process.poll()) is not None:
                    self.ended.append(status)
                    self._fleet.start(name)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def drill(field: Field, *arguments: object) -> Outcome:
    return halomq("drill", *arguments, *QUICK, broker=field.broker)


def test_devices_fail_in_flight_and_every_request_is_answered(field: Field) -> None:
    with Supervisor(field.fleet) as supervisor:
        told = drill(field, MODELS / "defects.onnx", "--devices", "device-2", "--point", "sent")
    assert told.status == 0, told.out + told.err
    report = told.json
    assert report["ok"]
    totals = report["totals"]
    assert totals["sent"] == totals["right"] > 10
    assert totals["lost"] == totals["wrong"] == totals["duplicated"] == totals["open"] == 0
    assert [row["fault"] for row in report["drills"]] == ["die", "freeze", "drop"]
    for row in report["drills"]:
        assert (row["device"], row["point"], row["outcome"]) == ("device-2", "sent", "back")
        assert row["in_flight"] in ("identical", "right")
        assert row["back_s"] > 0
    # One that is dead or cut off is planned around; a process was killed, and no other harmed.
    died, _, dropped = report["drills"]
    assert died["replanned_s"] < died["back_s"]
    assert dropped["replanned_s"] < dropped["back_s"]
    assert supervisor.ended == [-9]
    log = field.log("device-2")
    assert all(
        "at point sent" in log and f": {fault}" in log for fault in ("die", "freeze", "drop")
    )


def test_an_agent_that_does_not_allow_it_is_not_harmed(field: Field, defects: Reference) -> None:
    drill(field, "defects", "--devices", "device-3,device-1").check_refused(
        7, "device-3 does not allow drills", "[drill]"
    )
    drill(field, "defects", "--devices", "pi").check_refused(7, "pi is not in the plan")
    # Asked all the same, in the form of a client that does not look first.
    session = field.statuses()["device-3"].session
    asked = Drill("ref", "eve", session, "die", "received", defects.name, "r-1")
    with field.mqtt(field.topics.response("eve", "+")) as eve:
        eve.publish(field.topics.drill("device-3"), encode_json(asked))
        (message,) = eve.wait_for(1)
        told = decode_json(message.payload, Drilled)
        assert (told.device, told.state) == ("device-3", "refused")
        assert "[drill]" in told.reason
    field.infer(defects, picture(0))
    field.fleet.check()


def test_a_device_that_nobody_starts_again_is_told(field: Field) -> None:
    told = drill(
        field, "defects", "--devices", "device-1,device-2", "--faults", "die", "--patience", 1
    )
    assert told.status == 1, told.err
    report = told.json
    (row,) = report["drills"]
    assert row["outcome"] == "not back"
    assert "nothing started it again" in row["reason"]
    assert report["not_run"] == [{"fault": "die", "device": "device-2", "point": "step:2"}]
    # Without it, the others answered all the same.
    assert report["totals"]["sent"] == report["totals"]["right"]
    assert row["replanned_s"] is not None
