"""Has the devices of a served model measure its layers, and takes what they tell of their speed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.coordinator import events as ev
from agent.wire.messages import Calibrate

if TYPE_CHECKING:
    from agent.coordinator.catalog import Catalog
    from agent.coordinator.deployment import Deployment
    from agent.coordinator.events import Effect
    from agent.wire.messages import Calibrated, Status
    from agent.wire.program import BlobRef


class Measuring:
    """The measuring that coordinator `name` asks for.

    Each device may spend `budget_s` on a model; where that is 0, plans follow nominal rates alone.
    """

    def __init__(self, name: str, catalog: Catalog, budget_s: float) -> None:
        self._name = name
        self._catalog = catalog
        self._budget_s = budget_s

    @property
    def wanted(self) -> bool:
        """Whether anything is measured at all."""
        return self._budget_s > 0.0

    def ask(self, deployment: Deployment, now: float) -> list[Effect]:
        """Have the devices of a model that is served measure its layers."""
        calibration, package = deployment.calibration, deployment.package
        if not self.wanted:
            return []
        if calibration.lacks_probes():
            return [ev.MakeProbes(package)]
        devices = calibration.unasked(deployment.planned.values(), now)
        if calibration.probes is None or not devices:
            return []
        ask = Calibrate(package.name, self._name, self._name, calibration.probes, self._budget_s)
        return [*self._catalog.persist(), *(ev.Tell(device, ask) for device in devices)]

    def made(self, deployment: Deployment, probes: BlobRef, now: float) -> list[Effect]:
        """Take a model's probes."""
        deployment.calibration.made(probes)
        return self.ask(deployment, now) if deployment.state == "serving" else []

    def answered(self, deployment: Deployment, message: Calibrated) -> list[Effect]:
        """Take what a device measured."""
        deployment.calibration.answered(message.device, message.timings)
        text = f"{message.device} has measured the model's layers"
        return [ev.Log("info", text, message.model)]

    def drifted(self, deployment: Deployment, status: Status, now: float) -> list[Effect]:
        """Take a device's drift; return something only if another plan is called for."""
        header, model = deployment.current, deployment.package.name
        ratio = status.drift.get(model)
        if not self.wanted or ratio is None or header is None or deployment.state != "serving":
            return []
        # What was measured under another plan is a ratio to other predictions.
        current = status.plans.get(model) == header.epoch and status.device in header.devices
        if not current or not deployment.calibration.drifted(status.device, ratio, now):
            return []
        text = f"{status.device} takes {ratio:.2f} times as long as planned"
        return [ev.Log("info", text, model)]
