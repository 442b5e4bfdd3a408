"""One thread's loop: drives a connection, takes what other threads post, and wakes for timers."""

from __future__ import annotations

import select
import socket
import time
from collections import deque
from typing import TYPE_CHECKING, Protocol

from agent.adapters.mqtt import HANDSHAKE_S, Connected, Disconnected, Link, LinkEvent
from agent.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Callable

FIRST_RETRY_S = 0.25
# Service is to be back soon after a broker is; 30 agents and their transfers ask 30 times a second.
LAST_RETRY_S = 2.0
IDLE_S = 1.0
READS_A_TURN = 64


class Owner(Protocol):
    """What a loop calls, always in its own thread."""

    def on_link(self, event: LinkEvent) -> None:
        """Take an event of the connection."""

    def on_post(self, item: object) -> None:
        """Take what another thread posted."""

    def on_turn(self, now: float) -> float | None:
        """Do what is due at `now`; return when to be called again at the latest."""


class Loop:
    """Runs `owner` over `link` until `stop`; reconnects with growing delays."""

    def __init__(self, link: Link, owner: Owner, clock: Callable[[], float]) -> None:
        self._link = link
        self._owner = owner
        self._clock = clock
        self._mailbox: deque[object] = deque()
        self._woken, self._wake = socket.socketpair()
        self._wake.setblocking(False)
        self._woken.setblocking(False)
        self._running = True
        self._retry_at = 0.0
        self._retry_s = FIRST_RETRY_S
        self._held_until = 0.0
        self._opened_at = 0.0
        self._misc_at = 0.0

    @property
    def waiting(self) -> int:
        """How much was posted and not yet handed to the owner."""
        return len(self._mailbox)

    def post(self, item: object) -> None:
        """Hand `item` to the owner; callable from any thread."""
        self._mailbox.append(item)
        try:
            self._wake.send(b"\0")
        except OSError:
            # The buffer is full of wake-ups already, or the loop has ended.
            return

    def drop(self, seconds: float) -> None:
        """Drop the connection, and make none for `seconds`; only in the loop's own thread."""
        self._held_until = self._clock() + seconds
        self._link.drop(f"dropped for {seconds:g} s, as a drill asks")

    def stop(self) -> None:
        """End `run` after this turn; callable from any thread."""
        self._running = False
        self.post(None)

    def run(self) -> None:
        """Turn until stopped, then close the connection."""
        while self._running:
            now = self._clock()
            self._keep_connected(now)
            due = self._owner.on_turn(now)
            self._drain()
            if self._mailbox or not self._running:
                continue
            self._wait(due)
            self._drain()
        self._link.close()
        self._wake.close()
        self._woken.close()

    def _drain(self) -> None:
        while self._mailbox or self._link.events:
            while self._link.events:
                event = self._link.events.popleft()
                self._note(event)
                self._owner.on_link(event)
            if self._mailbox:
                item = self._mailbox.popleft()
                if item is not None:
                    self._owner.on_post(item)

    def _note(self, event: LinkEvent) -> None:
        if isinstance(event, Connected):
            self._retry_s = FIRST_RETRY_S
        elif isinstance(event, Disconnected):
            self._retry_at = max(self._clock() + self._retry_s, self._held_until)
            self._retry_s = min(2 * self._retry_s, LAST_RETRY_S)

    def _keep_connected(self, now: float) -> None:
        if self._link.socket is None:
            if now < self._retry_at:
                return
            try:
                self._link.connect()
                self._opened_at = now
            except BrokerError as error:
                self._link.events.append(Disconnected(str(error)))
        elif not self._link.connected and now - self._opened_at > HANDSHAKE_S:
            self._link.abandon()
        elif now >= self._misc_at:
            self._misc_at = now + IDLE_S
            self._link.keep_alive()

    def _wait(self, due: float | None) -> None:
        sock = self._link.socket
        timeout = IDLE_S if due is None else min(IDLE_S, max(0.0, due - self._clock()))
        if sock is None:
            timeout = min(timeout, max(0.0, self._retry_at - self._clock()))
        readers: list[socket.socket] = [self._woken]
        writers: list[socket.socket] = []
        if sock is not None:
            readers.append(sock)
            if self._link.wants_write:
                writers.append(sock)
            if self._link.has_pending:
                timeout = 0.0
        readable, writable, _ = select.select(readers, writers, [], timeout)
        if self._woken in readable:
            self._woken.recv(4096)
        if sock is not None and (sock in readable or self._link.has_pending):
            self._read_all()
        if sock is not None and sock in writable:
            self._link.write()

    def _read_all(self) -> None:
        # Each read takes one packet; another turn for each would cost more than the packets.
        for _ in range(READS_A_TURN):
            before = len(self._link.events)
            self._link.read()
            if len(self._link.events) == before:
                break


def monotonic() -> float:
    """Return the clock that services and cores share, in seconds."""
    return time.monotonic()
