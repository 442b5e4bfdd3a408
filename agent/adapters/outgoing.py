"""How much waits to be sent on a connection: a bound that a slow broker or link cannot exceed.

Paho bounds the number of QoS 1 messages, neither their bytes nor those of QoS 0.
"""

from __future__ import annotations

MAX_BYTES = 64 << 20
MAX_UNSURE = 256
# Answers, statuses and control messages go through where pieces and blobs must wait.
SMALL_BYTES = 16 << 10


class Outgoing:
    """The messages that were handed to paho and are not yet with the broker."""

    def __init__(self) -> None:
        self._sure: dict[int, int] = {}
        self._unsure: dict[int, int] = {}
        self.nbytes = 0

    def refusal(self, nbytes: int, qos: int) -> str | None:
        """Return why a message of `nbytes` cannot be sent now, None if it can."""
        if qos == 0 and len(self._unsure) >= MAX_UNSURE:
            return f"{MAX_UNSURE} messages wait already, and this one may be lost"
        if nbytes > SMALL_BYTES and self.nbytes + nbytes > MAX_BYTES:
            return f"{self.nbytes >> 20} MiB wait already"
        return None

    def add(self, number: int, nbytes: int, qos: int) -> None:
        """Note a message that paho has taken and calls `number`."""
        self.done(number)
        (self._sure if qos else self._unsure)[number] = nbytes
        self.nbytes += nbytes

    def done(self, number: int) -> None:
        """Note that the broker has a message, or the socket one that may be lost."""
        self.nbytes -= self._sure.pop(number, 0) + self._unsure.pop(number, 0)

    def broken(self) -> None:
        """Note that the connection was lost, and with it what may be lost."""
        self.nbytes -= sum(self._unsure.values())
        self._unsure.clear()

    def clear(self) -> None:
        """Note that all is lost: the next connection has another client."""
        self._sure.clear()
        self.broken()
        self.nbytes = 0
