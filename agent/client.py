"""The Python client: deploy a model, send requests, look at the fleet.

    from halomq import Client

    with Client("broker.local") as client:
        print(client.infer("defects", Path("part.jpg")).result)

A client is used from one thread at a time; it has no thread of its own but while it deploys.
"""

from __future__ import annotations

import getpass
import io
import re
import secrets
import select
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from agent.adapters.mqtt import HANDSHAKE_S, Acknowledged, Connected, Disconnected, Link, Received
from agent.adapters.store import MemoryBlobs
from agent.config import BrokerConfig, Config
from agent.errors import BrokerError, ConfigError, FleetError, WireError
from agent.service.transfer import TransferService
from agent.unanswered import Question, Unanswered
from agent.wire import messages as wire
from agent.wire.topics import NAME, Topics

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from agent.wire.messages import Answer, PlanHeader, Progress, Status, Trace
    from agent.wire.model import ModelPackage

QUIET_S = 0.4
FIRST_WAIT_S = 1.0
MAX_KEPT = 4096
DEPLOY_SILENCE_S = 120.0


def _silent(_text: str, _fraction: float) -> None:
    """Report nothing."""


class Client:
    """A connection of user `name` to the fleet `fleet` on one broker; a context manager.

    Raises:
        BrokerError: on entering, if the broker cannot be reached or refuses the user.
    """

    def __init__(
        self,
        host: str = "localhost",
        port: int | None = None,
        *,
        fleet: str = "home",
        config: Config | None = None,
    ) -> None:
        self._config = config or Config(fleet=fleet, broker=BrokerConfig(host=host, port=port))
        broker = self._config.broker
        self.name = _checked(broker.username or f"{_user()}-{secrets.token_hex(3)}", "user name")
        self._topics = Topics(self._config.fleet)
        self._link = Link(f"halomq-{self._config.fleet}-{self.name}-{secrets.token_hex(3)}", broker)
        self._received: list[Received] = []
        self._unanswered = Unanswered()
        self._is_refused = False

    def __enter__(self) -> Self:
        self._open()
        return self

    def _open(self) -> None:
        self._link.connect()
        opened = time.monotonic()
        # Ends: taking the events raises once every version of the protocol has failed.
        while not self._link.connected:
            if time.monotonic() - opened > HANDSHAKE_S:
                self._link.abandon()
            self._take_events()
            if self._link.socket is None:
                self._link.connect()
                opened = time.monotonic()
            self._pump(0.1)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._link.close()

    def devices(self, wait_s: float = 3.0) -> list[Status]:
        """Return the statuses of all devices and coordinators, offline ones too."""
        found = self._retained(self._topics.status("+"), wire.Status, wait_s)
        return sorted(found, key=lambda status: (status.role, status.device))

    def plans(self, wait_s: float = 3.0) -> list[PlanHeader]:
        """Return the current plan of every deployed model."""
        found = self._retained(self._topics.plan("+"), wire.PlanHeader, wait_s)
        return sorted(found, key=lambda header: header.model)

    def infer(
        self,
        model: str,
        request: bytes | Path | np.ndarray[Any, Any],
        *,
        tensors: bool = False,
        timeout_s: float = 30.0,
        content_type: str | None = None,
    ) -> Answer:
        """Send one request and return its answer.

        `request` is a picture or tensor file's content or path, or an array of the input's shape.
        With `tensors` the answer's `outputs` hold the model's raw outputs.

        Raises:
            FleetError: if the model is not deployed, or nothing answers within `timeout_s`.
            BrokerError: if the connection is lost, or the request is too large for the broker.
        """
        name = self.send(
            model, request, tensors=tensors, timeout_s=timeout_s, content_type=content_type
        )
        return self.answer(model, name, timeout_s)

    def send(
        self,
        model: str,
        request: bytes | Path | np.ndarray[Any, Any],
        *,
        tensors: bool = False,
        timeout_s: float = 30.0,
        content_type: str | None = None,
        traces: bool = False,
    ) -> str:
        """Publish a request and return its id, for `answer` and, if told so here, `traces`."""
        payload = _payload(request)
        name = f"{self.name}-{secrets.token_hex(4)}"
        topics = [self._topics.result(_checked(model, "model name"), name)]
        self._link.subscribe(*topics, *([self._topics.trace(model, name)] if traces else []))
        topic = self._topics.infer(model, name, tensors=tensors)
        question = Question(topic, payload, content_type, time.monotonic() + timeout_s)
        self._ask(question)
        self._unanswered.add(name, question)
        return name

    def answer(self, model: str, name: str, timeout_s: float = 30.0) -> Answer:
        """Wait for the answer of a request that was sent.

        Raises:
            FleetError: if nothing answers within `timeout_s`.
        """
        topic = self._topics.result(model, name)
        try:
            payload = self._wait(lambda: self._take(topic), timeout_s)
        finally:
            self._unanswered.remove(name)
            self._link.unsubscribe(topic)
        if payload is None:
            known = [header.model for header in self.plans()]
            if model not in known:
                listed = ", ".join(known) or "none"
                raise FleetError(f"model {model} is not deployed here; deployed: {listed}")
            raise FleetError(f"no answer within {timeout_s:g} s; see `halomq devices`")
        answer: Answer = wire.decode_answer(payload)
        return answer

    def traces(self, model: str, name: str, count: int, timeout_s: float = 2.0) -> list[Trace]:
        """Return what up to `count` devices tell of a request that was answered."""
        topic = self._topics.trace(model, name)
        traces: dict[str, Trace] = {}

        def enough() -> bool | None:
            payload = self._take(topic)
            if payload is not None:
                trace: Trace = wire.decode_json(payload, wire.Trace)
                traces[trace.device] = trace
            return len(traces) >= count or None

        self._wait(enough, timeout_s)
        self._link.unsubscribe(topic)
        return list(traces.values())

    def next_plan(self, model: str, epoch: int, timeout_s: float) -> PlanHeader:
        """Wait until a plan newer than `epoch` serves a model.

        Raises:
            FleetError: if there is none within `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            for header in self.plans(1.0):
                if header.model == model and header.epoch > epoch:
                    return header
        raise FleetError(f"no newer plan of {model} than epoch {epoch} within {timeout_s:g} s")

    def measured_plan(self, model: str, timeout_s: float = 180.0) -> PlanHeader:
        """Wait until all agents have measured a model, and the plan that follows serves it.

        Where the coordinator does not calibrate, that is the plan that serves now.

        Raises:
            FleetError: if that is not so within `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            online = [s for s in self.devices(1.0) if s.state == "online"]
            agents = {s.device for s in online if s.role == "agent"}
            for shown in (m for s in online for m in s.models if m.name == model):
                measured = not shown.calibrates or agents <= set(shown.measured)
                if shown.state == "serving" and measured:
                    found = [p for p in self.plans(1.0) if p.model == model]
                    if [p.epoch for p in found] == [shown.epoch]:
                        return found[0]
        raise FleetError(f"no plan of {model} made of measured times within {timeout_s:g} s")

    def wait_prepared(self, model: str, device: str, timeout_s: float = 30.0) -> bool:
        """Wait until all is ready for the loss of a device; return whether that is so.

        It never is where the others' memory does not suffice.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            shown = [m for s in self.devices(1.0) if s.state == "online" for m in s.models]
            if any(device in m.covered for m in shown if m.name == model):
                return True
        return False

    def flush(self) -> None:
        """Write what was published and not yet sent."""
        while self._link.wants_write:
            self._pump(0.5)

    def deploy(
        self,
        package: ModelPackage,
        blobs: Mapping[str, bytes | memoryview],
        report: Callable[[str, float], None] = _silent,
    ) -> PlanHeader:
        """Have a coordinator serve a model; return its plan once it serves.

        `blobs` holds the package's blobs by digest; they are sent as they are asked for.
        `report` is called with a text and the share of the model that has been sent.

        Raises:
            FleetError: if there is no coordinator, it refuses, or there are no devices.
        """
        reference = secrets.token_hex(8)
        source = TransferService(
            self.name, self._topics, self._config.broker, MemoryBlobs(blobs), lambda _: None
        )
        source.start()
        try:
            message = wire.Deploy(self.name, reference, package)
            header = self._ask_coordinator(message, reference, report, source)
        finally:
            source.stop()
        if header is None:
            raise FleetError("the coordinator gave no plan; see `halomq devices`")
        return header

    def remove(self, model: str) -> None:
        """Have the coordinator stop serving a model.

        Raises:
            FleetError: if there is no coordinator, or no such model.
        """
        reference = secrets.token_hex(8)
        self._ask_coordinator(
            wire.Remove(self.name, reference, _checked(model, "model name")),
            reference,
            _silent,
            None,
        )

    def _ask_coordinator(
        self,
        message: wire.Deploy | wire.Remove,
        reference: str,
        report: Callable[[str, float], None],
        source: TransferService | None,
    ) -> PlanHeader | None:
        coordinators = self._coordinators()
        inbox, statuses = self._topics.inbox(self.name), self._topics.status("+")
        self._link.subscribe(inbox, statuses)
        asked: str | None = None

        def news() -> Any:
            for told in self._drain(statuses):
                status = _tolerant(told.payload, wire.Status)
                if status is not None and status.role == "coordinator":
                    coordinators[status.device] = status
            leader = wire.leader_of(coordinators.values())
            return leader if leader not in (None, asked) else self._take(inbox)

        while True:
            told = self._wait(news, DEPLOY_SILENCE_S)
            if told is None:
                raise FleetError(
                    f"coordinator {asked or 'none'} has not finished within "
                    f"{DEPLOY_SILENCE_S:g} s; are there agents? See `halomq devices`"
                )
            if isinstance(told, str):
                # The first to be asked, or the one that leads in the place of one that is gone.
                asked = told
                self._link.publish(self._topics.inbox(asked), wire.encode_json(message))
                continue
            progress = _tolerant(told, wire.Control)
            if isinstance(progress, wire.Want) and source is not None:
                source.take(progress)
            if not isinstance(progress, wire.Progress) or progress.reference != reference:
                continue
            if progress.done:
                return self._outcome(progress)
            report(progress.text, progress.fraction)

    def _outcome(self, progress: Progress) -> PlanHeader | None:
        if not progress.ok:
            raise FleetError(f"the coordinator refuses: {progress.text}")
        return progress.plan

    def _coordinators(self) -> dict[str, Status]:
        found = {s.device: s for s in self.devices() if s.role == "coordinator"}
        if not any(status.state == "online" for status in found.values()):
            raise FleetError("no coordinator is online; start `halomq coordinator` on one device")
        return found

    def _retained(self, topic: str, kind: Any, wait_s: float) -> list[Any]:
        self._link.subscribe(topic)
        found: dict[str, Any] = {}
        deadline = time.monotonic() + wait_s
        quiet_since = time.monotonic() + FIRST_WAIT_S - QUIET_S
        while (now := time.monotonic()) < deadline and now - quiet_since < QUIET_S:
            self._pump(0.05)
            for message in self._drain(topic):
                quiet_since = now
                if message.payload:
                    found[message.topic] = _tolerant(message.payload, kind)
        self._link.unsubscribe(topic)
        return [status for status in found.values() if status is not None]

    def _drain(self, topic: str) -> list[Received]:
        prefix, _, rest = topic.partition("+")
        mine = [m for m in self._received if m.topic.startswith(prefix) and m.topic.endswith(rest)]
        self._received = [m for m in self._received if m not in mine]
        return mine

    def _take(self, topic: str) -> bytes | None:
        for message in self._received:
            if message.topic == topic:
                self._received.remove(message)
                return message.payload
        return None

    def _wait(self, found: Callable[[], Any], timeout_s: float) -> Any:
        deadline = time.monotonic() + timeout_s
        while (result := found()) is None:
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            self._pump(min(left, 0.5))
        return result

    def _pump(self, timeout_s: float) -> None:
        if self._link.socket is None and not self._reopen(timeout_s):
            return
        for question in self._unanswered.take_due(time.monotonic()):
            self._ask(question)
        sockets = [sock] if (sock := self._link.socket) else []
        writers = sockets if self._link.wants_write else []
        readable, writable, _ = select.select(sockets, writers, [], timeout_s)
        if readable or self._link.has_pending:
            self._link.read()
        if writable:
            self._link.write()
        self._link.keep_alive()
        self._take_events()

    def _reopen(self, timeout_s: float) -> bool:
        """Connect again, also after a long silence, in which a client sends no pings."""
        try:
            self._open()
        except BrokerError:
            # Who waits for answers can wait for the broker.
            if self._is_refused or not self._unanswered:
                raise
            time.sleep(timeout_s)
        return self._link.connected

    def _ask(self, question: Question) -> None:
        left = max(0.0, question.deadline - time.monotonic())
        question.number = self._link.publish(
            question.topic,
            question.payload,
            content_type=question.content_type,
            expires_s=left,
            sender=self.name,
        )

    def _take_events(self) -> None:
        now = time.monotonic()
        while self._link.events:
            match self._link.events.popleft():
                case Received() as message:
                    # What nobody takes, answers that came late or twice, must not pile up.
                    self._received = [*self._received[-MAX_KEPT:], message]
                case Acknowledged(number, heard):
                    self._unanswered.acknowledged(number, heard=heard, now=now)
                case Connected():
                    self._unanswered.reconnected(now)
                case Disconnected(reason, fatal):
                    self._is_refused = fatal
                    if fatal or self._link.gave_up:
                        raise BrokerError(reason)


def _user() -> str:
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return "client"
    return re.sub(r"[^A-Za-z0-9]", "", name)[:40] or "client"


def _checked(name: str, what: str) -> str:
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"{what} {name!r}: use letters, digits, dot, dash and underscore, at most 64"
        )
    return name


def _tolerant(payload: bytes, kind: Any) -> Any:
    try:
        return wire.decode_json(payload, kind)
    except WireError:
        return None


def _payload(request: bytes | Path | np.ndarray[Any, Any]) -> bytes:
    if isinstance(request, Path):
        return request.read_bytes()
    if isinstance(request, np.ndarray):
        buffer = io.BytesIO()
        np.save(buffer, request, allow_pickle=False)
        return buffer.getvalue()
    return request
