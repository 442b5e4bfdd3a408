"""Devices that come and go: held back from plans for longer each time, until they stay. Pure.

Each plan that such a device joins is void soon after, and requests in flight start again for it.
"""

from __future__ import annotations

# A restart, or an upgrade and another one, is no flapping.
FREE = 2
FIRST_HOLD_S = 5.0
LONGEST_HOLD_S = 120.0
CALM_S = 300.0


class Flapping:
    """How often each device went of late, and until when it is held back."""

    def __init__(self) -> None:
        self._departures: dict[str, tuple[int, float]] = {}
        self._until: dict[str, float] = {}

    def went(self, device: str, now: float) -> None:
        """Note that a device is gone, or that its agent has started anew."""
        count, last = self._departures.get(device, (0, now))
        self._departures[device] = (1 if now - last > CALM_S else count + 1, now)

    def came(self, device: str, now: float) -> None:
        """Note that a device is there; hold it back if it went too often."""
        count, last = self._departures.get(device, (0, now))
        if now - last > CALM_S:
            self._departures.pop(device, None)
        elif count > FREE:
            # Beyond some power the longest holds, and a float's range need not.
            seconds = FIRST_HOLD_S * 2 ** min(count - FREE - 1, 10)
            self._until[device] = now + min(seconds, LONGEST_HOLD_S)

    def holds(self, device: str, now: float) -> float:
        """Return for how many seconds a device is still held back, 0 if it is not."""
        return max(0.0, self._until.get(device, now) - now)

    def next_return(self, now: float) -> float | None:
        """Return when the next device is held back no more."""
        return min((until for until in self._until.values() if until > now), default=None)
