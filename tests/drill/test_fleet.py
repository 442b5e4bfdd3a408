"""What a client takes for a whole fleet."""

from __future__ import annotations

import msgspec

from agent.drill.fleet import FleetView
from agent.wire.messages import Status
from tests.builders import header_of
from tests.worker.test_core import PROGRAMS


def status(device: str, session: str, state: str = "online", epoch: int = 1) -> Status:
    told = {"device": device, "session": session, "state": state, "plans": {"m": epoch}}
    return msgspec.convert(told, Status)


def test_a_fleet_is_whole_once_all_serve_by_the_current_plan() -> None:
    view = FleetView("m")
    view.see_plan(header_of(PROGRAMS, 2))
    for device in "abc":
        assert not view.whole("b")
        view.see_status(status(device, "1", epoch=2))
    assert view.whole("b")
    assert not view.whole("d")
    view.see_status(status("c", "1", epoch=1))
    assert not view.whole("b")


def test_an_old_will_does_not_hide_a_new_birth() -> None:
    view = FleetView("m")
    view.see_plan(header_of(PROGRAMS, 1))
    view.see_status(status("a", "1"))
    view.see_status(status("a", "2"))
    view.see_status(status("a", "1", "offline"))
    assert view.session("a") == "2"
    assert view.serves("a")
    view.see_status(status("a", "2", "offline"))
    assert view.session("a") is None
    assert not view.serves("a")


def test_other_models_are_not_looked_at() -> None:
    view = FleetView("other")
    view.see_plan(header_of(PROGRAMS, 1))
    assert view.devices == ()
