"""A model's fleet as a client sees it, by what the broker has retained. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent.wire.messages import PlanHeader, Status


class FleetView:
    """The agents and the plan of `model`."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._statuses: dict[str, Status] = {}
        self.plan: PlanHeader | None = None

    def see_status(self, status: Status) -> None:
        """Take a status; an old will cannot hide a new birth."""
        before = self._statuses.get(status.device)
        old = before is not None and before.session != status.session
        if not (old and status.state == "offline"):
            self._statuses[status.device] = status

    def see_plan(self, header: PlanHeader) -> None:
        """Take the header of a plan."""
        if header.model == self._model:
            self.plan = header

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices of the plan, the answering one first."""
        return () if self.plan is None else self.plan.devices

    @property
    def epoch(self) -> int:
        """The epoch of the plan."""
        return 0 if self.plan is None else self.plan.epoch

    def status(self, device: str) -> Status | None:
        """Return what a device told last."""
        return self._statuses.get(device)

    def session(self, device: str) -> str | None:
        """Return the life of a device's process while it is online."""
        status = self._statuses.get(device)
        return status.session if status is not None and status.state == "online" else None

    def serves(self, device: str) -> bool:
        """Tell whether a device is online and serves by the plan that is current."""
        status = self._statuses.get(device)
        if status is None or status.state != "online":
            return False
        return device in self.devices and status.plans.get(self._model) == self.epoch

    def whole(self, *devices: str) -> bool:
        """Tell whether `devices` and all others of the plan serve by it."""
        return all(self.serves(device) for device in (*devices, *self.devices))
