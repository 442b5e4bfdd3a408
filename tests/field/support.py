"""What the field tests share: fleets of real processes, MQTT clients, references and the command.

Nothing here sleeps for luck: every wait is for a condition, with a deadline that only a broken
fleet reaches.
"""

from __future__ import annotations

import io
import json
import os
import signal
import ssl
import subprocess
import sys
import time
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from threading import Condition
from typing import TYPE_CHECKING, Any, Self, TypeVar
from unittest import mock

import numpy as np
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.adapters.media import decode_input
from agent.adapters.runtime import RuntimeOptions, WholeModel
from agent.answers import answer as make_answer
from agent.cli import main
from agent.client import Client
from agent.config import BrokerConfig, Config
from agent.packaging import package_model
from agent.verification import relative_error
from agent.wire.messages import Answer, PlanHeader, Status, decode_answer, decode_json
from agent.wire.tensors import message_array
from agent.wire.topics import Topics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from agent.adapters.fleet import ProcessFleet
    from agent.adapters.local_broker import LocalBroker
    from agent.packaging import PackagedModel

T = TypeVar("T")
WAIT_S = 60.0
POLL_S = 0.05
# For tests of anything else: plans depend on nothing that is measured while they serve.
NOMINAL = {"HALOMQ_PLANNING_CALIBRATION_S": "0"}
TOLERANCE = 1e-5  # of the largest output: what HaloMQ promises
QOS = 1
V5, V311 = MQTTProtocolVersion.MQTTv5, MQTTProtocolVersion.MQTTv311


def wait_until(found: Callable[[], T], what: str, seconds: float = WAIT_S) -> T:
    """Return `found()` once it is true; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (result := found()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds:g} s in vain for {what}")
        time.sleep(POLL_S)
    return result


@dataclass(frozen=True)
class Message:
    """A message as it came."""

    topic: str
    payload: bytes
    retained: bool
    properties: Any

    def told(self, name: str) -> Any:
        """Return an MQTT 5 property, None where the message has none."""
        return getattr(self.properties, name, None)

    @property
    def request(self) -> str:
        """The last level of the topic: a result's request, a blob's digest."""
        return self.topic.rpartition("/")[2]


class Mqtt:
    """A plain MQTT client that keeps what it receives; it comes back after a broken connection."""

    def __init__(
        self,
        broker: LocalBroker,
        *filters: str,
        protocol: MQTTProtocolVersion = V5,
        login: tuple[str, str] | None = None,
        ca_file: Path | None = None,
    ) -> None:
        self._changed = Condition()
        self._filters = filters
        self._granted = False
        self.messages: list[Message] = []
        self._client = client = paho.Client(CallbackAPIVersion.VERSION2, protocol=protocol)
        client.on_connect = self._connected
        client.on_subscribe = self._subscribed
        client.on_message = self._received
        client.reconnect_delay_set(1, 1)
        if login is not None:
            client.username_pw_set(*login)
        if ca_file is not None:
            client.tls_set_context(ssl.create_default_context(cafile=str(ca_file)))
        client.connect(broker.host, broker.port)
        client.loop_start()
        with self._changed:
            assert self._changed.wait_for(lambda: self._granted, WAIT_S), "no subscription"

    def _connected(self, client: paho.Client, *_: Any) -> None:
        if self._filters:
            client.subscribe([(topic, QOS) for topic in self._filters])
        else:
            self._subscribed()

    def _subscribed(self, *_: Any) -> None:
        with self._changed:
            self._granted = True
            self._changed.notify_all()

    def _received(self, _client: Any, _data: Any, message: paho.MQTTMessage) -> None:
        with self._changed:
            self.messages.append(
                Message(message.topic, bytes(message.payload), message.retain, message.properties)
            )
            self._changed.notify_all()

    def publish(
        self, topic: str, payload: bytes = b"", *, retain: bool = False, **properties: Any
    ) -> None:
        """Publish, with MQTT 5 properties by their names in paho; return once the broker has it."""
        told = None
        if properties:
            told = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            for name, value in properties.items():
                setattr(told, name, value)
        self._client.publish(topic, payload, QOS, retain, told).wait_for_publish(WAIT_S)

    def wait(self, met: Callable[[list[Message]], T], what: str) -> T:
        """Wait until `met(messages)` is true and return it."""
        deadline = time.monotonic() + WAIT_S
        with self._changed:
            # Now and then without a message, too: what is awaited may look at more than those.
            while not (found := met(self.messages)):
                came = [message.topic for message in self.messages]
                assert time.monotonic() < deadline, f"waited in vain for {what}; came: {came}"
                self._changed.wait(1.0)
            return found

    def wait_for(self, count: int, topic_end: str = "") -> list[Message]:
        """Wait for `count` messages on topics that end so, and return all of them."""
        if count <= 0:
            return []

        def met(messages: list[Message]) -> list[Message]:
            mine = [message for message in messages if message.topic.endswith(topic_end)]
            return mine if len(mine) >= count else []

        return self.wait(met, f"{count} messages on ...{topic_end}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@dataclass
class Reference:
    """A model file and what onnxruntime on one device alone makes of it."""

    path: Path
    name: str
    packaged: PackagedModel = field(init=False)

    def __post_init__(self) -> None:
        """Load the model."""
        self.packaged = package_model(self.path, self.name)
        self._whole = WholeModel(self.path, RuntimeOptions(threads=1))

    @property
    def size(self) -> int:
        """Height and width of the model's input."""
        return self.packaged.graph.shape(self.packaged.graph.input)[2]

    @property
    def weight_bytes(self) -> int:
        """The size of the weights that are shipped apart from graphs."""
        return sum(self.weights.values())

    @property
    def weights(self) -> dict[str, int]:
        """The blobs that hold weights, by digest."""
        package = self.packaged.package
        apart = {package.graph.digest, package.manifest.digest}
        return {d: size for d, size in package.blobs().items() if d not in apart}

    def input_of(self, payload: bytes) -> Any:
        """Return a payload as the model's input."""
        graph = self.packaged.graph
        spec = graph.tensors[graph.input]
        return decode_input(payload, self.packaged.manifest, spec.shape, spec.dtype, None)

    def outputs(self, payload: bytes) -> dict[str, NDArray[Any]]:
        """Return the outputs for a payload."""
        arrays = self._whole.run([self.input_of(payload).whole()])
        return dict(zip(self.packaged.graph.outputs, arrays, strict=True))

    def result(self, payload: bytes) -> dict[str, Any]:
        """Return what an answer's `result` has to be for a payload."""
        image = self.input_of(payload)
        manifest = self.packaged.manifest
        return make_answer(self.outputs(payload), manifest, image.frame, image.shape)

    def check(self, answer: Answer, payload: bytes) -> None:
        """Check that an answer with tensors is the one of a single device."""
        assert answer.ok, answer.error
        assert answer.outputs is not None
        expected = self.outputs(payload)
        assert answer.outputs.keys() == expected.keys()
        for name, tensor in answer.outputs.items():
            assert relative_error(expected[name], message_array(tensor)) <= TOLERANCE, name


@dataclass
class Field:
    """A running fleet, and what a user of it has at hand."""

    fleet: ProcessFleet
    folder: Path
    config: Config

    @property
    def topics(self) -> Topics:
        """The fleet's topics."""
        return Topics(self.config.fleet)

    @property
    def broker(self) -> LocalBroker:
        """The fleet's broker."""
        return self.fleet.broker

    def client(self) -> Client:
        """Return a client, to be entered."""
        return Client(config=self.config)

    def mqtt(self, *filters: str, protocol: MQTTProtocolVersion | None = None) -> Mqtt:
        """Return a plain MQTT client that has logged in as the user and subscribed."""
        broker = self.config.broker
        password = broker.read_password()
        return Mqtt(
            self.broker,
            *filters,
            protocol=protocol or (V5 if self.broker.kind == "mosquitto" else V311),
            login=(broker.username, password) if broker.username and password else None,
            ca_file=broker.ca_file,
        )

    def statuses(self) -> dict[str, Status]:
        """Return the retained statuses of all that ever ran, by device."""
        everybody = {*self.fleet.names, "coordinator"}
        return self.wait_seen(
            lambda statuses, _: statuses if statuses.keys() >= everybody else {}, "all statuses"
        )

    def plan(self, model: str) -> PlanHeader:
        """Return the retained plan of a model."""
        (found,) = self.wait_seen(
            lambda _, plans: [plan for plan in plans if plan.model == model], f"a plan of {model}"
        )
        return found

    def wait_seen(self, met: Callable[[dict[str, Status], list[PlanHeader]], T], what: str) -> T:
        """Wait until `met(statuses, plans)` is true of what the broker has retained."""
        seen: list[object] = []

        def found(messages: list[Message]) -> T:
            self.fleet.check()
            told = {message.topic: message.payload for message in messages}
            statuses = [
                decode_json(payload, Status)
                for topic, payload in told.items()
                if payload and topic.endswith("/status")
            ]
            plans = [
                decode_json(payload, PlanHeader)
                for topic, payload in told.items()
                if payload and topic.endswith("/plan")
            ]
            seen[:] = [statuses, plans]
            return met({status.device: status for status in statuses}, plans)

        with self.mqtt(self.topics.status("+"), self.topics.plan("+")) as listener:
            try:
                return listener.wait(found, what)
            except AssertionError as error:
                raise AssertionError(f"{error}; there is {seen}") from None

    def wait_online(self) -> None:
        """Wait until every process of the fleet is online."""

        def online(statuses: dict[str, Status], _plans: list[PlanHeader]) -> bool:
            ready = {
                status.device
                for status in statuses.values()
                if status.state == "online"
                and (status.capacity is not None or status.role == "coordinator")
            }
            return ready >= self.fleet.processes.keys()

        self.wait_seen(online, "every process to be online")

    def wait_for_plan(self, model: str, devices: Iterable[str], newer_than: int = 0) -> PlanHeader:
        """Wait until exactly `devices` serve a model, each with the plan that is announced."""
        wanted = set(devices)

        def served(statuses: dict[str, Status], plans: list[PlanHeader]) -> PlanHeader | None:
            header = next((plan for plan in plans if plan.model == model), None)
            if header is None or set(header.devices) != wanted or header.epoch <= newer_than:
                return None
            told = [statuses[device] for device in wanted if device in statuses]
            epochs = [status.plans.get(model) for status in told if status.state == "online"]
            return header if epochs == [header.epoch] * len(wanted) else None

        found = self.wait_seen(served, f"{model} on {', '.join(sorted(wanted))}")
        assert found is not None
        return found

    def deploy(self, model: Reference) -> PlanHeader:
        """Have the fleet serve a model."""
        with self.client() as client:
            return client.deploy(model.packaged.package, model.packaged.blobs)

    def infer(self, model: Reference, payload: bytes) -> Answer:
        """Ask for one answer with tensors, and check it."""
        with self.client() as client:
            answer = client.infer(model.name, payload, tensors=True)
        model.check(answer, payload)
        return answer

    def log(self, name: str) -> str:
        """Return what a process has logged."""
        return self.fleet.log(name).read_text(errors="replace")

    def restart(self, *names: str) -> None:
        """Start what does not run, and wait until all are online."""
        for name in names:
            if name not in self.fleet.processes:
                self.fleet.start(name)
        self.wait_online()


@contextmanager
def frozen(field: Field, *names: str) -> Iterator[None]:
    """Stop processes for a moment; the broker does not miss them before their keepalive ends."""
    processes = [field.fleet.processes[name] for name in names]
    for process in processes:
        process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            process.send_signal(signal.SIGCONT)


def resume_broker(broker: LocalBroker) -> None:
    """Start a broker that has ended, with the same port, configuration and state."""
    with broker.log.open("ab") as log:
        broker._process = subprocess.Popen(
            broker._process.args,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            process_group=0,
        )
    assert broker._accepts()


def field_of(fleet: ProcessFleet, folder: Path, name: str = "home") -> Field:
    """Return a fleet with an anonymous user's configuration."""
    broker = BrokerConfig(host=fleet.broker.host, port=fleet.broker.port)
    return Field(fleet, folder, Config(fleet=name, broker=broker))


def picture(seed: int, size: int = 96) -> bytes:
    """Return a .npy picture of random pixels, another one for each seed."""
    pixels = np.random.Generator(np.random.PCG64(seed)).integers(0, 256, (size, size, 3), np.uint8)
    return npy(pixels)


def npy(array: NDArray[Any]) -> bytes:
    """Return an array as a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def answers(messages: Iterable[Message]) -> dict[str, list[Answer]]:
    """Return the answers among messages by request."""
    found: dict[str, list[Answer]] = {}
    for message in messages:
        if "/result/" in message.topic:
            found.setdefault(message.request, []).append(decode_answer(message.payload))
    return found


def statuses_of(messages: Iterable[Message], device: str) -> list[Status]:
    """Return a device's statuses in the order in which they came."""
    return [
        decode_json(message.payload, Status)
        for message in messages
        if message.topic.endswith(f"/device/{device}/status")
    ]


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it printed, as JSON."""
        return json.loads(self.out)

    def check_refused(self, status: int, *words: str) -> None:
        """Check that it failed with this status and one clear message that holds `words`."""
        assert self.status == status, self.out + self.err
        assert "Traceback" not in self.err
        lines = self.err.strip().splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("halomq: ")
        for word in words:
            assert word in lines[0], self.err


def halomq(*arguments: object, broker: LocalBroker | None = None) -> Outcome:
    """Run the command in this process: as true as in one of its own, and a second quicker."""
    out, err = io.StringIO(), io.StringIO()
    line = ["halomq", *command(*arguments, broker=broker)[3:]]
    status: object = 0
    with (
        mock.patch.object(sys, "argv", line),
        mock.patch.dict(os.environ, clean_environment(), clear=True),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as ended:
            status = ended.code
    return Outcome(status if isinstance(status, int) else 0, out.getvalue(), err.getvalue())


def command(*arguments: object, broker: LocalBroker | None = None) -> list[str]:
    """Return the command line of `halomq ...`, with a broker's address where one is given."""
    address: list[object] = ["--host", broker.host, "--port", broker.port] if broker else []
    return [sys.executable, "-m", "agent", *map(str, [*arguments, *address])]


def clean_environment() -> dict[str, str]:
    """Return this process's environment without settings of HaloMQ."""
    return {name: value for name, value in os.environ.items() if not name.startswith("HALOMQ_")}
