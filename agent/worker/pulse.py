"""The pulse of a device: while it has unanswered requests it tells that it is alive.

Rules: a run of beats begins once a request has been in flight for `BEAT_S`, and ends with the last
one; each beat names the models of which a request lacks what others are to send, or answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.wire.messages import BEAT_S
from agent.worker.events import Beat, Effect
from agent.worker.requests import Request, State

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent.worker.plans import Plans

_OVER = frozenset({State.ANSWERED, State.FAILED})


class Pulse:
    """When to beat next, and what to say."""

    def __init__(self, plans: Plans) -> None:
        self._plans = plans
        self._due: float | None = None
        self._is_first = True

    def due(self) -> float | None:
        """Return when the next beat is due."""
        return self._due

    def follow(self, requests: Iterable[Request], now: float) -> None:
        """Look at the requests of this device: a run of beats begins, goes on or ends."""
        if all(request.state in _OVER for request in requests):
            self._due, self._is_first = None, True
        elif self._due is None:
            self._due = now + BEAT_S

    def beat(self, requests: Iterable[Request], now: float, *, busy: bool) -> list[Effect]:
        """Return the beat that is due, if it is; `busy` tells that a job runs here."""
        if self._due is None or now < self._due:
            return []
        waits = {r.key.model for r in requests if self._waits(r) and not busy}
        beat = Beat(tuple(sorted(waits)), self._is_first)
        self._due, self._is_first = now + BEAT_S, False
        return [beat]

    def _waits(self, request: Request) -> bool:
        if not request.key.request:
            # The answering device is to name it.
            return True
        if request.state is State.WAITING:
            # A device on standby can only wait; one that loads a plan is what others wait for.
            return self._plans.header(request.key.model) is None
        execution = request.execution
        return request.state is State.RUNNING and execution is not None and not execution.ready
