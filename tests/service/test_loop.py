"""The loop's clockwork, with a link and a clock that the test makes."""

from __future__ import annotations

import socket
from collections import deque
from typing import cast

from agent.adapters.mqtt import Connected, Disconnected, Link, LinkEvent
from agent.service.loop import FIRST_RETRY_S, Loop

STEP_S = 0.125


class FakeLink:
    """A link that is connected as soon as that is asked for."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.connects: list[float] = []
        self.events: deque[LinkEvent] = deque()
        self.socket: socket.socket | None = None
        self._silent, self._peer = socket.socketpair()
        self.wants_write = self.has_pending = False
        self.connected = True

    def connect(self) -> None:
        self.connects.append(self._clock.now)
        self.socket = self._silent
        self.events.append(Connected())

    def drop(self, reason: str) -> None:
        self.socket = None
        self.events.append(Disconnected(reason))

    def keep_alive(self) -> None: ...

    def close(self) -> None:
        self._silent.close()
        self._peer.close()


class Clock:
    """An owner that turns without waiting; each turn takes `STEP_S`."""

    def __init__(self) -> None:
        self.now = 0.0
        self.link = FakeLink(self)
        self.loop = Loop(cast("Link", self.link), self, lambda: self.now)

    def on_link(self, event: LinkEvent) -> None: ...

    def on_post(self, item: object) -> None:
        assert isinstance(item, float)
        self.loop.drop(item)

    def on_turn(self, _now: float) -> float | None:
        self.now += STEP_S
        if self.now == 1.0:
            self.loop.post(5.0)
        if self.now >= 20.0:
            self.loop.stop()
        return self.now


def test_a_dropped_link_stays_down_for_as_long_as_it_should() -> None:
    clock = Clock()
    clock.loop.run()
    first, again = clock.link.connects
    assert first == 0.0
    assert 6.0 <= again <= 6.0 + FIRST_RETRY_S
