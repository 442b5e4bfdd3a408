"""The coordinator is killed: an agent's own takes over, and the first one comes back to follow."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from agent.adapters.fleet import ProcessFleet
from agent.wire.messages import PlanHeader, Status, decode_json
from models.vgg16 import build
from tests.conftest import need_mosquitto
from tests.field.support import NOMINAL, Field, Reference, field_of, picture, wait_until
from tests.field.test_failures import WINDOW, stream

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.field

KEEPER = "device-3"
NEXT = f"standby-{KEEPER}"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """A small model, to be removed while the first coordinator is away."""
    return Reference(build(tmp_path_factory.mktemp("tiny"), size=32, width=8, classes=4), "tiny")


@pytest.fixture(scope="module")
def kept(
    tmp_path_factory: pytest.TempPathFactory, defects: Reference, tiny: Reference
) -> Iterator[Field]:
    """Three agents, one of which keeps a coordinator that has all that is deployed."""
    need_mosquitto()
    folder = tmp_path_factory.mktemp("kept")
    own = {KEEPER: {"HALOMQ_COORDINATOR_STANDBY": "true"}}
    with ProcessFleet(folder, 3, settings=NOMINAL, own=own) as fleet:
        field = field_of(fleet, folder)
        field.wait_online()
        for model in (tiny, defects):
            field.deploy(model)
            blobs = folder / KEEPER / "standby" / "blobs"
            wait_until(
                lambda: all((blobs / d).exists() for d in model.packaged.package.blobs()),  # noqa: B023
                "the standby to have the model",
            )
        field.wait_for_plan(defects.name, fleet.names)
        yield field


def wait_for_leader(field: Field, name: str, newer_than: int = 0) -> int:
    """Wait until a coordinator leads; return its term."""

    def leads(statuses: dict[str, Status], _plans: list[PlanHeader]) -> int:
        status = statuses.get(name)
        term = status.term if status is not None and status.state == "online" else 0
        return term if term > newer_than else 0

    return field.wait_seen(leads, f"{name} to lead")


def test_a_killed_coordinator_delays_no_request_and_another_takes_over(
    kept: Field, defects: Reference
) -> None:
    before = kept.plan(defects.name)
    with (
        kept.mqtt(kept.topics.plan("+")) as listener,
        kept.mqtt(kept.topics.result(defects.name, "+")) as user,
    ):
        stream(kept, defects, user, lambda: kept.fleet.kill("coordinator"), window=WINDOW)
        wait_for_leader(kept, NEXT)
        kept.infer(defects, picture(1))
        headers = [m for m in listener.messages if m.topic == kept.topics.plan(defects.name)]
    # The plan was still right, so nothing that was in flight had to start again.
    assert {decode_json(m.payload, PlanHeader).epoch for m in headers} == {before.epoch}


def test_the_new_leader_plans_around_a_loss_and_serves_clients(
    kept: Field, defects: Reference, tiny: Reference
) -> None:
    before = kept.plan(defects.name)
    with kept.mqtt(kept.topics.result(defects.name, "+")) as user:
        stream(kept, defects, user, lambda: kept.fleet.kill("device-1"), window=WINDOW)
    rest = set(kept.fleet.names) - {"device-1"}
    header = kept.wait_for_plan(defects.name, rest, newer_than=before.epoch)
    assert (header.coordinator, header.source) == (NEXT, NEXT)
    with kept.client() as client:
        client.remove(tiny.name)
        assert [plan.model for plan in client.plans()] == [defects.name]


def test_the_first_coordinator_comes_back_and_serves_nothing_stale(
    kept: Field, defects: Reference
) -> None:
    before = kept.plan(defects.name)
    term = wait_for_leader(kept, NEXT)
    kept.fleet.start("coordinator")
    saved = kept.folder / "coordinator" / "coordinator" / "deployments.json"
    wait_until(lambda: '"package":null' in saved.read_text(), "the removal to be known")
    assert kept.plan(defects.name) == before
    # The agent and the coordinator that it keeps die together: the first one leads again.
    kept.fleet.kill(KEEPER)
    assert wait_for_leader(kept, "coordinator", newer_than=term) == term + 1
    header = kept.wait_for_plan(defects.name, {"device-2"}, newer_than=before.epoch)
    assert header.coordinator == "coordinator"
    kept.infer(defects, picture(2))
    with kept.client() as client:
        assert [plan.model for plan in client.plans()] == [defects.name]
