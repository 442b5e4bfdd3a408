"""A fleet as a user finds it: statuses, deployments, answers, traces, and what travels for them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import psutil
import pytest

from agent.packaging import package_model
from agent.wire.messages import Status, decode_json
from agent.wire.topics import Topics
from tests.field.support import Field, Reference, answers, halomq, picture, wait_until

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.field

REQUESTS = 200
WINDOW = 8


def test_each_agent_keeps_its_capacity_retained_at_the_broker(home: Field) -> None:
    with home.mqtt(home.topics.status("+")) as listener:
        messages = listener.wait_for(4, "/status")
    agents = [decode_json(message.payload, Status) for message in messages if message.retained]
    agents = [status for status in agents if status.role == "agent"]
    assert {status.device for status in agents} == set(home.fleet.names)
    for status in agents:
        capacity, health = status.capacity, status.health
        assert status.state == "online"
        assert capacity is not None
        assert health is not None
        assert capacity.cpu
        assert capacity.cores == psutil.cpu_count()
        assert capacity.threads == 1
        assert capacity.memory_bytes == psutil.virtual_memory().total
        assert capacity.providers == ("CPUExecutionProvider",)
        # A processor does more than a million operations a second, a broker more than a kB.
        assert capacity.flops_per_s > 1e6
        assert capacity.memory_bytes_per_s > 1e6
        assert capacity.link_bytes_per_s > 1e3
        assert 0 < capacity.link_latency_s < 10
        assert 0 < health.memory_used_bytes < capacity.memory_bytes
        assert {"halomq", "python", "onnxruntime", "numpy"} <= status.versions.keys()


def test_devices_lists_agents_coordinator_and_plans_in_json(home: Field) -> None:
    told = halomq("devices", "--json", broker=home.broker)
    assert told.status == 0, told.err
    devices = {device["device"]: device for device in told.json["devices"]}
    assert devices.keys() == {*home.fleet.names, "coordinator"}
    for name in home.fleet.names:
        assert devices[name]["state"] == "online"
        assert devices[name]["plans"].keys() >= {"vgg16", "defects"}
        assert devices[name]["capacity"]["flops_per_s"] > 0
    states = {model["name"]: model["state"] for model in devices["coordinator"]["models"]}
    assert states["vgg16"] == states["defects"] == "serving"
    assert {plan["model"] for plan in told.json["plans"]} >= {"vgg16", "defects"}


def test_devices_prints_a_table_for_people(home: Field) -> None:
    told = halomq("devices", broker=home.broker)
    assert told.status == 0, told.err
    for word in (*home.fleet.names, "coordinator", "online", "serving"):
        assert word in told.out


@pytest.mark.parametrize("which", ["vgg", "defects"])
def test_the_fleet_answers_as_one_device_does(
    home: Field, which: str, request: pytest.FixtureRequest
) -> None:
    model: Reference = request.getfixturevalue(which)
    answer = home.infer(model, picture(1))
    assert set(answer.devices) == set(home.fleet.names)


def test_every_device_of_a_plan_tells_what_it_did(home: Field, vgg: Reference) -> None:
    payload = picture(2)
    with home.client() as client:
        name = client.send(vgg.name, payload, traces=True)
        answer = client.answer(vgg.name, name)
        traces = client.traces(vgg.name, name, len(answer.devices), timeout_s=30)
    assert answer.result == vgg.result(payload)
    assert {trace.device for trace in traces} == set(answer.devices)
    for trace in traces:
        assert trace.steps
        assert trace.epoch == answer.epoch
        assert trace.compute_ms > 0
        # VGG's first convolutions need rows of their neighbours, or one device has no tile.
        assert trace.bytes_sent > 0
        assert trace.bytes_received > 0


def test_infer_prints_the_answer_and_draws_it(
    home: Field, defects: Reference, tmp_path: Path
) -> None:
    part = defects.path.with_name("defects-sample.jpg")
    drawn = tmp_path / "drawn.png"
    told = halomq("infer", "defects", part, "--save", drawn, broker=home.broker)
    assert told.status == 0, told.err
    assert told.json == defects.result(part.read_bytes())
    assert drawn.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("ending", ["svg", "html", "json"])
def test_infer_draws_when_each_device_did_what(
    home: Field, defects: Reference, tmp_path: Path, ending: str
) -> None:
    part = defects.path.with_name("defects-sample.jpg")
    drawn = tmp_path / f"request.{ending}"
    told = halomq("infer", "defects", part, "--timeline", drawn, broker=home.broker)
    assert told.status == 0, told.err
    assert told.err == ""
    text = drawn.read_text()
    for word in (*home.fleet.names, "measured", "answer"):
        assert word in text
    if ending == "json":
        spans = [event for event in json.loads(text)["traceEvents"] if event["ph"] == "X"]
        assert {event["cat"] for event in spans} >= {"decode", "compute", "wait"}
        ends = [event["ts"] + event["dur"] for event in spans]
        last = max(spans, key=lambda event: event["ts"] + event["dur"])
        assert last["name"] == "answer"
        assert min(event["ts"] for event in spans) >= 0
        assert max(ends) == last["ts"] + last["dur"]


def test_infer_json_is_the_whole_answer(home: Field, vgg: Reference) -> None:
    photo = vgg.path.parent / "picture.npy"
    photo.write_bytes(picture(3))
    told = halomq("infer", "vgg16", photo, "--json", broker=home.broker)
    assert told.status == 0, told.err
    assert told.json["ok"]
    assert told.json["result"] == vgg.result(picture(3))
    assert set(told.json["devices"]) == set(home.fleet.names)


def test_a_second_deployment_of_a_model_ships_no_weights(home: Field, vgg: Reference) -> None:
    again = package_model(vgg.path, "vgg-again")
    with home.mqtt(home.topics.blob("+")) as listener, home.client() as client:
        header = client.deploy(again.package, again.blobs)
        try:
            answer = client.infer("vgg-again", picture(4), tensors=True)
        finally:
            client.remove("vgg-again")
        assert set(header.devices) == set(home.fleet.names)
        vgg.check(answer, picture(4))
        shipped = {message.request for message in listener.messages}
    assert not shipped & vgg.weights.keys()


def test_deploying_what_is_served_already_changes_nothing(home: Field, vgg: Reference) -> None:
    before = home.plan(vgg.name)
    with home.mqtt(home.topics.blob("+")) as listener:
        told = halomq("deploy", vgg.path, "--json", broker=home.broker)
        assert told.status == 0, told.err
        assert listener.messages == []
    assert told.json["epoch"] == before.epoch
    assert told.json["devices"] == list(before.devices)


def test_deploy_and_remove_by_command(home: Field, defects: Reference, tmp_path: Path) -> None:
    part = tmp_path / "part.npy"
    part.write_bytes(picture(5))
    deployed = halomq("deploy", defects.path, "--name", "other", broker=home.broker)
    assert deployed.status == 0, deployed.err
    assert "other is served by " in deployed.out
    assert halomq("infer", "other", part, broker=home.broker).json == defects.result(picture(5))
    removed = halomq("remove", "other", "--json", broker=home.broker)
    assert removed.status == 0, removed.err
    assert json.loads(removed.out) == {"removed": "other"}
    gone = halomq("infer", "other", part, "--timeout", "1", broker=home.broker)
    gone.check_refused(7, "other is not deployed", "defects", "vgg16")


def test_fleets_on_one_broker_do_not_see_each_other(home: Field) -> None:
    told = halomq("devices", "--json", "--fleet", "elsewhere", broker=home.broker)
    assert told.json == {"devices": [], "plans": []}


def open_things(home: Field) -> dict[str, tuple[int, int]]:
    found = {}
    for name, process in home.fleet.processes.items():
        # The process that Popen knows is HaloMQ's own: setpriv executes it in its place.
        told = psutil.Process(process.pid)
        found[name] = (told.num_fds(), told.num_threads())
    return found


def send_many(home: Field, model: Reference, count: int) -> None:
    """Send `count` requests, `WINDOW` at a time, and wait for all their answers."""
    topics = Topics(home.config.fleet)
    payload = picture(6)
    with home.mqtt(topics.result(model.name, "+")) as listener:
        for number in range(count):
            listener.wait_for(number - WINDOW)
            listener.publish(topics.infer(model.name, f"many-{number}"), payload)
        listener.wait_for(count)
        assert all(one.ok for found in answers(listener.messages).values() for one in found)


def test_many_requests_leave_no_file_or_thread_open(home: Field, vgg: Reference) -> None:
    # The first ones may open what stays open: libraries, the threads of a first use.
    send_many(home, vgg, WINDOW)
    before = open_things(home)
    send_many(home, vgg, REQUESTS)
    # A connection of a moment (none is known) would be gone when the fleet is idle again.
    wait_until(
        lambda: all(
            now <= then
            for name, after in open_things(home).items()
            for now, then in zip(after, before[name], strict=True)
        ),
        f"no more open files and threads than {before}, there are {open_things(home)}",
        seconds=10,
    )
