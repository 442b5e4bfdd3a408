"""The deployments of a coordinator, and the epochs of those that it removed or never had."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.coordinator import events as ev
from agent.coordinator.calibration import Calibration
from agent.coordinator.deployment import Deployment
from agent.coordinator.telling import LONGEST_TEXT
from agent.wire.messages import ModelState

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from agent.coordinator.events import Effect
    from agent.wire.calibration import Figures
    from agent.wire.model import ModelPackage

# No coordinator gets that far; one that believed it could not go on from there.
MAX_EPOCH = 1 << 52
MAX_RETIRED = 4096


class Catalog:
    """What is deployed, by model; `saved` are packages with their newest epochs.

    `retired` are the newest known epochs of models that are not deployed; those in `removed` a
    client had removed.
    """

    def __init__(
        self,
        saved: Iterable[tuple[ModelPackage, int]],
        figures: Mapping[str, Mapping[str, Figures]],
    ) -> None:
        self.deployments = {
            package.name: Deployment(
                package, epoch, calibration=Calibration(figures.get(package.name, {}))
            )
            for package, epoch in saved
        }
        self.retired: dict[str, int] = {}
        self.removed: set[str] = set()

    def __iter__(self) -> Iterator[Deployment]:
        return iter(list(self.deployments.values()))

    def get(self, model: str) -> Deployment | None:
        """Return the deployment of a model, None if there is none."""
        return self.deployments.get(model)

    def put(self, deployment: Deployment) -> None:
        """Have `deployment` take the place of another of its name."""
        self.deployments[deployment.package.name] = deployment
        self.removed.discard(deployment.package.name)

    def remove(self, model: str) -> Deployment | None:
        """Remove a model because a client wants it; return its deployment, if there is one."""
        deployment = self.deployments.pop(model, None)
        if deployment is not None:
            self.retired[model] = deployment.epoch
        if model in self.retired:
            self.removed.add(model)
        return deployment

    def note_epoch(self, model: str, epoch: int) -> None:
        """Note that there was a plan of that epoch: new ones must be newer.

        It may be one of this coordinator's life before it lost its disk.
        """
        if epoch >= MAX_EPOCH:
            return
        deployment = self.deployments.get(model)
        if deployment is None:
            if model in self.retired or len(self.retired) < MAX_RETIRED:
                self.retired[model] = max(epoch, self.retired.get(model, 0))
        else:
            deployment.epoch = max(epoch, deployment.epoch)

    def persist(self) -> Effect:
        """Return the effect that saves all this, and pins the blobs that are needed."""
        blobs: set[str] = set()
        for deployment in self:
            blobs |= deployment.package.blobs().keys()
            plans = [*deployment.after_loss.values()]
            plans += [deployment.plan] if deployment.plan else []
            blobs |= {ref.digest for plan in plans for ref in plan.programs.values()}
            blobs |= {digest for p in plans for needed in p.blobs.values() for digest in needed}
            blobs |= deployment.calibration.blobs()
        packages = [(d.package, d.epoch) for d in self]
        figures = {d.package.name: d.calibration.to_save() for d in self}
        return ev.Persist(tuple(packages), frozenset(blobs), figures)

    def shown(self, *, calibrated: bool) -> tuple[ModelState, ...]:
        """Return what a status tells of each model, and whether devices are calibrated."""
        return tuple(
            ModelState(
                name,
                d.state[:LONGEST_TEXT],
                d.epoch,
                d.current.devices if d.current else (),
                d.calibration.measured,
                calibrated,
                d.readiness.covered(d.after_loss, d.planned),
            )
            for name, d in sorted(self.deployments.items())
        )
