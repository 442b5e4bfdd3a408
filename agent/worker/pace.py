"""How fast a plan's answers follow each other here: what a request that waits can hope for."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from statistics import mean, median

SAMPLES = 8


@dataclass(slots=True)
class Pace:
    """The results that the answering device gave under one plan; times in seconds."""

    _last: float = 0.0
    _spacings: deque[float] = field(default_factory=lambda: deque(maxlen=SAMPLES))

    def answered(self, arrived: float, now: float) -> None:
        """Note a result at time `now` for a request that came at `arrived`."""
        since = max(arrived, self._last) if self._spacings else arrived
        self._spacings.append(now - since)
        self._last = now

    @property
    def spacing_s(self) -> float:
        """From one result to the next while requests wait, rather too little; 0: nothing known."""
        if not self._spacings:
            return 0.0
        # Two that come at once, or one that a fault held up, say little of the next ones.
        return min(mean(self._spacings), median(self._spacings))
