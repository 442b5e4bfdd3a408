"""What a coordinator knows of one deployed model."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agent.coordinator.calibration import Calibration
from agent.coordinator.readiness import Readiness

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.coordinator.events import ComputedPlan, Fleet, Member
    from agent.wire.messages import PlanHeader, Status
    from agent.wire.model import ModelPackage


@dataclass(slots=True)
class Deployment:
    """A model that is to be served, and how far that is.

    `current` is the plan that is announced, `offered` the one that devices in `awaited` still
    prepare; `planned` are the members that the newest plan was made for, `plan` what was made.
    `sessions` are the lives of the devices that `current` was prepared by, where that is known.
    `joined` is when devices joined that may still lack requests in flight.
    `after_loss` holds plans for other fleets, `to_compute` those still to be made; `computing` is
    the fleet that the planner works on. `waiting` are the clients (sender, reference) to tell.
    `previous` is what was served under this name, until this model has been planned. `calibration`
    is what is known of the devices' speed; while `refining`, the plan that the planner works on is
    to be weighed against the current one. `readiness` is what devices have loaded for plans after
    a loss, which are computed from time `losses_at` on.
    """

    package: ModelPackage
    epoch: int = 0
    state: str = "waiting for devices"
    current: PlanHeader | None = None
    planned: dict[str, Member] = field(default_factory=dict)
    computing: Fleet | None = None
    offered: PlanHeader | None = None
    awaited: set[str] = field(default_factory=set)
    sessions: dict[str, str] = field(default_factory=dict)
    joined: dict[str, float] = field(default_factory=dict)
    remind_at: float = 0.0
    prepare_until: float = 0.0
    plan: ComputedPlan | None = None
    after_loss: dict[Fleet, ComputedPlan] = field(default_factory=dict)
    to_compute: deque[Fleet] = field(default_factory=deque)
    waiting: list[tuple[str, str]] = field(default_factory=list)
    previous: Deployment | None = None
    calibration: Calibration = field(default_factory=lambda: Calibration({}))
    refining: bool = False
    readiness: Readiness = field(default_factory=Readiness)
    losses_at: float = 0.0

    def announced_elsewhere(
        self, header: PlanHeader, sessions: Mapping[str, str], now: float
    ) -> None:
        """Take a plan that another coordinator announced, or this one's earlier life."""
        self.current = header
        self.sessions = {d: sessions[d] for d in header.devices if d in sessions}
        self.joined |= dict.fromkeys(header.joined, now)

    def heard(self, status: Status) -> None:
        """Note which life of a device serves the plan, if nobody knows that better."""
        current, device = self.current, status.device
        known = current is None or device not in current.devices or device in self.sessions
        if current is not None and not known and status.plans.get(current.model) == current.epoch:
            self.sessions[device] = status.session

    def succeed(self, old: Deployment) -> None:
        """Take the place of another model of the same name, whose plan still serves."""
        self.epoch, self.current = old.epoch, old.current
        self.sessions, self.joined = old.sessions, old.joined
