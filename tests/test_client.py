"""What a client makes of the fleet's statuses and plans."""

from __future__ import annotations

import pytest

from agent.adapters.mqtt import Received
from agent.client import MAX_KEPT, Client
from agent.errors import FleetError
from agent.wire.messages import ModelState, PlanHeader, Status
from agent.wire.program import plan_digest
from tests.builders import ref


def client_of(monkeypatch: pytest.MonkeyPatch, *, calibrates: bool) -> tuple[Client, PlanHeader]:
    """Return a client of a fleet whose only device has measured nothing."""
    programs = {"a": ref("program")}
    header = PlanHeader(
        epoch=1,
        coordinator="boss",
        model="m",
        digest=plan_digest(programs, 1, "boss"),
        devices=("a",),
        programs=programs,
        manifest=ref("manifest"),
        source="boss",
    )
    shown = ModelState("m", "serving", 1, ("a",), calibrates=calibrates)
    statuses = [
        Status("boss", "1", "online", "coordinator", models=(shown,)),
        Status("a", "1", "online"),
    ]
    client = Client()
    monkeypatch.setattr(client, "devices", lambda _wait_s: statuses)
    monkeypatch.setattr(client, "plans", lambda _wait_s: [header])
    return client, header


def test_the_current_plan_is_taken_where_nothing_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client, header = client_of(monkeypatch, calibrates=False)
    assert client.measured_plan("m", 0.2) == header


def test_a_plan_of_nominal_rates_is_not_taken_for_a_measured_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client, _ = client_of(monkeypatch, calibrates=True)
    with pytest.raises(FleetError, match="measured times"):
        client.measured_plan("m", 0.2)


def test_messages_that_nobody_takes_do_not_pile_up() -> None:
    client = Client()
    for number in range(MAX_KEPT + 10):
        client._link.events.append(Received(f"t/{number}", b"", retained=False, redelivered=False))
        client._take_events()
    assert len(client._received) == MAX_KEPT + 1
    assert client._received[-1].topic == f"t/{MAX_KEPT + 9}"
