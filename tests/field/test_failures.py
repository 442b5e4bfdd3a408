"""What breaks in the field: agents, coordinator and broker are killed while requests fly."""

from __future__ import annotations

import re
import signal
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from agent.adapters.fleet import ProcessFleet
from agent.packaging import package_model
from agent.wire.messages import Control, PlanHeader, Prepare, Standby, decode_answer, decode_json
from models.vgg16 import build
from tests.conftest import need_mosquitto
from tests.field.support import (
    NOMINAL,
    WAIT_S,
    Field,
    Message,
    Mqtt,
    Reference,
    answers,
    field_of,
    frozen,
    picture,
    resume_broker,
    statuses_of,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.field

REQUESTS = 12
WINDOW = 6
KILOBYTES = 200_000  # far below any model's weights, far above a plan's graphs


@pytest.fixture(scope="module")
def struck(tmp_path_factory: pytest.TempPathFactory, defects: Reference) -> Iterator[Field]:
    """Three agents on a broker of their own, for these tests to harm."""
    need_mosquitto()
    folder = tmp_path_factory.mktemp("struck")
    # The broker misses nobody for an hour whose connection does not end.
    settings = {**NOMINAL, "HALOMQ_BROKER_KEEPALIVE_S": "3600"}
    with ProcessFleet(folder, 3, settings=settings) as fleet:
        field = field_of(fleet, folder)
        field.wait_online()
        field.deploy(defects)
        yield field


@pytest.fixture
def field(struck: Field, defects: Reference) -> Field:
    """The fleet, whole again whatever the test before has killed."""
    struck.restart("coordinator", *struck.fleet.names)
    struck.wait_for_plan(defects.name, struck.fleet.names)
    return struck


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """A model so small that to share it would only cost time."""
    return Reference(build(tmp_path_factory.mktemp("tiny"), size=32, width=8, classes=4), "tiny")


def new_ids(count: int) -> list[str]:
    """Return request ids that no other test uses."""
    return [f"r-{uuid4().hex[:12]}" for _ in range(count)]


def stream(
    field: Field,
    model: Reference,
    user: Mqtt,
    act: Callable[[], None],
    *,
    window: int,
    count: int = REQUESTS,
) -> dict[str, Message]:
    """Send requests, `window` at a time, and `act` once the first is answered.

    Checks that each has one answer, that of a single device, and returns them.
    """
    sent = dict(zip(new_ids(count), (picture(n) for n in range(count)), strict=True))
    acted = False
    for number, (name, payload) in enumerate(sent.items()):
        user.wait_for(number + 1 - window)
        if number >= window and not acted:
            acted = True
            act()
        user.publish(field.topics.infer(model.name, name, tensors=True), payload)
    if not acted:
        user.wait_for(1)
        act()
    user.wait_for(count)
    # What comes after this one's answer is no second answer to the others.
    (last,) = new_ids(1)
    user.publish(field.topics.infer(model.name, last, tensors=True), picture(0))
    user.wait_for(1, last)
    told = answers(user.messages)
    del told[last]
    assert sorted(told) == sorted(sent)
    for name, (answer, *more) in told.items():
        assert not more, name
        model.check(answer, sent[name])
    return {message.request: message for message in user.messages if message.request != last}


def check_survives_a_kill(field: Field, model: Reference, rank: int) -> None:
    before = field.plan(model.name)
    victim = before.devices[rank]
    with field.mqtt(field.topics.result(model.name, "+")) as user:
        told = stream(field, model, user, lambda: field.fleet.kill(victim), window=REQUESTS)
    # All were sent before the kill; those that were not answered yet were finished without it.
    assert any(victim not in decode_answer(m.payload).devices for m in told.values())
    rest = set(field.fleet.names) - {victim}
    field.wait_for_plan(model.name, rest, newer_than=before.epoch)
    assert field.statuses()[victim].state == "offline"


# Each test that needs a whole fleet after one that has killed an agent costs its start, so the
# order here is one that makes few of them; any other is as good.


def test_a_killed_answering_agent_costs_no_answer(field: Field, defects: Reference) -> None:
    check_survives_a_kill(field, defects, rank=0)


def test_a_frozen_agent_costs_no_answer_and_is_used_again(field: Field, defects: Reference) -> None:
    victim = field.plan(defects.name).devices[1]
    with frozen(field, victim):
        answer = field.infer(defects, picture(1))
        assert victim not in answer.devices
    field.wait_for_plan(defects.name, field.fleet.names, newer_than=answer.epoch)
    assert victim in field.infer(defects, picture(2)).devices


def test_an_agent_that_comes_back_is_used_and_fetches_no_weights_again(
    struck: Field, defects: Reference
) -> None:
    names = set(struck.fleet.names)
    if names <= struck.fleet.processes.keys():
        struck.fleet.kill("device-1")
    (gone,) = names - struck.fleet.processes.keys()
    without = struck.wait_for_plan(defects.name, names - {gone})
    with struck.mqtt(struck.topics.blob("+")) as listener:
        struck.restart(gone)
        struck.wait_for_plan(defects.name, names, newer_than=without.epoch)
        answer = struck.infer(defects, picture(1))
        shipped = {message.request for message in listener.messages}
    assert gone in answer.devices
    assert not shipped & defects.weights.keys()


def test_another_killed_agent_costs_no_answer(field: Field, defects: Reference) -> None:
    check_survives_a_kill(field, defects, rank=1)


def test_a_new_plan_after_a_loss_ships_kilobytes(field: Field, vgg: Reference) -> None:
    package = package_model(vgg.path, "lost")
    followed = (field.topics.inbox("+"), field.topics.blob("+"), field.topics.plan("lost"))
    asked = field.topics.infer("lost", "+", tensors=True)
    with field.mqtt(*followed, asked) as listener, field.client() as client:
        before = client.deploy(package.package, package.blobs)
        # The head's weights are brought to the others in advance, for the loss of its device.
        standby = listener.wait(
            lambda seen: standbys(seen, "lost", before.devices), "what is to be kept ready"
        )
        assert standby is not None
        for device, blobs in standby.items():
            folder = field.folder / device / "blobs"
            wait_until(
                lambda: all((folder / digest).exists() for digest in blobs),  # noqa: B023
                f"{device} to have them",
            )
        field.wait_seen(
            lambda statuses, _: any(
                set(model.covered) == set(before.devices)
                for status in statuses.values()
                for model in status.models
                if model.name == "lost"
            ),
            "the programs after each loss to be loaded",
        )
        # What devices have by now reached the listener before a request sent after it.
        vgg.check(client.infer("lost", picture(1), tensors=True), picture(1))
        listener.wait(
            lambda seen: any("/infer/" in message.topic for message in seen), "the request"
        )
        first = len(listener.messages)
        victim = before.devices[0]
        field.fleet.kill(victim)
        rest = set(field.fleet.names) - {victim}
        field.wait_for_plan("lost", rest, newer_than=before.epoch)
        vgg.check(client.infer("lost", picture(2), tensors=True), picture(2))
        client.remove("lost")
    # What follows the plan's header is for the loss of yet another device, and delays nobody.
    later = listener.messages[first:]
    announced = next(n for n, message in enumerate(later) if message.topic.endswith("/plan"))
    shipped = [message for message in later[:announced] if "/blob/" in message.topic]
    controls = [m for m in later[:announced] if m.topic.endswith("/inbox")]
    assert not any(isinstance(decode_json(m.payload, Control), Prepare) for m in controls)
    told = [(message.topic, len(message.payload)) for message in shipped]
    assert sum(nbytes for _, nbytes in told) < KILOBYTES, told
    assert vgg.weight_bytes > 100 * KILOBYTES


def standbys(
    messages: list[Message], model: str, devices: tuple[str, ...]
) -> dict[str, list[str]] | None:
    """Return what each device was told to keep ready, once all were."""
    found: dict[str, list[str]] = {}
    for message in messages:
        if not message.topic.endswith("/inbox"):
            continue
        control = decode_json(message.payload, Control)
        if isinstance(control, Standby) and control.model == model:
            found[message.topic.split("/")[-2]] = [ref.digest for ref in control.blobs]
    return found if found.keys() == set(devices) else None


def test_an_agent_leaves_on_sigterm_and_loses_no_request(field: Field, defects: Reference) -> None:
    before = field.plan(defects.name)
    leaving = before.devices[0]
    process = field.fleet.processes.pop(leaving)
    with field.mqtt(field.topics.result(defects.name, "+")) as user:
        stream(field, defects, user, process.terminate, window=WINDOW)
    assert process.wait(WAIT_S) == 0, field.log(leaving)
    assert field.statuses()[leaving].state == "offline"
    rest = set(field.fleet.names) - {leaving}
    field.wait_for_plan(defects.name, rest, newer_than=before.epoch)


def test_the_only_agent_of_a_plan_leaves_and_loses_no_request(
    field: Field, tiny: Reference
) -> None:
    # Nobody else has its requests: those that it has it must finish, and go on taking them until
    # another agent does.
    before = field.deploy(tiny)
    (leaving,) = before.devices
    process = field.fleet.processes.pop(leaving)
    with field.mqtt(field.topics.result(tiny.name, "+")) as user:
        stream(field, tiny, user, process.terminate, window=WINDOW, count=10 * REQUESTS)
    assert process.wait(WAIT_S) == 0, field.log(leaving)
    with field.client() as client:
        client.remove(tiny.name)


def test_without_its_coordinator_the_fleet_serves_and_it_comes_back_to_the_same_plan(
    field: Field, defects: Reference
) -> None:
    before = field.plan(defects.name)
    with field.mqtt(field.topics.plan("+"), field.topics.status("coordinator")) as listener:
        field.fleet.kill("coordinator")
        wait_until(
            lambda: statuses_of(listener.messages, "coordinator")[-1].state == "offline",
            "the coordinator's last will",
        )
        field.infer(defects, picture(3))
        field.restart("coordinator")
        # It has looked at the fleet and at its deployments once it says that it serves them.
        wait_until(
            lambda: any(
                (model.name, model.state) == (defects.name, "serving")
                for model in statuses_of(listener.messages, "coordinator")[-1].models
            ),
            "the coordinator to serve again",
        )
        assert field.infer(defects, picture(4)).epoch == before.epoch
        headers = [m for m in listener.messages if m.topic == field.topics.plan(defects.name)]
    assert {decode_json(m.payload, PlanHeader).epoch for m in headers} == {before.epoch}
    assert field.plan(defects.name) == before


def test_a_loss_while_the_coordinator_is_away_is_mended_when_it_returns(
    field: Field, defects: Reference
) -> None:
    before = field.plan(defects.name)
    victim = before.devices[1]
    (name,) = new_ids(1)
    with field.mqtt(field.topics.result(defects.name, "+")) as user:
        field.fleet.kill("coordinator")
        field.fleet.kill(victim)
        # It cannot be finished without the victim: it waits for a plan, as all clients do.
        user.publish(field.topics.infer(defects.name, name, tensors=True), picture(5))
        field.fleet.start("coordinator")
        (message,) = user.wait_for(1, name)
    answer = decode_answer(message.payload)
    defects.check(answer, picture(5))
    assert victim not in answer.devices
    rest = set(field.fleet.names) - {victim}
    field.wait_for_plan(defects.name, rest, newer_than=before.epoch)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
def test_the_fleet_outlives_its_broker(
    struck: Field, defects: Reference, how: signal.Signals
) -> None:
    struck.restart("coordinator")
    alive = struck.fleet.processes.keys()
    devices = alive - {"coordinator"}
    struck.wait_for_plan(defects.name, devices)
    before = {device: struck.statuses()[device].session for device in alive}
    restart_broker(struck, how)
    # A broker that was killed has lost what was retained: all of it is published anew.
    struck.wait_seen(
        lambda statuses, plans: (
            bool(plans)
            and all(
                device in statuses
                and statuses[device].session.partition(".")[0] == session.partition(".")[0]
                and statuses[device].state == "online"
                for device, session in before.items()
            )
        ),
        "statuses and plan to be back",
    )
    struck.wait_for_plan(defects.name, devices)
    struck.infer(defects, picture(6))
    struck.fleet.check()


def test_a_poisoned_data_directory_is_noticed_and_mended(struck: Field, defects: Reference) -> None:
    names = set(struck.fleet.names)
    struck.restart("coordinator", *names)
    before = struck.wait_for_plan(defects.name, names)
    victim = before.devices[1]
    struck.fleet.kill(victim)
    folder = struck.folder / victim
    blobs = sorted((folder / "blobs").iterdir())
    for number, blob in enumerate(blobs):
        content = bytearray(blob.read_bytes())
        content[len(content) // 2] ^= 1 << number % 8
        blob.write_bytes(content[: len(content) // (1 + number % 2)])
    (folder / "blobs" / "garbage").write_bytes(b"\xff\0")
    (folder / "profiles").mkdir(exist_ok=True)
    (folder / "profiles" / "garbage.json").write_bytes(b"{\xff")
    logged = len(struck.log(victim))
    without = struck.wait_for_plan(defects.name, names - {victim}, newer_than=before.epoch)
    struck.restart(victim)
    struck.wait_for_plan(defects.name, names, newer_than=without.epoch)
    assert victim in struck.infer(defects, picture(8)).devices
    said = [line for line in struck.log(victim)[logged:].splitlines() if "damaged" in line]
    # One line a fetch (of plans, of what their programs and losses need), each blob in one of them.
    counts = [int(found[1]) for line in said if (found := re.search(r" (\d+) of \d+ blobs", line))]
    assert len(counts) == len(said) >= 1
    assert sum(counts) <= len(blobs), said
    assert any(count > 1 for count in counts), said
    assert all("blobs are damaged on disk and fetched again" in line for line in said)


def test_a_request_that_a_killed_broker_has_forgotten_is_answered(
    struck: Field, defects: Reference
) -> None:
    struck.restart("coordinator")
    devices = struck.fleet.processes.keys() - {"coordinator"}
    struck.wait_for_plan(defects.name, devices)
    with struck.client() as client:
        # Stopped, no agent can take it: only the broker has it, and loses it.
        with frozen(struck, *devices):
            name = client.send(defects.name, picture(7), tensors=True)
            client.flush()
            restart_broker(struck, signal.SIGKILL)
        defects.check(client.answer(defects.name, name), picture(7))


def restart_broker(field: Field, how: signal.Signals) -> None:
    """End Mosquitto and start it again with the same port, configuration and state."""
    broker = field.broker
    old = broker._process
    old.send_signal(how)
    old.wait(WAIT_S)
    if how == signal.SIGKILL:
        # What an earlier test's broker saved is not there after a power cut in the field.
        (broker.log.parent / "mosquitto.db").unlink(missing_ok=True)
    resume_broker(broker)
