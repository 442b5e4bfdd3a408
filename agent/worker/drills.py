"""A drill: this device is to fail when one certain request reaches a certain point.

Rules: only where this device's configuration allows it; one at a time, for this life of the process
and this request alone; it happens once, and is forgotten when its request is answered without it
or its time is up. The core only says when (`ev.FailNow`); whoever drives it fails.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.wire.drill import Drilled
from agent.worker import events as ev

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.wire.drill import Drill, State
    from agent.worker.events import Effect, Event, RequestKey
    from agent.worker.requests import Request


class Drills:
    """The drills of `device` in the life `session` of its process."""

    def __init__(self, device: str, session: str, *, allowed: bool) -> None:
        self._device = device
        self._session = session
        self._allowed = allowed
        self._drill: Drill | None = None
        self._until = 0.0
        self._steps = 0

    def ask(self, event: ev.DrillAsked, now: float) -> list[Effect]:
        """Arm a drill, or say why not."""
        drill = event.drill
        if reason := self._refusal(drill):
            log = ev.Log("warning", f"refused a drill of {drill.sender}: {reason}")
            return [log, self._tell(drill, "refused", reason)]
        self._drill, self._until, self._steps = drill, now + drill.lapses_s, 0
        text = f"armed a drill of {drill.sender}: {drill.fault} at point {drill.point}"
        return [ev.Log("warning", text, drill.request, drill.model), self._tell(drill, "armed")]

    def lapses_at(self) -> float | None:
        """Return when the drill lapses."""
        return None if self._drill is None else self._until

    def lapse(self, now: float) -> list[Effect]:
        """Forget a drill whose time is up."""
        return self._forget("lapsed") if self._drill is not None and now >= self._until else []

    def at(
        self, event: Event, effects: list[Effect], requests: Mapping[RequestKey, Request]
    ) -> list[Effect]:
        """Return `effects` of `event` with the failure where the drill's point is among them."""
        drill = self._drill
        if drill is None:
            return effects
        place = self._place(drill, event, effects, requests)
        if place is not None:
            self._drill = None
            return [*effects[:place], ev.FailNow(drill), *effects[place:]]
        if isinstance(event, ev.ResultSeen) and _is_of(drill, event.key):
            return effects + self._forget("missed")
        return effects

    def _place(
        self,
        drill: Drill,
        event: Event,
        effects: list[Effect],
        requests: Mapping[RequestKey, Request],
    ) -> int | None:
        for number, effect in enumerate(effects):
            match effect:
                case ev.Run(key) if drill.point == "step" and _is_of(drill, key):
                    self._steps += 1
                    if self._steps >= min(drill.step, _steps_of(requests[key])):
                        return number
                case ev.SendPiece(key) if drill.point == "sent" and _is_of(drill, key):
                    return number + 1
                case ev.PublishAnswer(answer) if drill.point == "answer":
                    if (answer.model, answer.request) == (drill.model, drill.request):
                        return number
        return 0 if drill.point == "received" and _brings(event, drill) else None

    def _refusal(self, drill: Drill) -> str:
        if not self._allowed:
            return (
                f"{self._device} does not allow drills; set allowed = true under [drill] in its "
                "configuration and restart it"
            )
        if drill.session != self._session:
            return f"{self._device} has been restarted since; ask it again"
        if self._drill is not None:
            return f"{self._device} waits for a drill of {self._drill.sender}; try again later"
        return ""

    def _forget(self, state: State) -> list[Effect]:
        drill, self._drill = self._drill, None
        if drill is None:
            return []
        log = ev.Log("info", f"the drill of {drill.sender} {state}", drill.request, drill.model)
        return [log, self._tell(drill, state)]

    def _tell(self, drill: Drill, state: State, reason: str = "") -> Effect:
        return ev.TellDrilled(drill.sender, Drilled(self._device, drill.reference, state, reason))


def _is_of(drill: Drill, key: RequestKey) -> bool:
    return (key.model, key.request) == (drill.model, drill.request)


def _brings(event: Event, drill: Drill) -> bool:
    if not isinstance(event, ev.RequestArrived):
        return False
    return (event.model, event.request) == (drill.model, drill.request)


def _steps_of(request: Request) -> int:
    return 1 if request.execution is None else len(request.execution.program.steps)
