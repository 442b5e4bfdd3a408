"""The fleet on other brokers: one with TLS, passwords and an access list, and embedded amqtt."""

from __future__ import annotations

import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from agent.adapters import local_broker
from agent.adapters.fleet import ProcessFleet
from agent.adapters.local_broker import LocalBroker
from agent.config import BrokerConfig, Config
from agent.packaging import package_model
from agent.wire.messages import decode_answer
from tests.field.support import (
    NOMINAL,
    WAIT_S,
    Field,
    Outcome,
    Reference,
    clean_environment,
    command,
    field_of,
    halomq,
    picture,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import SecureBroker

pytestmark = pytest.mark.field


def login(secure: SecureBroker, user: str = "alice") -> tuple[object, ...]:
    """Return the flags with which a user logs in."""
    password = secure.password_file(user)
    return ("--tls", "--ca-file", secure.ca_file, "--username", user, "--password-file", password)


@pytest.fixture(scope="module", autouse=True)
def strangers(
    secure_broker: SecureBroker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[tuple[str, str], subprocess.Popen[str]]]:
    """Processes that may not log in, started first: an agent tries for a while."""
    folder = tmp_path_factory.mktemp("strangers")
    wrong, other = folder / "wrong", folder / "other.crt"
    wrong.write_text("no such password\n")
    request = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    subprocess.run(
        ["openssl", *request, "-nodes", "-keyout", folder / "key", "-out", other, "-subj", "/CN=x"],
        check=True,
        capture_output=True,
    )
    user = ("--username", "pi-1")
    right = (*user, "--password-file", secure_broker.password_file("pi-1"))
    flags: dict[str, tuple[object, ...]] = {
        "wrong password": (*login(secure_broker)[:3], *user, "--password-file", wrong),
        "unknown CA": (*right, "--tls", "--ca-file", other),
        "no TLS": right,
    }
    started = {
        (role, kind): subprocess.Popen(
            command(role, *given, broker=secure_broker.broker),
            env=clean_environment() | {"HALOMQ_DATA_DIR": str(folder / f"{role} {kind}")},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for role in ("agent", "coordinator", "devices")
        for kind, given in flags.items()
    }
    yield started
    for process in started.values():
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def secured(
    secure_broker: SecureBroker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Field]:
    """Two agents and a coordinator that log in with TLS; its user is alice, a client."""
    folder = tmp_path_factory.mktemp("secured")
    agents = ("pi-1", "pi-2")
    fleet = ProcessFleet(
        folder,
        len(agents),
        broker=secure_broker.broker,
        settings={
            **NOMINAL,
            "HALOMQ_BROKER_TLS": "true",
            "HALOMQ_BROKER_CA_FILE": str(secure_broker.ca_file),
        },
        own={
            user: {"HALOMQ_BROKER_PASSWORD_FILE": str(secure_broker.password_file(user))}
            for user in (*agents, "coordinator")
        },
    )
    fleet.names = agents
    with fleet:
        broker = BrokerConfig(
            host=fleet.broker.host,
            port=fleet.broker.port,
            tls=True,
            ca_file=secure_broker.ca_file,
            username="alice",
            password_file=secure_broker.password_file("alice"),
        )
        field = Field(fleet, folder, Config(fleet=secure_broker.fleet, broker=broker))
        field.wait_online()
        yield field


def test_a_client_deploys_asks_and_removes_under_the_access_list(
    secured: Field, secure_broker: SecureBroker, vgg: Reference, tmp_path: Path
) -> None:
    broker, flags = secure_broker.broker, login(secure_broker)
    deployed = halomq("deploy", vgg.path, "--name", "thin", "--json", *flags, broker=broker)
    assert deployed.status == 0, deployed.err
    assert set(deployed.json["devices"]) == set(secured.fleet.names)
    file = tmp_path / "picture.npy"
    file.write_bytes(picture(1))
    told = halomq("infer", "thin", file, *flags, broker=broker)
    assert told.status == 0, told.err
    assert told.json == vgg.result(picture(1))
    seen = halomq("devices", "--json", *flags, broker=broker)
    assert {device["state"] for device in seen.json["devices"]} == {"online"}
    assert halomq("remove", "thin", *flags, broker=broker).status == 0


def test_requests_of_every_form_pass_the_access_list(secured: Field, vgg: Reference) -> None:
    package = package_model(vgg.path, "forms")
    mine = secured.topics.root + "/device/alice/response/7"
    with (
        secured.client() as client,
        secured.mqtt(mine, secured.topics.result("forms", "+")) as user,
    ):
        header = client.deploy(package.package, package.blobs)
        assert len(header.devices) == 2
        # Without an id: an agent publishes it again under one that it gives.
        user.publish(secured.topics.infer("forms"), picture(2), ResponseTopic=mine)
        told = user.wait_for(2)
        assert {message.topic == mine for message in told} == {True, False}
        assert all(decode_answer(m.payload).result == vgg.result(picture(2)) for m in told)
        name = client.send("forms", picture(3), tensors=True, traces=True)
        vgg.check(client.answer("forms", name), picture(3))
        assert len(client.traces("forms", name, 2, timeout_s=30)) == 2
        client.remove("forms")


def test_a_request_survives_a_killed_agent_under_the_access_list(
    secured: Field, vgg: Reference
) -> None:
    package = package_model(vgg.path, "survivor")
    with secured.client() as client:
        before = client.deploy(package.package, package.blobs)
        first, victim = before.devices
        # Stopped, it cannot do its part before it is killed: the request is in flight for certain.
        secured.fleet.processes[victim].send_signal(signal.SIGSTOP)
        name = client.send("survivor", picture(4), tensors=True)
        client.flush()
        secured.fleet.kill(victim)
        answer = client.answer("survivor", name, WAIT_S)
        assert answer.devices == (first,)
        vgg.check(answer, picture(4))
        # The one that comes back has the plan's weights, and is told of requests on their way.
        secured.restart(victim)
        secured.wait_for_plan("survivor", before.devices, newer_than=answer.epoch)
        vgg.check(client.infer("survivor", picture(5), tensors=True), picture(5))
        client.remove("survivor")


def test_the_fleet_works_on_the_embedded_broker(
    tmp_path: Path, defects: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_broker, "find_mosquitto", lambda: None)
    with LocalBroker.start(tmp_path / "broker") as broker:
        assert broker.kind == "amqtt"
        with ProcessFleet(tmp_path, 2, broker=broker, settings=NOMINAL) as fleet:
            field = field_of(fleet, tmp_path)
            field.wait_online()
            assert set(field.deploy(defects).devices) == set(fleet.names)
            field.infer(defects, picture(1))
            part = tmp_path / "part.npy"
            part.write_bytes(picture(2))
            told = halomq("infer", defects.name, part, broker=broker)
            assert told.status == 0, told.err
            assert told.json == defects.result(picture(2))
            # amqtt keeps wills, too: a killed agent is planned around.
            fleet.kill("device-2")
            wait_until(lambda: field.statuses()["device-2"].state == "offline", "the last will")
            assert field.infer(defects, picture(3)).devices == ("device-1",)


@pytest.mark.parametrize("role", ["devices", "agent", "coordinator"])
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("wrong password", "check username and password_file"),
        ("unknown CA", "check ca_file"),
        ("no TLS", ""),
    ],
)
def test_who_may_not_log_in_is_told_why(
    strangers: dict[tuple[str, str], subprocess.Popen[str]], role: str, kind: str, words: str
) -> None:
    process = strangers[role, kind]
    _, err = process.communicate(timeout=WAIT_S)
    if role == "devices":
        Outcome(process.returncode, "", err).check_refused(5, words)
        return
    # An agent logs each try; what it ends with is the message.
    assert process.returncode == 5, err
    assert "Traceback" not in err
    last = err.strip().splitlines()[-1]
    assert last.startswith("halomq: ")
    assert words in last
