"""Who is silent while others wait: devices that were frozen or cut off, long before the keepalive.

Rules: a device is suspected only while another one says that it waits, and only if it is silent for
much longer than it ever was of late, and than most of the others are now: where everything is slow,
nobody is. How irregular a device's beats are is taken from its own; a slow device that beats is no
suspect.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.wire.messages import BEAT_S

if TYPE_CHECKING:
    from collections.abc import Collection

    from agent.wire.messages import Beat

# No device that beats is silent for so long, unless something is wrong.
SILENCE_S = 0.4
# How many times as late as it was of late a device's beat may be.
TIMES = 4.0
# How many times as silent as most of the others a suspect is.
OUTLYING = 3.0
FORGET = 0.995
# A longer gap is not how a device usually is: it was frozen.
LATEST_S = 0.5
# Waiting that nobody has spoken of for so long has ended.
PAUSE_S = 0.3


@dataclass(slots=True)
class _Heart:
    """The beats of one life of a device: when the last came, the gap before it, usual lateness."""

    session: str
    last: float
    gap: float = 0.0
    lateness: float = 0.0

    @property
    def patience(self) -> float:
        return max(SILENCE_S, BEAT_S + TIMES * self.lateness)

    def take(self, beat: Beat, now: float) -> None:
        self.gap = 0.0 if beat.first else now - self.last
        self.lateness = max(FORGET * self.lateness, min(LATEST_S, self.gap - BEAT_S))
        self.last = now


@dataclass(slots=True)
class _Wait:
    """Since when devices have been waiting for others of a model's plan."""

    since: float
    last: float


class Pulses:
    """The beats of all devices."""

    def __init__(self) -> None:
        self._hearts: dict[str, _Heart] = {}
        self._waits: dict[str, _Wait] = {}

    def take(self, beat: Beat, now: float) -> None:
        """Take a beat."""
        heart = self._hearts.get(beat.device)
        if heart is None or heart.session != beat.session:
            self._hearts[beat.device] = _Heart(beat.session, now)
        else:
            heart.take(beat, now)
        for model in beat.waits:
            wait = self._waits.get(model)
            # Whoever had nothing to do a moment ago knows that no request was stuck.
            if wait is None or beat.first or now - wait.last > PAUSE_S:
                wait = self._waits[model] = _Wait(now, now)
            wait.last = now

    def suspects(self, model: str, devices: Collection[str], now: float) -> list[str]:
        """Return who of a plan's `devices` (those that beat) is taken for dead.

        Only to be asked when a device has just told that it waits.
        """
        wait = self._waits.get(model)
        if wait is None or wait.last < now:
            return []
        waited = now - wait.since
        silences = {device: self._silence(device, waited, now) for device in devices}
        # As silent as most: the gap before its last beat counts for a device that is heard again.
        calm = sorted(
            max(silence, min(waited, self._gap(device))) for device, silence in silences.items()
        )[max(0, len(devices) - 1) // 2 :][:1]
        return [
            device
            for device, silence in sorted(silences.items())
            if silence > self._patience(device) and silence > OUTLYING * max(calm, default=0.0)
        ]

    def _silence(self, device: str, waited: float, now: float) -> float:
        heart = self._hearts.get(device)
        return waited if heart is None else min(waited, now - heart.last)

    def _gap(self, device: str) -> float:
        heart = self._hearts.get(device)
        return 0.0 if heart is None else heart.gap

    def _patience(self, device: str) -> float:
        heart = self._hearts.get(device)
        return SILENCE_S if heart is None else heart.patience
