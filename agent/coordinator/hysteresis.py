"""When figures have changed enough for a new plan: so much, for so long, and not too often. Pure.

A plan that is switched to makes requests in flight start again, so noise must not lead to one.
"""

from __future__ import annotations

from dataclasses import dataclass

MARGIN = 0.03
LEAST_GAIN_MS = 0.2
BEYOND = 1.25
MISLEADING = 1.1
STATUSES = 3
LASTS_S = 30.0
FIRST_PAUSE_S = 60.0
LONGEST_PAUSE_S = 3600.0
CALM_PAUSES = 4


def worth_switching(new_ms: float, current_ms: float) -> bool:
    """Tell whether a plan is so much better than the current one that a switch pays."""
    return current_ms - new_ms > max(MARGIN * current_ms, LEAST_GAIN_MS)


def is_misleading(told_ms: float, current_ms: float) -> bool:
    """Tell whether the current plan's own prediction is so far off that it must be told anew.

    Timelines are drawn with it, and drift is measured against it.
    """
    return not 1.0 / MISLEADING < told_ms / max(current_ms, 1e-6) < MISLEADING


@dataclass(slots=True)
class Drift:
    """How long one device has been beyond what its plan was made for; `slower` or else faster."""

    since: float | None = None
    statuses: int = 0
    slower: bool = False

    def lasts(self, ratio: float, now: float) -> bool:
        """Take a status's ratio; tell whether it has been beyond the bound for long enough."""
        if 1.0 / BEYOND < ratio < BEYOND:
            self.since, self.statuses = None, 0
            return False
        slower = ratio > 1.0
        if self.since is None or slower != self.slower:
            self.since, self.statuses, self.slower = now, 0, slower
        self.statuses += 1
        return self.statuses >= STATUSES and now - self.since >= LASTS_S


@dataclass(slots=True)
class Pause:
    """How long nothing is planned again for drift: longer each time, until it was calm."""

    until: float = 0.0
    seconds: float = FIRST_PAUSE_S

    def over(self, now: float) -> bool:
        """Tell whether planning again is allowed."""
        return now >= self.until

    def begin(self, now: float) -> None:
        """Note that it was planned again at time `now`."""
        if now > self.until + CALM_PAUSES * self.seconds:
            self.seconds = FIRST_PAUSE_S
        self.until = now + self.seconds
        self.seconds = min(2 * self.seconds, LONGEST_PAUSE_S)
