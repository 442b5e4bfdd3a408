"""How requests end in an error on this device, and whose turn it is to say so.

Rules: the first device of a plan publishes an error at once, each further one `RANK_DELAY_S` later
if those before it kept silent; devices on standby come last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.wire.messages import Answer, Failure
from agent.worker.events import Effect, Log, PublishAnswer
from agent.worker.requests import RANK_DELAY_S, Request, State

if TYPE_CHECKING:
    from agent.worker.plans import Plan, Plans

STANDBY_RANK = 32


class Endings:
    """Ends requests of device `device`, which serves `plans`."""

    def __init__(self, device: str, plans: Plans) -> None:
        self._device = device
        self._plans = plans

    def answers(self, plan: Plan) -> bool:
        """Tell whether this device is the one of a plan that answers."""
        return plan.header.devices[0] == self._device

    def due(self, model: str, since: float) -> float:
        """Return when it is this device's turn to tell of what failed at time `since`."""
        return since + self._rank(model) * RANK_DELAY_S

    def give_up(self, request: Request, failure: Failure, since: float, now: float) -> list[Effect]:
        """Have a request fail that can have no result any more since time `since`."""
        due = self.due(request.key.model, since)
        epoch = request.plan.header.epoch if request.plan else None
        text = f"{failure.code}: {failure.text}"
        log = Log("warning", text, request.key.request, request.key.model, epoch)
        request.fail(failure, due)
        return [log, *(self.publish(request, failure, now) if due <= now else [])]

    def publish(self, request: Request, failure: Failure, now: float) -> list[Effect]:
        """Answer a request with an error."""
        request.move(State.ANSWERED)
        plan = request.plan or self._plans.active.get(request.key.model)
        return [
            PublishAnswer(self.error(request, plan, now - request.arrived, failure), request.reply)
        ]

    def error(
        self, request: Request, plan: Plan | None, elapsed_s: float, failure: Failure
    ) -> Answer:
        """Return the answer that tells of an error."""
        return Answer(
            request=request.key.request,
            model=request.key.model,
            input=request.key.input,
            ok=False,
            error=failure,
            elapsed_ms=round(elapsed_s * 1e3, 3),
            epoch=plan.header.epoch if plan else 0,
            devices=plan.header.devices if plan else (),
        )

    def _rank(self, model: str) -> int:
        # Devices that only prepare a plan come after all that serve it, then those on standby.
        header = self._plans.header(model)
        if header is None or self._device not in header.devices:
            return STANDBY_RANK
        rank = header.devices.index(self._device)
        return rank if model in self._plans.active else rank + len(header.devices)
