"""From a fleet to a plan that serves: computed, offered, announced, and made ready for losses.

Rules: a plan is computed for the devices that are there, prepared by all of its devices while the
current plan serves, then announced. After each announcement the plans for the loss of any one
device are computed, and the devices make them ready in advance; such a plan is announced at once
when it is needed, if all of its devices have said that they have it.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from agent.coordinator import events as ev
from agent.coordinator.hysteresis import is_misleading, worth_switching
from agent.coordinator.offers import REMIND_S, is_unchanged, offer, standbys, take_back
from agent.coordinator.readiness import Readiness
from agent.coordinator.telling import conclude, refuse_all, report
from agent.wire.messages import Prepare

CALM_S = 2.0

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.coordinator.catalog import Catalog
    from agent.coordinator.deployment import Deployment
    from agent.coordinator.events import ComputedPlan, Effect, Member
    from agent.coordinator.measuring import Measuring
    from agent.coordinator.membership import Membership
    from agent.wire.messages import PlanHeader


class Planning:
    """Plans the models of `catalog` for `members`, as coordinator `name`."""

    def __init__(
        self, name: str, members: Membership, catalog: Catalog, measuring: Measuring
    ) -> None:
        self._name = name
        self._members = members
        self._catalog = catalog
        self._measuring = measuring

    def rest(self, deployment: Deployment) -> None:
        """Leave a deployment to another coordinator; whatever comes of it is looked at anew."""
        deployment.offered = None
        deployment.awaited.clear()
        deployment.refining = False
        deployment.after_loss.clear()
        deployment.losses_at = 0.0
        deployment.readiness = Readiness()
        deployment.to_compute.clear()
        deployment.waiting.clear()
        deployment.planned = {}
        deployment.state = "on standby"

    # Computing -----------------------------------------------------------------------------

    def replan(self, deployment: Deployment, now: float) -> list[Effect]:
        """Look for the plan of the devices that are there; what is offered is given up."""
        members = self._members.candidates(deployment.package.name, now)
        fleet = frozenset(member.device for member in members)
        deployment.to_compute.clear()
        deployment.offered = None
        if not members:
            deployment.state = "waiting for devices"
            deployment.planned = {}
            return []
        if deployment.package.name in self._catalog.lacking:
            deployment.state = "fetching the model"
            return []
        known = {device: deployment.planned.get(device) for device in fleet}
        same = all(known[member.device] == member for member in members)
        if same and fleet in deployment.after_loss:
            return self._offer(deployment, deployment.after_loss[fleet], members, now)
        deployment.state = "planning"
        if deployment.computing is not None:
            return []
        return [self._compute(deployment, members)]

    def refine(self, deployment: Deployment, now: float) -> list[Effect]:
        """Look for a better plan where figures are new, while the current one serves."""
        ready = deployment.state == "serving" and deployment.computing is None
        members = self._members.candidates(deployment.package.name, now)
        if not ready or not members or deployment.plan is None:
            return []
        if not deployment.calibration.due(members, now):
            return []
        deployment.calibration.taken()
        return [self._compute(deployment, members, deployment.plan)]

    def computed(self, event: ev.Computed, now: float) -> list[Effect]:
        """Take a plan: for now, for a loss, or to be weighed against the current one."""
        name = event.package.name
        deployment = self._catalog.get(name)
        if deployment is None:
            return []
        deployment.computing = None
        members = self._members.candidates(name, now)
        fleet = frozenset(member.device for member in members)
        stale = event.package != deployment.package
        if deployment.state != "planning":
            if deployment.refining and not stale and event.plan.fleet == fleet:
                return self._weigh(deployment, event.plan, members, now)
            if not stale:
                deployment.after_loss[event.plan.fleet] = event.plan
            return self._compute_next(deployment, members, now)
        if stale or event.plan.fleet != fleet:
            return self.replan(deployment, now)
        notes = [ev.Log("info", note, name) for note in event.plan.notes]
        return [*notes, *self._offer(deployment, event.plan, members, now)]

    def compute_failed(self, event: ev.ComputeFailed, now: float) -> list[Effect]:
        """Go on with what was served before, if a model cannot be planned."""
        name = event.package.name
        deployment = self._catalog.get(name)
        if deployment is None:
            return []
        deployment.computing = None
        log = ev.Log("error", f"cannot be planned: {event.reason}", name)
        members = self._members.candidates(name, now)
        if deployment.state != "planning":
            return [log, *self._compute_next(deployment, members, now)]
        fleet = frozenset(member.device for member in members)
        if event.package != deployment.package or event.fleet != fleet:
            return [log, *self.replan(deployment, now)]
        deployment.state = f"cannot be planned: {event.reason}"
        effects = [log, *refuse_all(deployment, event.reason)]
        if deployment.previous is not None:
            self._catalog.put(deployment.previous)
            persist = self._catalog.persist()
            return [*effects, *persist, *self.replan(deployment.previous, now)]
        if deployment.current is None and deployment.epoch == 0:
            self._catalog.remove(name)
            effects += self._catalog.persist()
        return effects

    def _compute(
        self,
        deployment: Deployment,
        members: tuple[Member, ...],
        against: ComputedPlan | None = None,
    ) -> Effect:
        deployment.computing = frozenset(member.device for member in members)
        deployment.refining = against is not None
        figures = deployment.calibration.figures(members)
        return ev.ComputePlan(deployment.package, members, figures, against)

    def _weigh(
        self,
        deployment: Deployment,
        plan: ComputedPlan,
        members: tuple[Member, ...],
        now: float,
    ) -> list[Effect]:
        """Switch to a plan made of new figures if that pays; remake the plans for losses."""
        deployment.after_loss.clear()
        before = plan.instead_of_ms
        name, header = deployment.package.name, deployment.current
        if before is None or header is None or worth_switching(plan.predicted_ms, before):
            return self._offer(deployment, plan, members, now)
        if is_misleading(header.predicted_ms, before):
            return self._offer(deployment, plan, members, now)
        deployment.calibration.weighed(members)
        text = f"no better plan: {plan.predicted_ms:.1f} ms instead of {before:.1f} ms"
        losses = self._prepare_losses(deployment, header, now)
        return [ev.Log("info", text, name), *self._catalog.persist(), *losses]

    # Offering and announcing ---------------------------------------------------------------

    def _offer(
        self,
        deployment: Deployment,
        plan: ComputedPlan,
        members: tuple[Member, ...],
        now: float,
    ) -> list[Effect]:
        sessions = {member.device: member.session for member in members}
        deployment.plan = plan
        deployment.previous = None
        deployment.planned = {member.device: member for member in members}
        deployment.calibration.switched(members)
        current = deployment.current
        if current is not None and self._is_unchanged(deployment, plan, sessions):
            serve = self._serve(deployment, current, now, announce=False)
            return [*take_back(deployment, self._members.sessions()), *serve]
        header = offer(deployment, plan, sessions, self._name, now)
        if deployment.readiness.has(plan, sessions):
            # Requests in flight come first.
            deployment.losses_at = now + CALM_S
            serve = self._serve(deployment, header, now, announce=True)
            return [*serve, *self._catalog.persist()]
        text = f"preparing on {', '.join(plan.devices)}"
        return [
            ev.Log("info", text, header.model, header.epoch),
            *self._catalog.persist(),
            *report(deployment, text),
            *(ev.Tell(device, Prepare(header)) for device in plan.devices),
        ]

    def _is_unchanged(
        self, deployment: Deployment, plan: ComputedPlan, sessions: Mapping[str, str]
    ) -> bool:
        current = deployment.current
        if current is None or not is_unchanged(deployment, plan, sessions):
            return False
        # Another coordinator's plan, which nobody may be able to fetch any more, can stay if all
        # of its devices serve it.
        mine = current.source == self._name
        return mine or self._members.serve(current.model, current.epoch, current.devices)

    def remind(self, deployment: Deployment, header: PlanHeader, now: float) -> list[Effect]:
        """Offer again to those that have not prepared; plan without them after too long."""
        waiting = sorted(deployment.awaited)
        if now < deployment.prepare_until:
            # A message may have been lost with a connection; an agent that works on it ignores it.
            deployment.remind_at = now + REMIND_S
            return [ev.Tell(device, Prepare(header)) for device in waiting]
        for device in waiting:
            self._members.exclude(deployment.package.name, device, now)
        deployment.offered = None
        logs = [ev.Log("warning", f"{device} prepares for too long") for device in waiting]
        return [*logs, *self.replan(deployment, now)]

    def prepared_seen(self, event: ev.PreparedSeen, now: float) -> list[Effect]:
        """Announce a plan once all of its devices have it; plan without one that cannot."""
        prepared = event.prepared
        deployment = self._catalog.get(prepared.model)
        if deployment is None:
            # What was offered before may be heard after the model was removed.
            is_removed = prepared.model in self._catalog.removed
            return [ev.Withdraw(prepared.model)] if is_removed else []
        header = deployment.offered or deployment.current
        if header is None or header.epoch != prepared.epoch:
            return []
        if prepared.device not in header.devices:
            return []
        if not prepared.ok:
            self._members.exclude(deployment.package.name, prepared.device, now)
            deployment.offered = None
            text = f"{prepared.device} cannot serve: {prepared.reason}"
            log = ev.Log("error", text, prepared.model, prepared.epoch)
            return [log, *report(deployment, text), *self.replan(deployment, now)]
        deployment.awaited.discard(prepared.device)
        if deployment.awaited or deployment.offered is None:
            return []
        return self._serve(deployment, header, now, announce=True)

    def _serve(
        self, deployment: Deployment, header: PlanHeader, now: float, *, announce: bool
    ) -> list[Effect]:
        deployment.current, deployment.offered = header, None
        deployment.state = "serving"
        effects: list[Effect] = []
        lives = {d: m.session for d, m in deployment.planned.items()}
        # Of a plan from an earlier life, whoever is heard of first is who prepared it.
        deployment.sessions = lives if announce else lives | deployment.sessions
        if announce:
            text = f"serving on {', '.join(header.devices)}"
            effects += [ev.Announce(header), ev.Log("info", text, header.model, header.epoch)]
        effects += conclude(deployment, "serving", header)
        effects += self._prepare_losses(deployment, header, now)
        return effects + self._measuring.ask(deployment, now)

    # Losses --------------------------------------------------------------------------------

    def _prepare_losses(
        self, deployment: Deployment, header: PlanHeader, now: float
    ) -> list[Effect]:
        members = tuple(deployment.planned[device] for device in sorted(deployment.planned))
        fleet = frozenset(deployment.planned)
        deployment.after_loss = {f: p for f, p in deployment.after_loss.items() if f < fleet}
        deployment.to_compute = deque(
            fleet - {device}
            for device in header.devices
            if len(fleet) > 1 and fleet - {device} not in deployment.after_loss
        )
        return self._compute_next(deployment, members, now)

    def losses_due(self, deployment: Deployment, now: float) -> list[Effect]:
        """Compute the plans after losses that had to wait for requests in flight."""
        if not 0.0 < deployment.losses_at <= now:
            return []
        deployment.losses_at = 0.0
        members = self._members.candidates(deployment.package.name, now)
        return self._compute_next(deployment, members, now)

    def ready_seen(self, event: ev.ReadySeen, _now: float) -> list[Effect]:
        """Note what a device has loaded for plans after a loss."""
        deployment = self._catalog.get(event.ready.model)
        if deployment is not None:
            deployment.readiness.take(event.ready)
        return []

    def _compute_next(
        self, deployment: Deployment, members: tuple[Member, ...], now: float
    ) -> list[Effect]:
        if deployment.computing is not None or now < deployment.losses_at:
            return []
        refined = self.refine(deployment, now)
        if refined:
            return refined
        present = {member.device: member for member in members}
        while deployment.to_compute:
            fleet = deployment.to_compute.popleft()
            if fleet <= present.keys():
                rest = tuple(present[device] for device in sorted(fleet))
                return [self._compute(deployment, rest)]
        if deployment.plan is None or deployment.state != "serving":
            return []
        return [*self._catalog.persist(), *standbys(deployment, deployment.plan, self._name)]
