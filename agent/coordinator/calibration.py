"""What a deployment knows of its devices' speed: timings that they measured, and their drift.

Rules: a model is served first, with nominal rates, and its devices are asked afterwards; a device
is asked once in a life, and not if what it measured before still holds; a new plan is looked for
once all have answered or `PATIENCE_S` passed, and when a device has drifted for long.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.coordinator.hysteresis import Drift, Pause
from agent.wire.calibration import Figures

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from agent.coordinator.events import Member
    from agent.wire.calibration import Timings
    from agent.wire.program import BlobRef

PATIENCE_S = 120.0
LARGEST_FACTOR = 64.0


class Calibration:
    """The figures of one model's devices; `saved` are those of an earlier life."""

    def __init__(self, saved: Mapping[str, Figures]) -> None:
        self.probes: BlobRef | None = None
        self._timings: dict[str, Timings] = {}
        # How many times as long as the timings say: what is planned with, and what the plan has.
        self._factors: dict[str, float] = {}
        self._planned: dict[str, float] = {}
        self.hear(saved)
        self._asked: dict[str, str] = {}
        self._making = False
        self.until: float | None = None
        self._is_new = False
        self.measured: tuple[str, ...] = ()
        self._drifts: dict[str, Drift] = {}
        self._pause = Pause()

    def hear(self, saved: Mapping[str, Figures]) -> None:
        """Take figures of another life, or another coordinator's."""
        self._timings |= {d: f.timings for d, f in saved.items() if f.timings is not None}
        self._factors |= {d: f.factor for d, f in saved.items()}
        self._planned = dict(self._factors)

    def figures(self, members: Iterable[Member]) -> dict[str, Figures]:
        """Return what is known of each of `members`."""
        return {
            m.device: Figures(self._known(m), self._factors.get(m.device, 1.0)) for m in members
        }

    def to_save(self) -> dict[str, Figures]:
        """Return the figures that the newest plan was made with, by device."""
        devices = sorted(self._timings.keys() | self._planned.keys())
        return {d: Figures(self._timings.get(d), self._planned.get(d, 1.0)) for d in devices}

    def blobs(self) -> set[str]:
        """Return the blobs without which the timings say nothing."""
        known = {timings.probes for timings in self._timings.values()}
        return known if self.probes is None else known | {self.probes.digest}

    # Timings -------------------------------------------------------------------------------

    def lacks_probes(self) -> bool:
        """Tell, once, that the model's probes are to be made."""
        lacks = self.probes is None and not self._making
        self._making = True
        return lacks

    def unasked(self, members: Iterable[Member], now: float) -> list[str]:
        """Return, once in a life of each, the devices that are to run the probes."""
        if self.probes is None:
            return []
        found = [
            member
            for member in members
            if self._known(member) is None and self._asked.get(member.device) != member.session
        ]
        self._asked |= {member.device: member.session for member in found}
        if found:
            self.until = now + PATIENCE_S
        return [member.device for member in found]

    def made(self, probes: BlobRef) -> None:
        """Take the model's probes."""
        self.probes = probes

    def answered(self, device: str, timings: Timings) -> None:
        """Take what a device measured."""
        if self.probes is not None and timings.probes == self.probes.digest:
            self._timings[device] = timings
            self._is_new = True

    def _known(self, member: Member) -> Timings | None:
        timings = self._timings.get(member.device)
        if timings is None or timings.runtime != member.runtime:
            return None
        stale = self.probes is not None and timings.probes != self.probes.digest
        return None if stale else timings

    # When to plan again --------------------------------------------------------------------

    def due(self, members: Iterable[Member], now: float) -> bool:
        """Tell whether a new plan is to be looked for."""
        waiting = self.until is not None and now < self.until
        if waiting and any(self._known(member) is None for member in members):
            return False
        self.until = None
        return self._is_new

    def taken(self) -> None:
        """Note that what is known now is being planned with."""
        self._is_new = False

    def weighed(self, members: Iterable[Member]) -> None:
        """Note that what is known was planned with, whatever came of it."""
        self.measured = tuple(m.device for m in members if self._known(m) is not None)

    def switched(self, members: Iterable[Member]) -> None:
        """Note that a plan which was made with what is known is now being prepared."""
        self.weighed(members)
        self._planned = dict(self._factors)
        self._drifts.clear()

    def drifted(self, device: str, ratio: float, now: float) -> bool:
        """Take a device's drift under the current plan; tell whether it calls for another plan."""
        factor = ratio * self._planned.get(device, 1.0)
        factor = min(LARGEST_FACTOR, max(1.0 / LARGEST_FACTOR, factor))
        drift = self._drifts.setdefault(device, Drift())
        lasts = drift.lasts(factor / self._factors.get(device, 1.0), now)
        if not lasts or not self._pause.over(now):
            return False
        self._pause.begin(now)
        self._factors[device] = factor
        self._drifts.clear()
        self._is_new = True
        return True
