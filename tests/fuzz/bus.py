"""Live services on a bus in this process: their own decoders and cores, without broker or clock.

Each service runs its threads (onnxruntime, disk, planner); what they post, and what is published,
is handed over by `settle` in the one thread of the test. Errors that a service would only log,
so that one message takes nobody down, are kept as `faults` here: there must be none.
"""

from __future__ import annotations

import io
import re
import time
from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self
from unittest import mock

import numpy as np

from agent.adapters import mqtt
from agent.adapters.mqtt import Acknowledged, Connected, LinkEvent, Received
from agent.adapters.store import MemoryBlobs
from agent.config import BrokerConfig, Config, PlanningConfig, RequestConfig, RuntimeConfig
from agent.service import agent as agents
from agent.service import coordinator as coordinators
from agent.service import member as members
from agent.service import transfer as transfers
from agent.service.loop import Loop, monotonic
from agent.service.transfer import TransferService
from agent.wire import messages as wire
from agent.wire.topics import Topics
from tests.simulation import compute

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


FLEET = "fuzz"
BOSS = "boss"
USER = "user"
WAIT_S = 60.0
MAX_IN_FLIGHT = 16
POLL_S = 0.001
BUG = re.compile(r"internal error|stumbled|^\w+ failed: ")
TURN_S = 0.05
PAYLOAD_LIMIT = wire.MAX_PACKET_BYTES - mqtt.TOPIC_OVERHEAD_BYTES


@dataclass
class FakeLink:
    """A connection to the bus, with what services use of `mqtt.Link`."""

    bus: Bus
    client_id: str
    broker: BrokerConfig
    will: mqtt.Will | None = None
    connected: bool = True
    speaks_v5: bool = True
    largest_payload: int = PAYLOAD_LIMIT
    filters: set[str] = field(default_factory=set)
    events: deque[LinkEvent] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.bus.links.append(self)

    def subscribe(self, *filters: str, qos: int = 1) -> None:
        """Subscribe; what is retained comes at once."""
        del qos
        for topic in filters:
            self.filters.add(topic)
            for message in self.bus.retained.values():
                if matches(topic, message.topic):
                    self.events.append(replace(message, retained=True))

    def unsubscribe(self, *filters: str) -> None:
        """Undo `subscribe`."""
        self.filters -= set(filters)

    def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, **told: Any
    ) -> int:
        """Publish on the bus."""
        told["client"] = told.pop("sender", None)
        number = self.bus.publish(Received(topic, bytes(payload), False, False, **told), retain)
        if qos:
            self.events.append(Acknowledged(number))
        return number


def matches(pattern: str, topic: str) -> bool:
    """Tell whether a topic is one of a filter's."""
    levels, parts = pattern.split("/"), topic.split("/")
    for number, level in enumerate(levels):
        if level == "#":
            return True
        if number >= len(parts) or level not in ("+", parts[number]):
            return False
    return len(levels) == len(parts)


def close(loop: Loop) -> None:
    """Close the sockets by which threads wake a loop."""
    loop._wake.close()
    loop._woken.close()


class Bus:
    """A coordinator, `devices` and a user who deploys, all in this process."""

    def __init__(self, folder: Path, devices: tuple[str, ...]) -> None:
        self.links: list[FakeLink] = []
        self.retained: dict[str, Received] = {}
        self.seen: list[Received] = []
        self.faults: list[str] = []
        self.lines = 0
        self.topics = Topics(FLEET)
        self._count = 0
        self._turned = 0.0
        self._folder = folder
        self._devices = devices
        self._patches = ExitStack()

    def __enter__(self) -> Self:
        patch = self._patches.enter_context
        capacity = compute.capacity_of("dev-a")
        for module in (members, transfers):
            patch(mock.patch.object(module, "Link", self._link))
        for module in (members, transfers, agents, coordinators):
            patch(mock.patch.object(module, "log", self._log))
        patch(mock.patch.object(agents, "measure_capacity", return_value=capacity))
        self.user = self._link(USER, BrokerConfig())
        self.user.subscribe(self.topics.inbox(USER), self.topics.result("+", "+"))
        self.boss = coordinators.CoordinatorService(
            BOSS, self._folder / BOSS / "coordinator", self._config(BOSS), {}
        )
        self.agents = {d: agents.AgentService(self._config(d), {}) for d in self._devices}
        self.members: list[members.Member] = [self.boss, *self.agents.values()]
        self._loops = [loop for m in self.members for loop in (m.loop, m.transfer._loop)]
        for loop in self._loops:
            loop._link.events.append(Connected())
        self.settle(lambda: self._told() == len(self.members), "all have told their status")
        self.settle(lambda: self.boss._core._leadership.leads, "the coordinator leads")
        return self

    def __exit__(self, *_: object) -> None:
        for member in self.members:
            for executor in member._executors:
                executor.stop()
        for loop in self._loops:
            close(loop)
        self._patches.close()

    def _link(self, name: str, broker: BrokerConfig, will: Any = None) -> Any:
        return FakeLink(self, name, broker, will)

    def _log(self, level: str, text: str, **_: Any) -> None:
        self.lines += 1
        # Errors that name their cause answer what was asked; these are bugs that were caught.
        if level == "error" and BUG.search(text):
            self.faults.append(text)

    def _config(self, name: str) -> Config:
        return Config(
            device=name,
            fleet=FLEET,
            data_dir=self._folder / name,
            planning=PlanningConfig(calibration_s=0.0),
            runtime=RuntimeConfig(threads=1),
            requests=RequestConfig(deadline_s=30.0, max_in_flight=MAX_IN_FLIGHT),
        )

    def _told(self) -> int:
        return sum(topic.endswith("/status") for topic in self.retained)

    # Messages ------------------------------------------------------------------------------

    def publish(self, message: Received, retain: bool = False) -> int:  # noqa: FBT001, FBT002
        """Hand a message to all who subscribed; return its number."""
        self._count += 1
        self.seen.append(message)
        if retain:
            self.retained.pop(message.topic, None)
            if message.payload:
                self.retained[message.topic] = message
        for link in self.links:
            if any(matches(pattern, message.topic) for pattern in link.filters):
                link.events.append(message)
        return self._count

    def settle(self, found: Callable[[], Any], what: str) -> Any:
        """Have all that happens happen until `found`; return what was found."""
        deadline = time.monotonic() + WAIT_S
        while not (result := found()):
            if time.monotonic() > deadline:
                raise AssertionError(f"waited in vain for this: {what}; {self.faults}")
            if not self.step():
                time.sleep(POLL_S)
        return result

    def step(self) -> bool:
        """Hand over what waits; tell whether there was anything."""
        busy = False
        for loop in self._loops:
            busy = busy or bool(loop._mailbox or loop._link.events)
            loop._drain()
        if time.monotonic() > self._turned + TURN_S:
            self._turned = time.monotonic()
            for loop in self._loops:
                loop._owner.on_turn(monotonic())
        return busy

    def deploy(self, model: str) -> None:
        """Have the user deploy a model, and wait until it serves."""
        version = compute.version(model, 0)
        source = TransferService(
            USER, self.topics, BrokerConfig(), MemoryBlobs(version.blobs), lambda _: None
        )
        self._loops.append(source._loop)
        source._link.events.append(Connected())
        message = wire.Deploy(USER, model, version.package)
        self.user.publish(self.topics.inbox(BOSS), wire.encode_json(message))

        def served() -> bool:
            for event in self._taken():
                control = wire.decode_json(event.payload, wire.Control)
                if isinstance(control, wire.Want):
                    source.take(control)
                elif isinstance(control, wire.Progress) and control.done:
                    assert control.ok, control.text
                    return True
            return False

        self.settle(served, f"{model} is served")
        close(source._loop)
        self._loops.remove(source._loop)
        self.links.remove(source._link)  # type: ignore[arg-type]

    def answer(self, model: str, request: str, number: int) -> wire.Answer:
        """Have the user ask for picture `number`; return the answer."""
        buffer = io.BytesIO()
        np.save(buffer, compute.picture(number))
        topic = self.topics.infer(model, request, tensors=True)
        self.user.publish(topic, buffer.getvalue(), sender=USER)

        def answered() -> list[wire.Answer]:
            mine = self.topics.result(model, request)
            return [wire.decode_answer(e.payload) for e in self._taken() if e.topic == mine]

        answer: wire.Answer = self.settle(answered, f"{request} is answered")[0]
        return answer

    def _taken(self) -> list[Received]:
        events, self.user.events = list(self.user.events), deque()
        return [event for event in events if isinstance(event, Received)]
