"""Bad input to a fleet that serves: one clear message to whoever sent it, and nobody is harmed."""

from __future__ import annotations

import json
import random
import re
from hashlib import sha256
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import msgspec
import numpy as np
import psutil
import pytest

from agent.adapters.fleet import ProcessFleet
from agent.errors import FleetError
from agent.packaging import package_model
from agent.wire import messages as wire
from agent.wire.program import BlobRef
from agent.wire.tensors import encode_tensor
from tests.field.conftest import MODELS
from tests.field.support import (
    NOMINAL,
    Field,
    Reference,
    answers,
    field_of,
    halomq,
    npy,
    picture,
    wait_until,
)
from tests.fuzz.mutate import bombs, mutate

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.field

NOWHERE = sha256(b"no blob has this digest").hexdigest()
INPUT = wire.fingerprint(b"")
GHOST = BlobRef(NOWHERE, 1000)
DAMAGED = 6  # copies of each message, each damaged in another place
MIB = 1 << 20
MEMORY = 300 * MIB  # a picture of the largest size, and what was not given back
# Paho takes it for a broken connection.
UNREADABLE: dict[str, Any] = {"UserProperty": ("client", "\ufeff")}


def check_serves(home: Field, model: Reference) -> None:
    """Check that every process lives and a request is answered."""
    home.fleet.check()
    home.infer(model, picture(1))


@pytest.fixture(scope="module", autouse=True)
def stray_piece(home: Field, vgg: Reference) -> tuple[str, str]:
    """A piece of a request that never comes: where it was sent, and the request."""
    plan = home.plan(vgg.name)
    request = f"unknown-{uuid4().hex}"
    piece = wire.Piece(plan.digest, request, INPUT, 0, ((0, 1),), memoryview(b"abcd"))
    with home.mqtt() as sender:
        sender.publish(home.topics.halo(plan.devices[0]), wire.encode_msgpack(piece))
    return plan.devices[0], request


# Requests ----------------------------------------------------------------------------------------


def bad_inputs(size: int) -> dict[str, tuple[bytes, str]]:
    """Return payloads that cannot be answered, and a word that the message must have."""
    jpeg = (MODELS / "sample.jpg").read_bytes()
    return {
        "text": (b"this is no picture\n", "no JPEG, PNG, .npy or msgpack"),
        "cut jpeg": (jpeg[: len(jpeg) // 2], "truncated"),
        "wrong size": (npy(np.zeros((1, 3, size, size - 1), np.float32)), f"x{size - 1}"),
        "wrong dtype": (npy(np.zeros((1, 3, size, size), np.float64)), "float64"),
        "empty": (b"", "empty"),
        "no numbers": (npy(np.zeros(3, "U1")), "not numbers"),
        "cut npy": (picture(1)[:-1], "damaged"),
        "cut msgpack": (encode_tensor(np.zeros((4, 4, 3), np.uint8))[:-1], "msgpack"),
    }


@pytest.mark.parametrize("kind", ["text", "cut jpeg", "wrong size", "wrong dtype"])
def test_infer_refuses_what_is_no_input(
    home: Field, vgg: Reference, tmp_path: Path, kind: str
) -> None:
    content, words = bad_inputs(vgg.size)[kind]
    file = tmp_path / "file"
    file.write_bytes(content)
    told = halomq("infer", vgg.name, file, broker=home.broker)
    told.check_refused(4, "input: ", words)
    check_serves(home, vgg)


def test_bad_requests_are_each_answered_with_one_error(home: Field, vgg: Reference) -> None:
    bad = {f"bad-{n}": entry for n, entry in enumerate(bad_inputs(vgg.size).values())}
    with home.mqtt(home.topics.result(vgg.name, "+")) as user:
        for name, (payload, _) in bad.items():
            user.publish(home.topics.infer(vgg.name, name), payload)
        user.wait_for(len(bad))
        user.publish(home.topics.infer(vgg.name, "good"), picture(1))
        user.wait_for(1, "/good")
    told = answers(user.messages)
    assert told.pop("good")[0].result == vgg.result(picture(1))
    for name, (_, words) in bad.items():
        (answer,) = told[name]
        assert answer.error is not None
        assert answer.error.code == "input"
        assert words in answer.error.text


def test_infer_refuses_a_model_that_is_not_deployed(home: Field, tmp_path: Path) -> None:
    file = tmp_path / "file.npy"
    file.write_bytes(picture(1))
    told = halomq("infer", "nothing", file, "--timeout", "1", broker=home.broker)
    told.check_refused(7, "nothing is not deployed", "vgg16")


def test_infer_refuses_a_request_over_the_brokers_limit(
    home: Field, vgg: Reference, tmp_path: Path
) -> None:
    file = tmp_path / "large"
    file.write_bytes(bytes(9 * MIB))
    told = halomq("infer", vgg.name, file, broker=home.broker)
    told.check_refused(5, "over the limit", "max_packet_size")


def test_agents_refuse_a_request_over_their_own_limit(home: Field, vgg: Reference) -> None:
    with home.client() as client:
        answer = client.infer(vgg.name, bytes(8 * MIB + 1))
    assert answer.error is not None
    assert answer.error.code == "input"
    assert "requests.max_payload_mb" in answer.error.text
    check_serves(home, vgg)


def test_removing_what_is_not_deployed_is_refused(home: Field) -> None:
    told = halomq("remove", "nothing", broker=home.broker)
    told.check_refused(7, "no such model")


# Messages ----------------------------------------------------------------------------------------


def messages(home: Field, model: Reference) -> dict[str, list[bytes]]:
    """Return valid messages for every topic that agents and coordinator read.

    They name a model, requests and blobs that do not exist, so however a damaged one reads, it
    asks nothing that the fleet could do.
    """
    header = wire.PlanHeader(
        epoch=7,
        coordinator="ghost",
        model="ghost",
        digest=NOWHERE,
        devices=home.fleet.names,
        programs=dict.fromkeys(home.fleet.names, GHOST),
        manifest=GHOST,
        source="ghost",
    )
    plan = home.plan(model.name)
    piece = wire.Piece(plan.digest, "ghost", INPUT, 0, ((0, 1),), memoryview(b"abcd"))
    controls = [
        wire.Prepare(header),
        wire.Standby("ghost", "ghost", (GHOST,), (GHOST,), GHOST),
        wire.Ready("ghost", "session", "ghost", NOWHERE, (NOWHERE,)),
        wire.Prepared("ghost", "ghost", 7, ok=True),
        wire.Want("ghost", NOWHERE, 0, 1),
        wire.Absent(NOWHERE, "gone"),
        wire.Remove("ghost", "reference", "ghost"),
        wire.Progress("reference", "text"),
    ]
    control = [wire.encode_json(message) for message in controls]
    halos = [piece, wire.Forward("ghost", "ghost", b"payload", 1.0)]
    answer = wire.Answer("ghost", "ghost", INPUT, ok=True)
    members = [*home.fleet.names, "coordinator"]
    topics = home.topics
    ghost = wire.Status("ghost", "session", "online")
    return {
        **{topics.inbox(member): control for member in members},
        **{topics.halo(d): [wire.encode_msgpack(h) for h in halos] for d in home.fleet.names},
        **{topics.echo(d): [b"\0\0" + bytes(62)] for d in home.fleet.names},
        topics.beat("ghost"): [wire.encode_json(wire.Beat("ghost", "session", ("ghost",)))],
        topics.status("ghost"): [wire.encode_json(ghost)],
        topics.plan("ghost"): [wire.encode_json(header)],
        topics.result(model.name, "ghost"): [wire.encode_json(answer)],
        topics.blob(NOWHERE): [wire.encode_msgpack(wire.Chunk(NOWHERE, 1000, 0, bytes(1000)))],
    }


def damaged(payload: bytes, chance: random.Random) -> list[bytes]:
    """Return copies of a message that are cut short or have flipped bits."""
    copies = []
    for _ in range(DAMAGED):
        copies.append(payload[: chance.randrange(1, len(payload))])
        flipped = bytearray(payload)
        for _ in range(chance.randrange(1, 4)):
            flipped[chance.randrange(len(payload))] ^= 1 << chance.randrange(8)
        copies.append(bytes(flipped))
    return copies


def nonsense(chance: random.Random) -> list[bytes]:
    """Return what is no message of any kind."""
    return [
        chance.randbytes(300),
        b"{}",
        b"[]",
        b"null",
        b'{"type":"prepare"}',
        b'{"type":"nothing of ours"}',
        b"[" * 100_000,
        b"\x91" * 100_000,  # msgpack: as deep
        b"\xdd\xff\xff\xff\xff",  # msgpack: a list of four thousand million
        b"\xff\xfe{",
    ]


def test_garbage_on_every_topic_harms_nobody(home: Field, vgg: Reference) -> None:
    chance = random.Random(1)
    with home.mqtt() as sender:
        for topic, valid in messages(home, vgg).items():
            for payload in [*valid, *nonsense(chance)]:
                sender.publish(topic, payload)
            for message in valid:
                for payload in damaged(message, chance):
                    sender.publish(topic, payload)
        for topic in ("no/such/topic", "device/device-1", "model/a/b/c/d", "blob/xyz", "model/m"):
            sender.publish(f"{home.topics.root}/{topic}", b"{}")
        # A ghost's plan of a ghost's model would be fetched for a minute.
        sender.publish(home.topics.plan("ghost"), b"")
    check_serves(home, vgg)
    # Weights and deployments still work as well: they have connections and threads of their own.
    again = package_model(vgg.path, "after-garbage")
    with home.client() as client:
        client.deploy(again.package, again.blobs)
        vgg.check(client.infer("after-garbage", picture(2), tensors=True), picture(2))
        client.remove("after-garbage")
    for name in home.fleet.processes:
        assert "Traceback" not in home.log(name)
        assert "internal error" not in home.log(name)


def test_structured_damage_and_bombs_fill_no_memory(home: Field, vgg: Reference) -> None:
    chance = random.Random(3)
    before = {name: memory(home, name) for name in home.fleet.processes}
    lines = {name: len(home.log(name).splitlines()) for name in home.fleet.processes}
    sent = 0
    with home.mqtt(home.topics.result(vgg.name, "+")) as user:
        for topic, valid in messages(home, vgg).items():
            for message in valid:
                for _ in range(DAMAGED):
                    user.publish(topic, mutate(chance, message))
                    sent += 1
        for name, payload in bombs().items():
            user.publish(
                home.topics.infer(vgg.name, f"bomb-{len(name)}-{name[0]}"),
                payload,
            )
        user.publish(home.topics.infer(vgg.name, "unreadable"), picture(1), **UNREADABLE)
        for topic in ("$SYS/x", f"{home.topics.root}/device/{home.fleet.names[0]}/inbox"):
            user.publish(home.topics.infer(vgg.name, "reply"), picture(1), ResponseTopic=topic)
        user.publish(home.topics.plan("ghost"), b"")
    check_serves(home, vgg)
    for name in home.fleet.processes:
        assert memory(home, name) < before[name] + MEMORY, name
        assert len(home.log(name).splitlines()) < lines[name] + sent, name
        assert "internal error" not in home.log(name)


def memory(home: Field, name: str) -> int:
    """Return the bytes that a process holds."""
    return psutil.Process(home.fleet.processes[name].pid).memory_info().rss


def test_damaged_requests_are_each_answered_once(home: Field, vgg: Reference) -> None:
    chance = random.Random(2)
    tensor = encode_tensor(np.zeros((4, 4, 3), np.uint8))
    payloads = [b for valid in (picture(1), tensor) for b in damaged(valid, chance)]
    payloads += nonsense(chance)
    with home.mqtt(home.topics.result(vgg.name, "+")) as user:
        for number, payload in enumerate(payloads):
            # Without an id, too, and never more of them than are admitted.
            name = None if number % 3 == 0 else f"damaged-{number}"
            user.publish(home.topics.infer(vgg.name, name), payload)
            user.wait_for(number + 1)
        user.publish(home.topics.infer(vgg.name, "sound"), picture(1))
        user.wait_for(1, "/sound")
    told = answers(user.messages)
    assert told.pop("sound")[0].result == vgg.result(picture(1))
    assert len(told) == len(payloads)
    assert {len(found) for found in told.values()} == {1}
    codes = {found[0].error.code for found in told.values() if found[0].error is not None}
    assert codes == {"input"}


def lying(vgg: Reference, **changes: Any) -> tuple[Any, dict[str, bytes | memoryview]]:
    """Return the package of a model with changes, and its blobs."""
    packaged = vgg.packaged
    package = msgspec.structs.replace(packaged.package, name="lying", **changes)
    return package, dict(packaged.blobs)


def check_deploy_refused(home: Field, package: Any, blobs: Any, words: str) -> None:
    with home.client() as client:
        with pytest.raises(FleetError, match=re.escape(words)):
            client.deploy(package, blobs)
        told = {status.device: status for status in client.devices()}
        assert "lying" not in {model.name for model in told["coordinator"].models}


def test_a_chunk_with_a_wrong_digest_is_refused(home: Field, vgg: Reference) -> None:
    package, blobs = lying(vgg, graph=GHOST)
    # A holder that sends other bytes than it says.
    blobs[NOWHERE] = bytes(GHOST.nbytes)
    check_deploy_refused(home, package, blobs, "wrong bytes")
    check_serves(home, vgg)


def test_a_blob_that_its_holder_lacks_is_refused(home: Field, vgg: Reference) -> None:
    package, blobs = lying(vgg, graph=GHOST)
    check_deploy_refused(home, package, blobs, "does not have it")


def test_a_blob_that_no_store_could_hold_is_refused(home: Field, vgg: Reference) -> None:
    package, blobs = lying(vgg, graph=BlobRef(NOWHERE, 1 << 40))
    check_deploy_refused(home, package, blobs, "store.limit_mb")
    check_serves(home, vgg)


@pytest.mark.parametrize(
    ("part", "content", "words"),
    [
        ("graph", b"this is no ONNX", "the graph is damaged"),
        ("manifest", b"this is no JSON", "not a manifest"),
        ("manifest", b'{"task":"classification","labels":["one"]}', "labels"),
    ],
)
def test_a_deployed_part_that_is_no_such_thing_is_refused(
    home: Field, vgg: Reference, part: str, content: bytes, words: str
) -> None:
    ref = BlobRef(sha256(content).hexdigest(), len(content))
    package, blobs = lying(vgg, **{part: ref})
    blobs[ref.digest] = content
    check_deploy_refused(home, package, blobs, words)
    check_serves(home, vgg)


def test_a_plan_without_a_program_for_its_device_harms_nobody(home: Field, vgg: Reference) -> None:
    prepare = json.loads(messages(home, vgg)[home.topics.inbox("device-1")][0])
    assert prepare["plan"]["programs"].keys() == set(home.fleet.names)
    prepare["plan"]["programs"] = {}
    with home.mqtt() as sender:
        for device in home.fleet.names:
            sender.publish(home.topics.inbox(device), json.dumps(prepare).encode())
    again = package_model(vgg.path, "after-ghost")
    with home.client() as client:
        client.deploy(again.package, again.blobs)
        vgg.check(client.infer("after-ghost", picture(3), tensors=True), picture(3))
        client.remove("after-ghost")


def test_a_status_in_another_devices_name_does_not_count(home: Field, vgg: Reference) -> None:
    before = home.plan(vgg.name)
    victim = home.statuses()[home.fleet.names[1]]
    spoof = msgspec.structs.replace(victim, state="offline", capacity=None)
    with home.mqtt() as sender:
        sender.publish(home.topics.status("ghost"), wire.encode_json(spoof))
        # By the time that this is refused the coordinator has seen the other.
        told = halomq("remove", "nothing", broker=home.broker)
        told.check_refused(7, "no such model")
    assert f"{victim.device} is offline" not in home.log("coordinator")
    assert home.plan(vgg.name) == before


# Stores ------------------------------------------------------------------------------------------


def test_a_store_that_is_too_small_is_told_and_planned_around(
    home: Field, vgg: Reference, tmp_path: Path
) -> None:
    fleet = ProcessFleet(
        tmp_path,
        2,
        broker=home.broker,
        settings={"HALOMQ_FLEET": "small", **NOMINAL},
        own={"device-2": {"HALOMQ_STORE_LIMIT_MB": "1"}},
    )
    with fleet:
        small = field_of(fleet, tmp_path, "small")
        small.wait_online()
        told: list[str] = []
        with small.client() as client:
            header = client.deploy(
                vgg.packaged.package, vgg.packaged.blobs, lambda text, _: told.append(text)
            )
        assert header.devices == ("device-1",)
        small.infer(vgg, picture(1))
        assert any("device-2 cannot serve" in text and "store.limit_mb" in text for text in told), (
            told
        )
        # A coordinator whose own store is too small for a model says so to who deploys it.
        fleet.kill("coordinator")
        fleet.own = {
            "coordinator": {
                "HALOMQ_STORE_LIMIT_MB": "1",
                "HALOMQ_DATA_DIR": str(tmp_path / "tiny"),
            }
        }
        small.restart("coordinator")
        with small.client() as client, pytest.raises(FleetError, match=r"store\.limit_mb"):
            client.deploy(vgg.packaged.package, vgg.packaged.blobs)
        fleet.check()


# Last, for it is some seconds until a piece is given up: its request could still come.
def test_a_piece_for_an_unknown_request_is_dropped_and_told(
    home: Field, vgg: Reference, stray_piece: tuple[str, str]
) -> None:
    device, request = stray_piece
    wait_until(lambda: f"request={request}" in home.log(device), "a line in the log")
    check_serves(home, vgg)
