"""What a connection tells of itself, at a real broker."""

from __future__ import annotations

import select
import socket
import time
from typing import TYPE_CHECKING, TypeVar

import pytest

from agent.adapters.mqtt import Acknowledged, Connected, Disconnected, Link
from agent.config import BrokerConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.adapters.local_broker import LocalBroker

WAIT_S = 20.0
Event = TypeVar("Event")


@pytest.fixture
def link(broker: LocalBroker, fleet: str) -> Iterator[Link]:
    """A connection that the broker has accepted."""
    made = Link(fleet, BrokerConfig(host=broker.host, port=broker.port))
    made.connect()
    # The broker cannot have kept anything for a client that it does not know.
    assert wait(made, Connected) == Connected(kept=False)
    yield made
    made.close()


def wait(link: Link, kind: type[Event]) -> Event:
    """Drive a connection until an event of this kind, and return it."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        while link.events:
            event = link.events.popleft()
            if isinstance(event, kind):
                return event
        sock = link.socket
        assert sock is not None
        writers = [sock] if link.wants_write else []
        readable, writable, _ = select.select([sock], writers, [], 0.1)
        if readable:
            link.read()
        if writable:
            link.write()
    raise AssertionError(f"no {kind.__name__}")


def test_the_broker_tells_whether_anybody_listens(link: Link, fleet: str) -> None:
    number = link.publish(f"{fleet}/nobody", b"?")
    assert wait(link, Acknowledged) == Acknowledged(number, heard=False)
    link.subscribe(f"{fleet}/somebody")
    number = link.publish(f"{fleet}/somebody", b"?")
    assert wait(link, Acknowledged) == Acknowledged(number, heard=True)


def test_a_session_that_outlives_a_break_has_kept_everything(link: Link) -> None:
    sock = link.socket
    assert sock is not None
    sock.shutdown(socket.SHUT_RDWR)
    link.read()
    (told,) = [event for event in link.events if isinstance(event, Disconnected)]
    assert told.reason == "the connection broke"
    link.events.clear()
    link.connect()
    assert wait(link, Connected) == Connected(kept=True)
