"""The calibrations of a worker: probes are fetched, read, and run while there is nothing to serve.

Rules: one model's probes run at a time, in their order, until all ran or the budget is spent; what
was measured before is not measured again; an ask that is repeated changes only who is told.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agent.wire.calibration import Timings
from agent.wire.messages import Calibrated
from agent.worker.events import (
    CalibrationAsked,
    CancelFetch,
    Effect,
    Event,
    Fetch,
    Fetched,
    FetchFailed,
    KeepTimings,
    Log,
    ProbeRan,
    ProbesFailed,
    ProbesRead,
    ReadProbes,
    RunProbe,
    Tell,
)

if TYPE_CHECKING:
    from agent.wire.calibration import Timing
    from agent.wire.messages import Calibrate

MAX_OPEN = 256
_TICKETS = "probes/"


@dataclass(slots=True)
class _Calibration:
    """Probes of one model; `count` is None until they were read."""

    ask: Calibrate
    count: int | None = None
    runtime: str = ""
    spent_s: float = 0.0
    timings: list[Timing | None] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        return len(self.timings) == self.count or self.spent_s >= self.ask.budget_s


class Calibrations:
    """The calibrations that device `device` was asked for, by model."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._open: dict[str, _Calibration] = {}

    def owns(self, ticket: str) -> bool:
        """Tell whether a fetch is of probes."""
        return ticket.startswith(_TICKETS)

    @property
    def running(self) -> bool:
        """Whether probes are left to be run."""
        return any(found.count is not None for found in self._open.values())

    def handle(self, event: Event) -> list[Effect]:
        """Take an event of a calibration."""
        match event:
            case CalibrationAsked(ask):
                return self._asked(ask)
            case Fetched(ticket):
                return self._fetched(ticket)
            case ProbesRead():
                return self._read(event)
            case FetchFailed(ticket, reason):
                return self._give_up(ticket.removeprefix(_TICKETS), reason)
            case ProbesFailed(model, _, reason):
                return self._give_up(model, reason)
            case ProbeRan():
                return self._ran(event)
        raise AssertionError(f"{event} is no event of a calibration")

    def _asked(self, ask: Calibrate) -> list[Effect]:
        known = self._open.get(ask.model)
        if known is not None and known.ask.probes == ask.probes:
            known.ask = ask
            return []
        if known is None and len(self._open) >= MAX_OPEN:
            return []
        self._open[ask.model] = _Calibration(ask)
        return [Fetch(_TICKETS + ask.model, {ask.probes.digest: ask.probes.nbytes}, ask.source)]

    def _fetched(self, ticket: str) -> list[Effect]:
        found = self._open.get(ticket.removeprefix(_TICKETS))
        return [] if found is None else [ReadProbes(found.ask.model, found.ask.probes)]

    def _read(self, event: ProbesRead) -> list[Effect]:
        found = self._of(event.model, event.probes)
        if found is None or found.count is not None:
            return []
        if event.known is not None:
            return self._tell(found.ask, event.known)
        found.count, found.runtime = event.count, event.runtime
        return self._finish(found) if found.finished else []

    def _give_up(self, model: str, reason: str) -> list[Effect]:
        found = self._open.pop(model, None)
        if found is None:
            return []
        return [Log("warning", f"cannot be calibrated: {reason}", model=model)]

    def next_job(self) -> RunProbe | None:
        """Return the probe that is next, if there is one."""
        for model, found in self._open.items():
            if found.count is not None:
                return RunProbe(model, found.ask.probes.digest, len(found.timings))
        return None

    def _ran(self, event: ProbeRan) -> list[Effect]:
        found = self._of(event.model, event.probes)
        if found is None or event.index != len(found.timings):
            return []
        found.timings.append(event.timing)
        found.spent_s += event.seconds
        return self._finish(found) if found.finished else []

    def forget(self, model: str) -> list[Effect]:
        """Drop the calibration of a model that is no longer deployed."""
        found = self._open.pop(model, None)
        return [] if found is None else [CancelFetch(_TICKETS + model)]

    def _of(self, model: str, probes: str) -> _Calibration | None:
        found = self._open.get(model)
        return found if found is not None and found.ask.probes.digest == probes else None

    def _finish(self, found: _Calibration) -> list[Effect]:
        missing = [None] * ((found.count or 0) - len(found.timings))
        timings = Timings(found.ask.probes.digest, found.runtime, (*found.timings, *missing))
        text = f"{len(found.timings)} probes of {found.count} ran in {found.spent_s:.1f} s"
        log = Log("info", text, model=found.ask.model)
        return [log, KeepTimings(timings), *self._tell(found.ask, timings)]

    def _tell(self, ask: Calibrate, timings: Timings) -> list[Effect]:
        del self._open[ask.model]
        return [Tell(ask.coordinator, Calibrated(self._device, ask.model, timings))]
