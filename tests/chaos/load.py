"""The steady load: a plain MQTT client that sends requests at a rate, whatever becomes of them.

It is the client that docs/reliability.md describes: requests have ids; what the broker answers with
"no matching subscribers", and what is unanswered when a connection was lost, is sent again under
the same id.
"""

from __future__ import annotations

import select
import time
from contextlib import suppress
from random import Random
from threading import Event, RLock, Thread
from typing import TYPE_CHECKING, Any, Self

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.errors import WireError
from agent.verification import relative_error
from agent.wire.messages import PlanHeader, decode_answer, decode_json, fingerprint
from agent.wire.tensors import message_array
from tests.chaos.ledger import Ledger
from tests.field.support import QOS, TOLERANCE, picture

if TYPE_CHECKING:
    from agent.wire.messages import Answer
    from agent.wire.topics import Topics
    from tests.field.support import Reference

PICTURES = 16
SESSION_S = 300
NOBODY_LISTENS = 16  # MQTT 5's reason of a PUBACK
AGAIN_S = 0.25
POLL_S = 0.1


class Load:
    """Sends requests for `model` until it is stopped; a context manager.

    `rate` is in requests a second, `deadline_s` the life of each. `plans` are the announced plans
    with the time at which they came.
    """

    def __init__(
        self,
        address: tuple[str, int],
        topics: Topics,
        model: Reference,
        *,
        seed: int,
        rate: float,
        deadline_s: float,
    ) -> None:
        self.ledger = Ledger()
        self.plans: list[tuple[float, PlanHeader]] = []
        self._address = address
        self._topics = topics
        self._model = model
        self._rate = rate
        self._deadline_s = deadline_s
        self._random = Random(f"load {seed}")
        self._pictures = [picture(number) for number in range(PICTURES)]
        self._expected = [model.outputs(payload) for payload in self._pictures]
        self._name = f"chaos-{self._random.getrandbits(32):08x}"
        self._lock = RLock()
        self._messages: dict[int, str] = {}
        self._again: list[tuple[float, str]] = []
        self._granted = Event()
        self._stopped = Event()
        self._closed = Event()
        self._retry_at = 0.0
        self._thread = Thread(target=self._run, name="load", daemon=True)
        self._client = client = paho.Client(
            CallbackAPIVersion.VERSION2, self._name, protocol=MQTTProtocolVersion.MQTTv5
        )
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_publish = self._on_publish
        client.on_message = self._on_message

    def __enter__(self) -> Self:
        session = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        session.SessionExpiryInterval = SESSION_S
        self._client.connect(*self._address, clean_start=False, properties=session)
        self._thread.start()
        self._granted.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join()
        self._client.disconnect()

    def stop(self) -> None:
        """Send no new requests."""
        self._stopped.set()

    def open(self) -> list[str]:
        """Return the requests without an answer."""
        with self._lock:
            return self.ledger.open()

    def devices(self) -> tuple[str, ...]:
        """Return the devices of the current plan."""
        return self.plans[-1][1].devices if self.plans else ()

    # The load's own thread: paho calls back in it, too ---------------------------------------

    def _run(self) -> None:
        self._granted_or_gone()
        due = time.monotonic()
        while not self._closed.is_set():
            now = time.monotonic()
            with self._lock:
                if now >= due and not self._stopped.is_set():
                    self._send_new(now)
                    # An open loop: how long answers take does not change when requests are sent.
                    due += self._random.uniform(0.5, 1.5) / self._rate
                self._send_again(now)
            self._turn(min(POLL_S, max(0.001, due - time.monotonic())))

    def _granted_or_gone(self) -> None:
        while not self._granted.is_set() and not self._closed.is_set():
            self._turn(POLL_S)

    def _turn(self, timeout_s: float) -> None:
        sock = self._client.socket()
        if sock is None:
            self._reconnect(timeout_s)
            return
        writers = [sock] if self._client.want_write() else []
        readable, writable, _ = select.select([sock], writers, [], timeout_s)
        with self._lock:
            if readable:
                self._client.loop_read()
            if writable:
                self._client.loop_write()
            self._client.loop_misc()

    def _reconnect(self, timeout_s: float) -> None:
        if time.monotonic() < self._retry_at:
            time.sleep(timeout_s)
            return
        self._retry_at = time.monotonic() + AGAIN_S
        with suppress(OSError):
            self._client.reconnect()

    def _send_new(self, now: float) -> None:
        number = self._random.randrange(PICTURES)
        request = f"{self._name}-{len(self.ledger.entries)}"
        self.ledger.sent(request, number, now)
        self._publish(request, now)

    def _send_again(self, now: float) -> None:
        due = [request for at, request in self._again if at <= now]
        self._again = [(at, request) for at, request in self._again if at > now]
        for request in due:
            entry = self.ledger.entries[request]
            if entry.answered is None and request not in self._messages.values():
                self.ledger.sent_again(request)
                self._publish(request, now)

    def _publish(self, request: str, now: float) -> None:
        entry = self.ledger.entries[request]
        told = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        told.MessageExpiryInterval = max(1, round(entry.sent + self._deadline_s - now))
        topic = self._topics.infer(self._model.name, request, tensors=True)
        payload = self._pictures[entry.picture]
        published = self._client.publish(topic, payload, QOS, properties=told)
        self._messages[published.mid] = request

    def _on_connect(self, client: paho.Client, *_: Any) -> None:
        topics = (self._topics.result(self._model.name, "+"), self._topics.plan(self._model.name))
        client.subscribe([(topic, QOS) for topic in topics])

    def _on_subscribe(self, *_: Any) -> None:
        if self._granted.is_set():
            # The broker may have been killed: what it had accepted it may have lost.
            now = time.monotonic()
            self._again += [(now, request) for request in self.ledger.open()]
        self._granted.set()

    def _on_publish(self, _client: Any, _data: Any, mid: int, reason: Any, _: Any) -> None:
        request, now = self._messages.pop(mid), time.monotonic()
        if reason.value == NOBODY_LISTENS:
            self._again.append((now + AGAIN_S, request))
        else:
            self.ledger.accepted(request, now)

    def _on_message(self, _client: Any, _data: Any, message: paho.MQTTMessage) -> None:
        now, payload = time.monotonic(), bytes(message.payload)
        if message.topic == self._topics.plan(self._model.name):
            if payload:
                self.plans.append((now, decode_json(payload, PlanHeader)))
            return
        request = message.topic.rpartition("/")[2]
        self.ledger.answered(request, payload, self._verdict(request, payload), now)

    def _verdict(self, request: str, payload: bytes) -> str:
        entry = self.ledger.entries.get(request)
        try:
            answer: Answer = decode_answer(payload)
        except WireError:
            return "wrong"
        if entry is None or answer.request != request:
            return "wrong"
        if answer.error is not None:
            return answer.error.code
        expected = self._expected[entry.picture]
        outputs = answer.outputs or {}
        right = (
            answer.input == fingerprint(self._pictures[entry.picture])
            and outputs.keys() == expected.keys()
            and all(
                relative_error(expected[name], message_array(tensor)) <= TOLERANCE
                for name, tensor in outputs.items()
            )
        )
        return "exact" if right else "wrong"
