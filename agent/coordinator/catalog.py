"""The deployments that a coordinator knows of, and what it told others and its disk of them.

Rules: what a model's record says of a later term holds; within a term only the leader writes. A
removed model leaves a record without a package, so that a coordinator that was away forgets it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.coordinator import events as ev
from agent.coordinator.deployment import Deployment
from agent.coordinator.leadership import MAX_TERM
from agent.coordinator.telling import LONGEST_TEXT
from agent.wire.messages import Deployed, ModelState

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from agent.coordinator.events import Effect

# No coordinator gets that far; one that believed it could not go on from there.
MAX_EPOCH = 1 << 52
MAX_RETIRED = 4096


class Catalog:
    """What is deployed, by model, as coordinator `name` knows it; `saved` is of its earlier life.

    `retired` are the newest known epochs of models that are not deployed; those in `removed` a
    client had removed. `lacking` are the deployed models whose blobs are not here. `term` is that
    of this coordinator's reign, 0 on standby.
    """

    def __init__(self, name: str, saved: Iterable[Deployed]) -> None:
        self._name = name
        self.deployments: dict[str, Deployment] = {}
        self.retired: dict[str, int] = {}
        self.removed: set[str] = set()
        self.lacking: set[str] = set()
        self.term = 0
        self._terms: dict[str, int] = {}
        self._told: dict[str, Deployed] = {}
        for record in saved:
            self._take(record)
        # What is on the disk is known once somebody has looked.
        self.lacking |= self.deployments.keys()

    def __iter__(self) -> Iterator[Deployment]:
        return iter(list(self.deployments.values()))

    def get(self, model: str) -> Deployment | None:
        """Return the deployment of a model, None if there is none."""
        return self.deployments.get(model)

    @property
    def newest_term(self) -> int:
        """The latest reign that anything here is of."""
        return max(self._terms.values(), default=0)

    # The leader's changes ------------------------------------------------------------------

    def reign(self, term: int) -> list[Effect]:
        """Begin a reign: all that is known here holds from now on."""
        self.term = term
        self._terms = dict.fromkeys(self._terms, term)
        return self.tell()

    def put(self, deployment: Deployment) -> None:
        """Have `deployment` take the place of another of its name."""
        name = deployment.package.name
        self.deployments[name] = deployment
        self._terms[name] = self.term
        self.removed.discard(name)
        self.lacking.discard(name)

    def remove(self, model: str) -> Deployment | None:
        """Remove a model for good; return its deployment, if there is one."""
        deployment = self.deployments.pop(model, None)
        if deployment is not None:
            self.retired[model] = deployment.epoch
        if model in self.retired:
            self.removed.add(model)
            self._terms[model] = self.term
        self.lacking.discard(model)
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

    # Others' changes -----------------------------------------------------------------------

    def hear(self, record: Deployed) -> bool:
        """Take another's record, unless what is known here is as new; tell whether it was news."""
        known = self._terms.get(record.model, -1)
        if record.term >= MAX_TERM or (known < 0 and len(self._terms) >= MAX_RETIRED):
            return False
        newer = record.term > known or (record.term == known and not self.term)
        if not newer:
            return False
        deployment = self.deployments.get(record.model)
        package = deployment.package if deployment is not None else None
        self._take(record)
        self._terms[record.model] = max(record.term, self.term)
        if record.package is not None and record.package != package:
            self.lacking.add(record.model)
        return True

    def unknown_to(self, models: Iterable[str], term: int) -> list[Effect]:
        """Return the records of deployments that the leader of `term` does not have."""
        missing = self.deployments.keys() - set(models)
        return [ev.Record(self._record(m)) for m in sorted(missing) if self._terms[m] < term]

    def _take(self, record: Deployed) -> None:
        model, package = record.model, record.package
        self._terms[model] = record.term
        old = self.deployments.get(model)
        if package is None:
            self.lacking.discard(model)
            self.removed.add(model)
            self.deployments.pop(model, None)
            self.note_epoch(model, max(record.epoch, old.epoch if old is not None else 0))
            return
        self.removed.discard(model)
        if old is None or old.package != package:
            self.deployments[model] = Deployment(package, self.retired.pop(model, 0))
            if old is not None:
                self.deployments[model].succeed(old)
        self.deployments[model].calibration.hear(record.figures)
        self.note_epoch(model, record.epoch)

    # Telling -------------------------------------------------------------------------------

    def persist(self) -> list[Effect]:
        """Return the effects that save all this, pin the blobs and, of a leader, tell others."""
        blobs: set[str] = set()
        for deployment in self:
            blobs |= deployment.package.blobs().keys()
            plans = [*deployment.after_loss.values()]
            plans += [deployment.plan] if deployment.plan else []
            blobs |= {ref.digest for plan in plans for ref in plan.programs.values()}
            blobs |= {digest for p in plans for needed in p.blobs.values() for digest in needed}
            blobs |= deployment.calibration.blobs()
        records = self._records()
        told = [ev.Record(r) for r in records if self.term and self._told.get(r.model) != r]
        self._told |= {effect.record.model: effect.record for effect in told}
        return [ev.Persist(records, frozenset(blobs)), *told]

    def tell(self) -> list[Effect]:
        """Return the effects that save all this and tell others of it again."""
        self._told.clear()
        return self.persist()

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

    def _records(self) -> tuple[Deployed, ...]:
        models = sorted(self.deployments.keys() | self.removed)
        return tuple(self._record(model) for model in models)

    def _record(self, model: str) -> Deployed:
        deployment, term = self.deployments.get(model), self._terms.get(model, 0)
        if deployment is None:
            return Deployed(model, None, self.retired.get(model, 0), term, self._name)
        figures = deployment.calibration.to_save()
        package = deployment.package
        return Deployed(model, package, deployment.epoch, term, self._name, figures)
