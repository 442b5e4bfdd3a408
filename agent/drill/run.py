"""What is known of one case: when its device failed, when it was planned around and back. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from agent.drill.course import Case
    from agent.wire.drill import Drilled, State
    from agent.wire.messages import PlanHeader

# `open` is what was not over when the drill ended.
Outcome = Literal["open", "back", "not back", "missed", "refused", "silent", "skipped"]


@dataclass(slots=True)
class Run:
    """One case; times in seconds of the director's clock, None until they come.

    The fleet served in peace from `calm_from` until `asked_at`. `session` is the life of the
    device's process that is to fail, `epoch` the plan's before that, `request` the one in flight.
    """

    case: Case
    calm_from: float
    asked_at: float
    epoch: int
    reference: str
    session: str
    request: str
    told: State | None = None
    outcome: Outcome = "open"
    reason: str = ""
    met_at: float | None = None
    is_over: bool = False
    replanned_at: float | None = None
    back_at: float | None = None
    ended_at: float | None = None

    def see_drilled(self, drilled: Drilled, now: float) -> None:
        """Take what the agent tells."""
        if (drilled.device, drilled.reference) != (self.case.device, self.reference):
            return
        self.told, self.reason = drilled.state, drilled.reason or self.reason
        if drilled.state == "met":
            self.meet(now)
        self.is_over = self.is_over or drilled.state == "over"

    def meet(self, now: float) -> None:
        """Note that the device failed."""
        if self.met_at is None:
            self.met_at = now

    def see_plan(self, header: PlanHeader, now: float) -> None:
        """Take a new plan: the first that does without the device is the one that helps."""
        newer = header.epoch > self.epoch and self.case.device not in header.devices
        if newer and self.met_at is not None and self.replanned_at is None:
            self.replanned_at = now

    def see_fleet(self, session: str | None, *, whole: bool, now: float) -> None:
        """Take whether the fleet is whole; it is back since it was so without a break."""
        restarted = session is not None and session != self.session
        back = whole and (self.is_over or restarted)
        if not back:
            self.back_at = None
        elif self.back_at is None:
            self.back_at = now

    def end(self, outcome: Outcome, now: float, reason: str = "") -> None:
        """Note how the case ended."""
        self.outcome, self.ended_at = outcome, now
        self.reason = reason or self.reason
