"""Measures a device's link by messages that it sends to itself through the broker. Sans-IO."""

from __future__ import annotations

SMALL_BYTES = 64
LARGE_BYTES = 256 * 1024
SMALL_ECHOES = 16
LARGE_ECHOES = 8
TIMEOUT_S = 10.0


class LinkProbe:
    """Sends one echo at a time; `latency_s` and `bytes_per_s` are known once it is `done`.

    An echo crosses the device's link twice, as a halo crosses two links, so an echo's time is a
    halo's time.
    """

    def __init__(self) -> None:
        self._plan = [SMALL_BYTES] * SMALL_ECHOES + [LARGE_BYTES] * LARGE_ECHOES
        self._times: list[tuple[int, float]] = []
        self._sent_at = 0.0

    @property
    def done(self) -> bool:
        """Whether every echo came back."""
        return len(self._times) == len(self._plan)

    def next_payload(self, now: float) -> bytes | None:
        """Return the next echo to publish at time `now`, or None when there is none."""
        if self.done:
            return None
        self._sent_at = now
        number = len(self._times)
        return number.to_bytes(2, "big") + bytes(self._plan[number] - 2)

    def take(self, payload: bytes, now: float) -> None:
        """Take an echo that came back; others than the one under way are ignored."""
        number = len(self._times)
        if not self.done and payload[:2] == number.to_bytes(2, "big"):
            self._times.append((self._plan[number], now - self._sent_at))

    def overdue(self, now: float) -> bool:
        """Tell whether an echo was lost: the link is measured again from the start."""
        late = not self.done and now - self._sent_at > TIMEOUT_S
        if late:
            self._times.clear()
        return late

    @property
    def latency_s(self) -> float:
        """The time of the quickest small message, in seconds: others waited for the processor."""
        return min(seconds for size, seconds in self._times if size == SMALL_BYTES)

    @property
    def bytes_per_s(self) -> float:
        """The link's rate in each direction, by the quickest large message beyond the latency.

        The broker sends a message on once it has all of it, so an echo passes the link twice.
        """
        large = min(seconds for size, seconds in self._times if size == LARGE_BYTES)
        return 2 * LARGE_BYTES / max(1e-6, large - self.latency_s)
