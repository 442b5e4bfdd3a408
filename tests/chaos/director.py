"""Who strikes when: a seeded schedule of faults, one or two at a time."""

from __future__ import annotations

import time
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from tests.chaos.faults import FAULTS, Fault

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.chaos.site import Site

AT_ONCE = 2
TWO_AT_ONCE = 0.3
TURN_S = 0.05
# An agent that was hit takes this long to be a working device again.
CONVALESCENCE_S = 6.0


@dataclass
class Strike:
    """A fault that happened: times in seconds, `ended` once it is undone."""

    fault: Fault
    victim: str
    began: float
    due: float
    undo: Callable[[], None]
    ended: float | None = None


class Director:
    """Lets the faults `kinds` strike a site about every `every_s` seconds.

    There is always an agent that no fault hits, nor has hit lately.
    """

    def __init__(
        self,
        site: Site,
        kinds: Sequence[str],
        *,
        seed: int,
        every_s: float,
        tell: Callable[[str], None],
    ) -> None:
        self.strikes: list[Strike] = []
        self._site = site
        self._kinds = kinds
        self._random = Random(f"faults {seed}")
        self._every_s = every_s
        self._tell = tell
        self._deck: list[str] = []
        self._active: list[Strike] = []

    def run(self, seconds: float) -> None:
        """Strike for so long, then undo what is left."""
        end = time.monotonic() + seconds
        at = time.monotonic() + self._every_s
        try:
            while (now := time.monotonic()) < end:
                self._turn(now)
                if now >= at:
                    self._strike(now)
                    both = self._random.random() < TWO_AT_ONCE
                    at = now if both else now + self._every_s * self._random.uniform(0.6, 1.4)
                time.sleep(TURN_S)
        finally:
            for strike in list(self._active):
                self._end(strike)

    def settle(self, done: Callable[[], bool], seconds: float) -> bool:
        """Only tend the site until `done()`; return whether that came within `seconds`."""
        end = time.monotonic() + seconds
        while not (is_done := done()) and time.monotonic() < end:
            self._site.tend()
            time.sleep(TURN_S)
        return is_done

    def _turn(self, now: float) -> None:
        for strike in [strike for strike in self._active if now >= strike.due]:
            self._end(strike)
        self._site.tend()

    def _end(self, strike: Strike) -> None:
        self._active.remove(strike)
        strike.undo()
        strike.ended = time.monotonic()

    def _strike(self, now: float) -> None:
        if len(self._active) >= AT_ONCE:
            return
        if not self._deck:
            self._deck = self._random.sample(self._kinds, len(self._kinds))
        fault = FAULTS[self._deck[-1]]
        victims = self._victims(fault, now)
        if not victims:
            return
        self._deck.pop()
        victim = self._random.choice(victims)
        hold = self._random.uniform(*fault.hold_s)
        self._tell(f"{fault.kind} {victim} for {hold:.1f} s")
        undo = fault.strike(self._site, victim, self._random)
        strike = Strike(fault, victim, now, now + hold, undo)
        self.strikes.append(strike)
        self._active.append(strike)

    def _victims(self, fault: Fault, now: float) -> list[str]:
        hit = {strike.victim for strike in self._active}
        if fault.target != "agent":
            return [fault.target] if fault.target not in hit else []
        weak = {
            strike.victim
            for strike in self.strikes
            if strike.ended is None or now - strike.ended < CONVALESCENCE_S
        }
        well = [name for name in self._site.names if name not in weak]
        candidates = [name for name in self._site.names if name not in hit]
        return [name for name in candidates if set(well) - {name}]
