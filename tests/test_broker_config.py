"""broker_config/ on a real Mosquitto: what it lets in, to whom, and how large."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import subprocess
import time
from pathlib import Path
from queue import Queue
from typing import TYPE_CHECKING, Any, Self

import paho.mqtt.client as mqtt
import psutil
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

from agent.adapters.local_broker import LocalBroker, find_mosquitto

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import MakeCredentials, SecureBroker

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "broker_config"
WAIT_S = 30.0
OK = 0
NO_SUBSCRIBERS = 16
NOT_AUTHORIZED = 135
MAX_PACKET = 8 * 1024 * 1024 + 64 * 1024
T = "halomq/1/home"


class Member:
    """An MQTT 5 client whose answers a test can wait for."""

    def __init__(
        self,
        broker: LocalBroker,
        login: tuple[str, str] | None = None,
        ca_file: Path | None = None,
        *,
        host: str = "127.0.0.1",
        port: int | None = None,
        will: str | None = None,
    ) -> None:
        self._inbox: Queue[tuple[str, bytes]] = Queue()
        self._answers: Queue[int] = Queue()
        self.lost: Queue[bool] = Queue()
        self.client = client = mqtt.Client(
            CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5, reconnect_on_failure=False
        )
        client.on_connect = self._answered(3)
        client.on_publish = self._answered(3)
        client.on_subscribe = lambda *arguments: self._answers.put(arguments[3][0].value)
        client.on_message = lambda _client, _data, message: self._inbox.put(
            (message.topic, bytes(message.payload))
        )
        client.on_disconnect = lambda *_: self.lost.put(item=True)
        if login is not None:
            client.username_pw_set(*login)
        if ca_file is not None:
            client.tls_set_context(ssl.create_default_context(cafile=str(ca_file)))
        if will is not None:
            client.will_set(will, b"gone", qos=1)
        client.connect(host, port or broker.port)
        client.loop_start()
        self.connected = self._answers.get(timeout=WAIT_S)

    def _answered(self, position: int) -> Any:
        return lambda *arguments: self._answers.put(arguments[position].value)

    def publish(self, topic: str, payload: bytes = b"x") -> int:
        """Publish with QoS 1 and return the broker's reason code."""
        self.client.publish(topic, payload, qos=1)
        return self._answers.get(timeout=WAIT_S)

    def subscribe(self, topic: str) -> int:
        """Subscribe and return the broker's reason code."""
        self.client.subscribe(topic, qos=1)
        return self._answers.get(timeout=WAIT_S)

    def received_until(self, payload: bytes) -> list[str]:
        """Return the topics of what has come, up to the message with `payload`."""
        topics: list[str] = []
        while True:
            topic, got = self._inbox.get(timeout=WAIT_S)
            if got == payload:
                return topics
            topics.append(topic)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.disconnect()
        self.client.loop_stop()


def member(secure: SecureBroker, user: str, **options: Any) -> Member:
    """Connect as one of the users."""
    return Member(secure.broker, (user, secure.password(user)), secure.ca_file, **options)


@pytest.fixture
def members(secure_broker: SecureBroker) -> Iterator[dict[str, Member]]:
    """Connect every user."""
    with contextlib.ExitStack() as stack:
        users = secure_broker.users
        yield {user: stack.enter_context(member(secure_broker, user)) for user in users}


# topic: who may write it, who may read it
RIGHTS = {
    f"{T}/device/pi-1/status": ("pi-1", "everybody"),
    f"{T}/device/standby-pi-1/status": ("", "everybody"),
    f"{T}/device/standby-pi-2/status": ("pi-2", "everybody"),
    f"{T}/device/standby-pi-2/inbox": ("everybody", "pi-2"),
    f"{T}/device/coordinator/status": ("coordinator", "everybody"),
    f"{T}/device/alice/status": ("", "everybody"),
    f"{T}/device/pi-1/inbox": ("everybody", "pi-1"),
    f"{T}/device/coordinator/inbox": ("everybody", "coordinator"),
    f"{T}/device/alice/inbox": ("everybody", "alice"),
    f"{T}/device/pi-1/halo": ("pi-1 pi-2", "pi-1"),
    f"{T}/device/pi-2/halo": ("pi-1 pi-2", "pi-2"),
    f"{T}/device/pi-1/drill": ("alice", "pi-1"),
    f"{T}/device/pi-1/echo": ("pi-1", "pi-1"),
    f"{T}/device/alice/echo": ("alice", "alice"),
    f"{T}/device/pi-1/beat": ("pi-1", "pi-1 coordinator"),
    f"{T}/device/coordinator/beat": ("", "coordinator"),
    f"{T}/device/alice/response/1/2": ("pi-1 pi-2", "alice"),
    f"{T}/device/alice/other": ("", "alice"),
    f"{T}/device/pi-1": ("", "pi-1"),
    f"{T}/model/m/plan": ("coordinator pi-2", "everybody"),
    f"{T}/model/m/deployment": ("coordinator pi-2", "coordinator pi-2"),
    f"{T}/model/m/infer": ("alice", "pi-1 pi-2"),
    f"{T}/model/m/infer/1": ("alice pi-1 pi-2", "pi-1 pi-2"),
    f"{T}/model/m/infer/1/tensors": ("alice pi-1 pi-2", "pi-1 pi-2"),
    f"{T}/model/m/result/1": ("pi-1 pi-2", "pi-1 pi-2 alice"),
    f"{T}/model/m/trace/1": ("pi-1 pi-2", "everybody"),
    f"{T}/blob/0123": ("coordinator pi-2 alice", "pi-1 pi-2 coordinator"),
    f"{T}/model/m/other": ("", ""),
    f"{T}/other": ("", ""),
    "halomq/1/other-fleet/device/pi-1/inbox": ("", ""),
    "halomq/2/home/device/pi-1/inbox": ("", ""),
    "elsewhere": ("", ""),
    "$SYS/broker/x": ("", ""),
}


def names(text: str, members: dict[str, Member]) -> set[str]:
    return set(members) if text == "everybody" else set(text.split())


def test_each_writes_what_its_role_must_and_nothing_else(members: dict[str, Member]) -> None:
    for topic, (writers, _) in RIGHTS.items():
        answers = {user: one.publish(topic) for user, one in members.items()}
        assert set(answers.values()) <= {OK, NO_SUBSCRIBERS, NOT_AUTHORIZED}
        allowed = {user for user, code in answers.items() if code != NOT_AUTHORIZED}
        assert allowed == names(writers, members), topic


def test_each_reads_its_own_subtree_and_what_its_role_must(members: dict[str, Member]) -> None:
    # Mosquitto grants every subscription and filters what it delivers, so everybody asks for
    # everything. The marker comes last, by the same way, so what is not there by then never comes.
    for one in members.values():
        assert one.subscribe("#") <= 1
    sent = []
    for topic, (writers, _) in RIGHTS.items():
        for user in sorted(names(writers, members)):
            members[user].publish(topic)
            sent.append(topic)
    for user, one in members.items():
        assert one.publish(f"{T}/device/{user}/inbox", b"end") == OK
        expected = [topic for topic in sent if user in names(RIGHTS[topic][1], members)]
        assert one.received_until(b"end") == expected, user


def test_a_last_will_in_another_name_is_dropped(
    secure_broker: SecureBroker, members: dict[str, Member]
) -> None:
    alice = members["alice"]
    assert alice.subscribe(f"{T}/device/+/status") <= 1
    for topic in (f"{T}/device/pi-2/status", f"{T}/device/pi-1/status"):
        with member(secure_broker, "pi-1", will=topic) as leaving:
            # MQTT 5's way to leave and have the will published all the same.
            leaving.client.disconnect(ReasonCode(PacketTypes.DISCONNECT, identifier=4))
            assert leaving.lost.get(timeout=WAIT_S)
    # By the second answer the broker has been through every packet that lay before it.
    assert alice.publish(f"{T}/device/alice/echo") == NO_SUBSCRIBERS
    assert alice.subscribe(f"{T}/device/alice/inbox") <= 1
    assert alice.publish(f"{T}/device/alice/inbox", b"end") == OK
    assert alice.received_until(b"end") == [f"{T}/device/pi-1/status"]


@pytest.mark.parametrize("login", [("pi-1", "wrong"), ("nobody", "x"), ("pi-1", ""), None], ids=str)
def test_without_the_right_password_nobody_comes_in(
    secure_broker: SecureBroker, login: tuple[str, str] | None
) -> None:
    with Member(secure_broker.broker, login, secure_broker.ca_file) as refused:
        assert refused.connected == NOT_AUTHORIZED


def test_passwords_are_personal(secure_broker: SecureBroker) -> None:
    login = ("pi-2", secure_broker.password("pi-1"))
    with Member(secure_broker.broker, login, secure_broker.ca_file) as refused:
        assert refused.connected == NOT_AUTHORIZED


def test_without_tls_nobody_comes_in(secure_broker: SecureBroker) -> None:
    # A CONNECT packet in the clear, with user and password, as paho would send it.
    user, password = b"pi-1", secure_broker.password("pi-1").encode()
    text = b"".join(len(x).to_bytes(2, "big") + x for x in (b"c", user, password))
    body = b"\0\4MQTT\4\xc2\0\x3c" + text
    with socket.create_connection(("127.0.0.1", secure_broker.broker.port), WAIT_S) as plain:
        plain.sendall(bytes([0x10, len(body)]) + body)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while part := plain.recv(100):
                answer += part
    # At most a TLS alert (0x15), never a CONNACK (0x20).
    assert answer[:1] in {b"", b"\x15"}


def test_the_certificate_is_for_this_broker(secure_broker: SecureBroker) -> None:
    for host in ("localhost", "127.0.0.1"):
        with member(secure_broker, "pi-1", host=host) as one:
            assert one.connected == OK
    context = ssl.create_default_context(cafile=str(secure_broker.ca_file))
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    address = ("127.0.0.1", secure_broker.broker.port)
    with (
        socket.create_connection(address, WAIT_S) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as secured,
    ):
        assert secured.version() in {"TLSv1.2", "TLSv1.3"}
    with socket.create_connection(address, WAIT_S) as raw, pytest.raises(ssl.SSLError):
        context.wrap_socket(raw, server_hostname="elsewhere.example")
    with socket.create_connection(address, WAIT_S) as raw, pytest.raises(ssl.SSLError):
        ssl.create_default_context().wrap_socket(raw, server_hostname="localhost")


@pytest.mark.parametrize("config", ["mosquitto.conf", "mosquitto-tls.conf"])
def test_a_packet_that_is_too_large_ends_the_connection(
    broker: LocalBroker, secure_broker: SecureBroker, config: str
) -> None:
    topic = f"{T}/model/m/infer/1"
    with Member(broker) if config == "mosquitto.conf" else member(secure_broker, "alice") as alice:
        # Two bytes for the topic's length, the message id, and no properties.
        payload = MAX_PACKET - len(topic) - 5
        assert alice.publish(topic, bytes(payload - 5)) in {OK, NO_SUBSCRIBERS}
        alice.client.publish(topic, bytes(payload + 1), qos=1)
        assert alice.lost.get(timeout=WAIT_S)


@contextlib.contextmanager
def mosquitto(config: Path, folder: Path, *arguments: str) -> Iterator[psutil.Process]:
    """Run Mosquitto on a configuration as it stands; yield its process once it listens."""
    program = find_mosquitto()
    assert program is not None, "this test needs Mosquitto"
    log = folder / "log"
    with log.open("wb") as output:
        command = [program, "-c", str(config), *arguments]
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=output)
    try:
        until = time.monotonic() + WAIT_S
        while not addresses(process.pid):
            assert process.poll() is None, log.read_text(encoding="utf-8")
            assert time.monotonic() < until
            time.sleep(0.02)
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(WAIT_S)
    assert "Error: Duplicate" not in log.read_text(encoding="utf-8")


def addresses(pid: int) -> set[tuple[Any, ...]]:
    """Return where (host, port) a process listens."""
    return {
        tuple(found.laddr)
        for found in psutil.net_connections("tcp")
        if found.pid == pid and found.status == psutil.CONN_LISTEN
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_the_plain_configuration_serves_this_machine_only(
    broker: LocalBroker, tmp_path: Path
) -> None:
    port = free_port()
    with mosquitto(CONFIGS / "mosquitto.conf", tmp_path, "-p", str(port)) as process:
        assert {host for host, _ in addresses(process.pid)} <= {"127.0.0.1", "::1"}
        with Member(broker, port=port) as anybody:
            assert anybody.connected == OK
            assert anybody.publish(f"{T}/model/m/plan") != NOT_AUTHORIZED


def test_the_plain_configuration_never_opens_another_listener(
    broker: LocalBroker, tmp_path: Path
) -> None:
    # A drop-in beside Debian's main file and somebody else's listener.
    port = free_port()
    drop_ins = tmp_path / "conf.d"
    drop_ins.mkdir()
    halomq = (CONFIGS / "mosquitto.conf").read_text(encoding="utf-8")
    (drop_ins / "halomq.conf").write_text(halomq, encoding="utf-8")
    (drop_ins / "other.conf").write_text(f"listener {port} 127.0.0.1\n", encoding="utf-8")
    main = tmp_path / "mosquitto.conf"
    text = f"persistence true\npersistence_location {tmp_path}/\ninclude_dir {drop_ins}\n"
    main.write_text(text, encoding="utf-8")
    with mosquitto(main, tmp_path) as process, Member(broker, port=port) as anybody:
        assert addresses(process.pid) == {("127.0.0.1", port)}
        assert anybody.connected == NOT_AUTHORIZED


def test_credentials_are_private_and_not_overwritten(
    tmp_path: Path, make_credentials: MakeCredentials
) -> None:
    out = tmp_path / "credentials"
    arguments = ("--out", out, "--host", "broker.local", "--host", "192.0.2.1", "--agent", "pi-1")
    assert make_credentials(*arguments).returncode == 0
    files = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert {path.name for path in files} == {
        *("ca.crt", "ca.key", "server.crt", "server.key"),
        *("passwords", "acl", "mosquitto.conf", "pi-1.password"),
    }
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert {path.stat().st_mode & 0o777 for path in (out, out / "clients")} == {0o700}
    assert files[out / "clients" / "pi-1.password"].strip() not in files[out / "passwords"]

    refused = make_credentials(*arguments)
    assert refused.returncode == 1
    assert "--force" in refused.stderr
    assert {path: path.read_bytes() for path in files} == files

    assert make_credentials("--out", out, "--force", "--client", "bob").returncode == 0
    assert (out / "ca.crt").read_bytes() != files[out / "ca.crt"]
    assert [path.name for path in (out / "clients").iterdir()] == ["bob.password"]
    assert "pi-1" not in (out / "passwords").read_text(encoding="utf-8")
    assert "pi-1" not in (out / "acl").read_text(encoding="utf-8")


def test_users_are_added_while_the_broker_runs(
    tmp_path: Path, make_credentials: MakeCredentials
) -> None:
    out = tmp_path / "credentials"
    assert make_credentials("--out", out, "--agent", "pi-1").returncode == 0
    with LocalBroker.start(tmp_path / "state", config=out / "mosquitto.conf") as running:
        before = (out / "ca.crt").read_bytes()
        assert make_credentials("--out", out, "--add", "--client", "bob").returncode == 0
        assert (out / "ca.crt").read_bytes() == before
        os.kill(running.pid, signal.SIGHUP)
        login = ("bob", (out / "clients" / "bob.password").read_text(encoding="utf-8").strip())
        until = time.monotonic() + WAIT_S
        while True:
            with Member(running, login, out / "ca.crt") as bob:
                if bob.connected == OK:
                    assert bob.publish(f"{T}/model/m/infer/1") == NO_SUBSCRIBERS
                    assert bob.publish(f"{T}/model/m/plan") == NOT_AUTHORIZED
                    break
            assert time.monotonic() < until
        again = make_credentials("--out", out, "--add", "--agent", "bob")
        assert again.returncode == 1
        assert "has bob already" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--agent", "a/b"], "no valid name"),
        (["--agent", "a+"], "no valid name"),
        (["--fleet", "#"], "no valid name"),
        (["--agent", "a", "--client", "a"], "one role"),
        (["--host", "a,DNS:evil"], "no host name"),
        (["--add", "--agent", "a"], "leave out --add"),
        (["--owner", "no-such-user"], "no-such-user"),
    ],
)
def test_wrong_arguments_are_told(
    tmp_path: Path, make_credentials: MakeCredentials, arguments: list[str], words: str
) -> None:
    refused = make_credentials("--out", tmp_path / "out", *arguments)
    assert refused.returncode != 0
    assert words in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_missing_openssl_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_credentials: MakeCredentials
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    refused = make_credentials("--out", tmp_path / "out", "--agent", "a")
    assert refused.returncode == 1
    assert "apt-get install openssl" in refused.stderr
