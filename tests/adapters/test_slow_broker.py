"""One connection: with a broker that takes nothing, and messages that paho cannot read."""

from __future__ import annotations

import select
import socket
import time
from typing import TYPE_CHECKING, Any, Self

import pytest

from agent.adapters.mqtt import Connected, Disconnected, Link, Received, Unreadable
from agent.adapters.outgoing import MAX_BYTES, MAX_UNSURE
from agent.config import BrokerConfig
from agent.errors import BrokerError
from agent.wire.messages import CHUNK_BYTES, MAX_PACKET_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.adapters.local_broker import LocalBroker

WAIT_S = 20.0
ACCEPTED = b"\x20\x03\x00\x00\x00"  # CONNACK without properties
MAXIMUM_PACKET_SIZE = b"\x27" + MAX_PACKET_BYTES.to_bytes(4, "big")


class SilentBroker:
    """Accepts one connection, and then reads nothing."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.config = BrokerConfig(host="127.0.0.1", port=self._listener.getsockname()[1])
        self._connection: socket.socket | None = None

    def accept(self) -> bytes:
        """Accept the connection; return what it begins with."""
        self._connection, _ = self._listener.accept()
        self._connection.sendall(ACCEPTED)
        return self._connection.recv(4096)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        if self._connection is not None:
            self._connection.close()


def turn(link: Link, found: Callable[[list[Any]], bool]) -> list[Any]:
    """Drive a connection until its events are what is waited for; return them."""
    events: list[Any] = []
    deadline = time.monotonic() + WAIT_S
    while not found(events):
        assert time.monotonic() < deadline, events
        sock = link.socket
        assert sock is not None, events
        writers = [sock] if link.wants_write else []
        readable, writable, _ = select.select([sock], writers, [], 0.1)
        if readable:
            link.read()
        if writable:
            link.write()
        events += link.events
        link.events.clear()
    return events


def accepted(events: list[Any]) -> bool:
    """Tell whether the broker has accepted the connection."""
    return any(isinstance(event, Connected) for event in events)


def got(events: list[Any]) -> bool:
    """Tell whether a message is among the events."""
    return any(isinstance(event, Received) for event in events)


def connected(config: BrokerConfig, name: str) -> Link:
    link = Link(name, config)
    link.connect()
    return link


@pytest.fixture
def config(broker: LocalBroker) -> BrokerConfig:
    """Where the tests' broker is."""
    return BrokerConfig(host=broker.host, port=broker.port)


def test_what_a_broker_does_not_take_is_bounded() -> None:
    with SilentBroker() as silent:
        link = connected(silent.config, "fast")
        hello = silent.accept()
        turn(link, accepted)
        assert MAXIMUM_PACKET_SIZE in hello
        for _ in range(MAX_BYTES // CHUNK_BYTES):
            link.publish("halo", bytes(CHUNK_BYTES))
        with pytest.raises(BrokerError, match="too slow for halo: 64 MiB wait already"):
            link.publish("halo", bytes(CHUNK_BYTES))
        link.publish("answer", b"small")
        for _ in range(MAX_UNSURE):
            link.publish("trace", b"small", qos=0)
        with pytest.raises(BrokerError, match="may be lost"):
            link.publish("trace", b"small", qos=0)
        link.abandon()


def test_what_was_sent_no_longer_counts(config: BrokerConfig) -> None:
    link = connected(config, "steady")
    turn(link, accepted)
    for _ in range(2 * MAX_UNSURE):
        link.publish("trace", b"small", qos=0)
        turn(link, lambda _: not link.wants_write)
    number = link.publish("halo", bytes(CHUNK_BYTES))
    turn(link, lambda events: any(getattr(e, "number", None) == number for e in events))
    assert link._outgoing.nbytes == 0
    link.close()


def test_a_message_that_paho_cannot_read_is_dropped(config: BrokerConfig) -> None:
    reader, sender = connected(config, "reader"), connected(config, "sender")
    reader.subscribe("some/#")
    turn(reader, accepted)
    reader.publish("some/start", b"")
    turn(reader, got)
    turn(sender, accepted)
    # Legal in MQTT, and passed on by Mosquitto; paho takes it for a broken connection.
    sender.publish("some/topic", b"poison", sender="\ufeff")
    sender.publish("some/topic", b"good", sender="camera")
    turn(sender, lambda _: not sender.wants_write)
    events = turn(reader, got)
    assert not any(isinstance(event, Disconnected) for event in events)
    assert [event for event in events if isinstance(event, Unreadable)]
    (good,) = (event for event in events if isinstance(event, Received))
    assert (good.payload, good.client) == (b"good", "camera")
    # It was acknowledged: the broker sends it to nobody again.
    reader._client._sock_close()  # type: ignore[union-attr]
    reader._lost("by this test")
    reader.events.clear()
    reader.connect()
    sender.publish("some/topic", b"again", sender="camera")
    turn(sender, lambda _: not sender.wants_write)
    events = turn(reader, got)
    assert not any(isinstance(event, Unreadable) for event in events)
    reader.close()
    sender.close()
