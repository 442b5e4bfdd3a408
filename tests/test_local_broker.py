"""The broker that demo, benchmarks and tests start for themselves."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import paho.mqtt.client as mqtt
import psutil
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from agent.adapters import local_broker
from agent.adapters.local_broker import LocalBroker
from agent.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parent.parent
WAIT_S = 30.0


def echo(broker: LocalBroker) -> bytes:
    """Send a message through the broker, as an MQTT 3.1.1 client, and return what came back."""
    got: list[bytes] = []
    client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv311)
    client.on_message = lambda _client, _data, message: got.append(bytes(message.payload))

    def subscribed(*_: object) -> None:
        client.publish("echo", b"hello", qos=1)

    client.on_subscribe = subscribed
    client.connect(broker.host, broker.port)
    client.subscribe("echo", qos=1)
    while not got:
        assert client.loop(1.0) == mqtt.MQTT_ERR_SUCCESS
    client.disconnect()
    return got[0]


def gone(pid: int) -> bool:
    """Tell whether a process has ended, waiting for it if need be."""
    try:
        psutil.Process(pid).wait(WAIT_S)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return False
    return True


def test_mosquitto_serves_on_loopback_only_and_ends(tmp_path: Path) -> None:
    with LocalBroker.start(tmp_path / "new" / "folder") as broker:
        assert broker.kind == "mosquitto"
        assert echo(broker) == b"hello"
        listening = [
            found.laddr
            for found in psutil.net_connections("tcp")
            if found.pid == broker.pid and found.status == psutil.CONN_LISTEN
        ]
        assert listening == [("127.0.0.1", broker.port)]
        assert "running" in broker.log.read_text(encoding="utf-8")
    assert gone(broker.pid)
    broker.stop()


def test_two_at_a_time(tmp_path: Path) -> None:
    one = LocalBroker.start(tmp_path / "1")
    with one, LocalBroker.start(tmp_path / "2") as two:
        assert one.port != two.port
        assert echo(one) == echo(two) == b"hello"


def test_state_is_kept_in_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "with space"
    LocalBroker.start(folder).stop()
    assert (folder / "mosquitto.db").exists()


def test_a_taken_port_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind((local_broker.HOST, 0))
        taken.listen()
        free = local_broker._free_port
        ports = iter([taken.getsockname()[1], free(local_broker.HOST)])
        monkeypatch.setattr(local_broker, "_free_port", lambda _host: next(ports))
        with LocalBroker.start(tmp_path) as broker:
            assert broker.port != taken.getsockname()[1]
            assert echo(broker) == b"hello"


def test_amqtt_stands_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_broker, "find_mosquitto", lambda: None)
    with LocalBroker.start(tmp_path) as broker:
        assert broker.kind == "amqtt"
        assert echo(broker) == b"hello"
        process = broker._process
    assert gone(broker.pid)
    # It left by itself: SIGTERM was enough.
    assert process.returncode == 0, broker.log.read_text(encoding="utf-8")


def test_without_any_broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_broker, "find_mosquitto", lambda: None)
    with pytest.raises(BrokerError, match="apt-get install mosquitto"):
        LocalBroker.start(tmp_path, allow_embedded=False)
    # A Mosquitto configuration is of no use to amqtt.
    with pytest.raises(BrokerError, match="apt-get install mosquitto"):
        LocalBroker.start(tmp_path, config=ROOT / "broker_config" / "mosquitto.conf")
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(BrokerError, match="neither Mosquitto nor amqtt"):
        LocalBroker.start(tmp_path)


def test_a_broken_configuration_is_told(tmp_path: Path) -> None:
    config = tmp_path / "broken.conf"
    config.write_text("no_such_option true\n", encoding="utf-8")
    with pytest.raises(BrokerError, match=r"mosquitto did not start: .*no_such_option"):
        LocalBroker.start(tmp_path / "folder", config=config)


def test_a_broker_that_ignores_sigterm_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_broker, "STOP_TIMEOUT_S", 0.2)
    broker = LocalBroker.start(tmp_path)
    os.kill(broker.pid, signal.SIGSTOP)
    broker.stop()
    assert broker._process.returncode == -signal.SIGKILL


def end_by_itself(program: subprocess.Popen[str]) -> None:
    program.communicate("\n", timeout=WAIT_S)


def end_by_sigkill(program: subprocess.Popen[str]) -> None:
    program.kill()
    program.communicate(timeout=WAIT_S)


@pytest.mark.parametrize(
    ("end", "before"),
    # A program that ends well needs no help of the kernel.
    [(end_by_itself, "local_broker.tied_to_this_process = list"), (end_by_sigkill, "")],
    ids=["itself", "sigkill"],
)
def test_no_broker_outlives_its_program(
    tmp_path: Path, end: Callable[[subprocess.Popen[str]], None], before: str
) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        f"from agent.adapters import local_broker\n{before}\n"
        "print(local_broker.LocalBroker.start(Path(sys.argv[1])).pid, flush=True); input()"
    )
    program = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert program.stdout is not None
    pid = int(program.stdout.readline())
    assert psutil.pid_exists(pid)
    end(program)
    left = gone(pid)
    if not left:
        os.kill(pid, signal.SIGKILL)
    assert left


def test_the_built_in_settings_are_those_of_broker_config() -> None:
    def general(name: str) -> list[str]:
        text = (ROOT / "broker_config" / name).read_text(encoding="utf-8")
        lines = [line for line in text.splitlines() if line and not line.startswith("#")]
        access = ("listener", "allow_", "password_file", "acl_file", "certfile", "keyfile", "tls_")
        return [line for line in lines if not line.startswith(access)]

    settings = local_broker.SETTINGS.splitlines()
    assert "set_tcp_nodelay true" in settings
    assert general("mosquitto.conf") == settings
    assert general("mosquitto-tls.conf") == settings


def test_a_request_of_the_default_size_fits(broker: LocalBroker, fleet: str) -> None:
    client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    limits: list[int] = []

    def connected(*arguments: Any) -> None:
        limits.append(arguments[-1].MaximumPacketSize)

    client.on_connect = connected
    client.connect(broker.host, broker.port)
    client.loop_start()
    sent = client.publish(f"halomq/1/{fleet}/model/m/infer/1", bytes(8 * 1024 * 1024), qos=1)
    sent.wait_for_publish(WAIT_S)
    client.disconnect()
    client.loop_stop()
    assert sent.is_published()
    # The broker says what it takes: a request of 8 MiB with its topic and properties.
    assert limits == [8 * 1024 * 1024 + 64 * 1024]
