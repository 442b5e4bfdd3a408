"""The coordinator: one `handle(event, now)` that turns events into effects.

Rules: a plan is computed for the devices that are there, prepared by all of its devices while the
current plan serves, then announced, and announced again where a broker lost it; a device that a
plan loses is acted on at once, joins and changes once the fleet was quiet for `SETTLE_S`. After
each announcement the plans for the loss of any one device are computed, and what they need is
brought to the devices in advance.
"""

from __future__ import annotations

from collections import deque
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from agent.coordinator import events as ev
from agent.coordinator.calibration import Calibration
from agent.coordinator.deployment import Deployment
from agent.coordinator.hysteresis import is_misleading, worth_switching
from agent.coordinator.membership import Membership
from agent.wire.messages import Calibrate, ModelState, PlanHeader, Prepare, Progress, Standby
from agent.wire.program import BlobRef, plan_digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from agent.coordinator.events import ComputedPlan, Effect, Event, Member
    from agent.wire.calibration import Figures
    from agent.wire.messages import Deploy, Status
    from agent.wire.model import ModelPackage

SETTLE_S = 0.5
REMIND_S = 5.0
RETAINED_S = 2.0
PREPARE_S = 120.0
BUDGET_S = 10.0
# As long as requests live that say nothing else.
JOINED_S = 30.0


class CoordinatorCore:
    """The coordinator `name`, which serves `deployments` (packages with their newest epochs).

    `figures` are those of an earlier life, by model and device. Each device may spend `budget_s`
    on the calibration of a model; where that is 0, plans follow nominal rates alone.
    """

    def __init__(
        self,
        name: str,
        deployments: Iterable[tuple[ModelPackage, int]],
        now: float,
        *,
        figures: Mapping[str, Mapping[str, Figures]] = MappingProxyType({}),
        budget_s: float = BUDGET_S,
    ) -> None:
        self._name = name
        self._budget_s = budget_s
        self._members = Membership()
        self._deployments = {
            package.name: Deployment(
                package, epoch, calibration=Calibration(figures.get(package.name, {}))
            )
            for package, epoch in deployments
        }
        self._deploys: dict[str, Deploy] = {}
        self._retired: dict[str, int] = {}
        self._removed: set[str] = set()
        self._retained: dict[str, tuple[int, str]] = {}
        self._announce_at: float | None = None
        self._settle_at: float | None = now + SETTLE_S

    def next_timer(self) -> float | None:
        """Return when a `Tick` is due at the latest."""
        timers = [d.remind_at for d in self._deployments.values() if d.offered]
        waits = [d.calibration.until for d in self._deployments.values()]
        timers += [at for at in (self._settle_at, self._announce_at, *waits) if at is not None]
        return min(timers, default=None)

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event at time `now` (seconds, monotonic); return what is to be done."""
        handlers: dict[type, Callable[[Any, float], list[Effect]]] = {
            ev.StatusSeen: self._status_seen,
            ev.HeaderSeen: self._header_seen,
            ev.DeployAsked: self._deploy_asked,
            ev.RemoveAsked: self._remove_asked,
            ev.Fetched: self._fetched,
            ev.Fetching: self._fetching,
            ev.FetchFailed: self._fetch_failed,
            ev.Computed: self._computed,
            ev.ComputeFailed: self._compute_failed,
            ev.ProbesMade: self._probes_made,
            ev.ProbesRefused: self._probes_refused,
            ev.CalibratedSeen: self._calibrated_seen,
            ev.PreparedSeen: self._prepared_seen,
            ev.Reconnected: self._reconnected,
            ev.Tick: self._tick,
        }
        before = self._shown()
        effects = handlers[type(event)](event, now)
        after = self._shown()
        return effects if before == after else [*effects, ev.Show(after)]

    # Membership ----------------------------------------------------------------------------

    def _status_seen(self, event: ev.StatusSeen, now: float) -> list[Effect]:
        status = event.status
        self._members.hear(status.device, now)
        effects: list[Effect] = []
        for model, epoch in sorted(status.plans.items()):
            self._note_epoch(model, epoch)
            if model in self._removed:
                # The device was away, and the broker has forgotten to tell it.
                effects.append(ev.Withdraw(model))
        changes: list[Effect] = [
            ev.Log("warning", f"{device} is silent, so it is taken for dead")
            for device in self._members.expire(now)
        ]
        if self._members.see(status):
            changes.append(ev.Log("info", f"{status.device} is {status.state}"))
        if not changes:
            return effects + self._drift_seen(status, now)
        effects += changes
        self._settle_at = now + SETTLE_S
        for deployment in self._deployments.values():
            if self._has_lost(deployment, now):
                effects += self._replan(deployment, now)
        return effects

    def _has_lost(self, deployment: Deployment, now: float) -> bool:
        header = deployment.offered or deployment.current
        # Of a plan from an earlier life, a device that was not heard of yet is not lost.
        if header is None or not deployment.planned:
            return False
        sessions = self._sessions(deployment, now)
        return any(
            device not in sessions
            or (
                device in deployment.planned
                and sessions[device] != deployment.planned[device].session
            )
            for device in header.devices
        )

    def _sessions(self, deployment: Deployment, now: float) -> dict[str, str]:
        members = self._members.candidates(deployment.package.name, now)
        return {member.device: member.session for member in members}

    def _header_seen(self, event: ev.HeaderSeen, now: float) -> list[Effect]:
        header = event.header
        self._retained[header.model] = header.order
        deployment = self._deployments.get(header.model)
        if deployment is None:
            self._note_epoch(header.model, header.epoch)
            return [ev.Log("warning", "a plan of a model that is not deployed", header.model)]
        newest = deployment.current.order if deployment.current else (0, "")
        if header.order > newest:
            deployment.epoch = max(deployment.epoch, header.epoch)
            deployment.current = header
        if deployment.offered and header.order >= deployment.offered.order:
            return self._replan(deployment, now)
        return []

    def _note_epoch(self, model: str, epoch: int) -> None:
        # Plans of this coordinator's life before it lost its disk: new ones must be newer.
        deployment = self._deployments.get(model)
        if deployment is None:
            self._retired[model] = max(epoch, self._retired.get(model, 0))
        elif epoch > deployment.epoch:
            deployment.epoch = epoch

    def _reconnected(self, _event: ev.Reconnected, now: float) -> list[Effect]:
        # The broker needs a moment to send what it still has.
        self._members.hear_all(now)
        self._retained.clear()
        self._announce_at = now + RETAINED_S
        return []

    def _announce_lost(self) -> list[Effect]:
        lost = [
            deployment.current
            for name, deployment in self._deployments.items()
            if deployment.current is not None
            and deployment.current.coordinator == self._name
            and deployment.current.order > self._retained.get(name, (0, ""))
        ]
        text = "announced again: the broker has lost the plan"
        logs = [ev.Log("info", text, header.model, header.epoch) for header in lost]
        effects: list[Effect] = [*logs, *(ev.Announce(header) for header in lost)]
        for deployment in self._deployments.values():
            effects += self._take_back_offers(deployment)
        return effects

    def _tick(self, _event: ev.Tick, now: float) -> list[Effect]:
        effects: list[Effect] = []
        if self._announce_at is not None and now >= self._announce_at:
            self._announce_at = None
            effects += self._announce_lost()
        for deployment in self._deployments.values():
            effects += self._refine(deployment, now)
            if deployment.offered and now >= deployment.remind_at:
                effects += self._remind(deployment, deployment.offered, now)
        if self._settle_at is not None and now >= self._settle_at:
            self._settle_at = self._members.next_return(now)
            for deployment in self._deployments.values():
                if self._is_outdated(deployment, now):
                    effects += self._replan(deployment, now)
        return effects

    def _remind(self, deployment: Deployment, header: PlanHeader, now: float) -> list[Effect]:
        waiting = sorted(deployment.awaited)
        if now < deployment.prepare_until:
            # A message may have been lost with a connection; an agent that works on it ignores it.
            deployment.remind_at = now + REMIND_S
            return [ev.Tell(device, Prepare(header)) for device in waiting]
        for device in waiting:
            self._exclude(deployment, device, now)
        deployment.offered = None
        logs = [ev.Log("warning", f"{device} prepares for too long") for device in waiting]
        return [*logs, *self._replan(deployment, now)]

    def _exclude(self, deployment: Deployment, device: str, now: float) -> None:
        self._members.exclude(deployment.package.name, device, now)
        if self._settle_at is None:
            self._settle_at = self._members.next_return(now)

    def _is_outdated(self, deployment: Deployment, now: float) -> bool:
        members = self._members.candidates(deployment.package.name, now)
        return {member.device: member for member in members} != deployment.planned

    # Deployments ---------------------------------------------------------------------------

    def _deploy_asked(self, event: ev.DeployAsked, now: float) -> list[Effect]:
        deploy = event.deploy
        ticket = f"deploy/{deploy.sender}/{deploy.reference}"
        self._deploys[ticket] = deploy
        del now
        return [
            ev.Log("info", f"{deploy.sender} deploys", deploy.package.name),
            self._progress(deploy.sender, deploy.reference, "fetching the model"),
            ev.Fetch(ticket, deploy.package.blobs(), deploy.sender),
        ]

    def _fetching(self, event: ev.Fetching, _now: float) -> list[Effect]:
        deploy = self._deploys.get(event.ticket)
        if deploy is None:
            return []
        text = "fetching the model"
        message = Progress(deploy.reference, text, fraction=event.fraction)
        return [ev.Tell(deploy.sender, message)]

    def _fetch_failed(self, event: ev.FetchFailed, _now: float) -> list[Effect]:
        deploy = self._deploys.pop(event.ticket, None)
        if deploy is None:
            return []
        return self._refuse(deploy.sender, deploy.reference, event.reason, deploy.package.name)

    def _fetched(self, event: ev.Fetched, now: float) -> list[Effect]:
        deploy = self._deploys.pop(event.ticket, None)
        if deploy is None:
            return []
        name = deploy.package.name
        old = self._deployments.get(name)
        client = (deploy.sender, deploy.reference)
        if old is not None and old.package == deploy.package:
            old.waiting.append(client)
            if old.state == "serving" and old.current:
                return self._tell_waiting(old, "serving already", old.current)
            underway = old.state in ("planning", "preparing")
            return [] if underway else self._replan(old, now)
        deployment = Deployment(deploy.package, self._retired.pop(name, 0))
        self._removed.discard(name)
        effects: list[Effect] = []
        if old is not None:
            deployment.epoch, deployment.current = old.epoch, old.current
            deployment.previous = old if old.plan is not None else old.previous
            effects = self._refuse_waiting(old, "another model was deployed under this name")
        deployment.waiting.append(client)
        self._deployments[name] = deployment
        return [*effects, self._persist(), *self._replan(deployment, now)]

    def _remove_asked(self, event: ev.RemoveAsked, _now: float) -> list[Effect]:
        remove = event.remove
        deployment = self._deployments.pop(remove.name, None)
        done = Progress(remove.reference, "removed", done=True)
        if deployment is None and remove.name in self._retired.keys() - self._removed:
            # A plan from before this coordinator lost its disk.
            self._removed.add(remove.name)
            return [ev.Withdraw(remove.name), ev.Tell(remove.sender, done)]
        if deployment is None:
            return self._refuse(remove.sender, remove.reference, "no such model", remove.name)
        self._retired[remove.name] = deployment.epoch
        self._removed.add(remove.name)
        return [
            *self._refuse_waiting(deployment, f"{remove.sender} removed the model"),
            ev.Withdraw(remove.name),
            self._persist(),
            ev.Tell(remove.sender, done),
            ev.Log("info", f"removed by {remove.sender}", remove.name),
        ]

    # Planning ------------------------------------------------------------------------------

    def _replan(self, deployment: Deployment, now: float) -> list[Effect]:
        members = self._members.candidates(deployment.package.name, now)
        fleet = frozenset(member.device for member in members)
        deployment.to_compute.clear()
        deployment.offered = None
        if not members:
            deployment.state = "waiting for devices"
            deployment.planned = {}
            return []
        known = {device: deployment.planned.get(device) for device in fleet}
        same = all(known[member.device] == member for member in members)
        if same and fleet in deployment.after_loss:
            return self._offer(deployment, deployment.after_loss[fleet], members, now)
        deployment.state = "planning"
        if deployment.computing is not None:
            return []
        return [self._compute(deployment, members)]

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

    def _computed(self, event: ev.Computed, now: float) -> list[Effect]:
        name = event.package.name
        deployment = self._deployments.get(name)
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
            return self._replan(deployment, now)
        notes = [ev.Log("info", note, name) for note in event.plan.notes]
        return [*notes, *self._offer(deployment, event.plan, members, now)]

    def _compute_failed(self, event: ev.ComputeFailed, now: float) -> list[Effect]:
        name = event.package.name
        deployment = self._deployments.get(name)
        if deployment is None:
            return []
        deployment.computing = None
        log = ev.Log("error", f"cannot be planned: {event.reason}", name)
        members = self._members.candidates(name, now)
        if deployment.state != "planning":
            return [log, *self._compute_next(deployment, members, now)]
        fleet = frozenset(member.device for member in members)
        if event.package != deployment.package or event.fleet != fleet:
            return [log, *self._replan(deployment, now)]
        deployment.state = f"cannot be planned: {event.reason}"
        effects = [log, *self._refuse_waiting(deployment, event.reason)]
        if deployment.previous is not None:
            self._deployments[name] = deployment.previous
            return [*effects, self._persist(), *self._replan(deployment.previous, now)]
        if deployment.current is None and deployment.epoch == 0:
            del self._deployments[name]
            effects.append(self._persist())
        return effects

    def _offer(
        self,
        deployment: Deployment,
        plan: ComputedPlan,
        members: tuple[Member, ...],
        now: float,
    ) -> list[Effect]:
        current = deployment.current
        sessions = {member.device: member.session for member in members}
        before = deployment.sessions
        deployment.plan = plan
        deployment.previous = None
        deployment.planned = {member.device: member for member in members}
        deployment.calibration.switched(members)
        unchanged = (
            current is not None
            and current.programs == plan.programs
            and current.manifest == deployment.package.manifest
            and current.source == self._name
            and all(before.get(d, sessions[d]) == sessions[d] for d in plan.devices)
        )
        if unchanged and current is not None:
            serve = self._serve(deployment, current, now, announce=False)
            return [*self._take_back_offers(deployment), *serve]
        deployment.epoch += 1
        stayed = {
            device
            for device in (current.devices if current else ())
            if device in sessions and before.get(device, sessions[device]) == sessions[device]
        }
        header = PlanHeader(
            epoch=deployment.epoch,
            coordinator=self._name,
            model=deployment.package.name,
            digest=plan_digest(plan.programs, deployment.epoch, self._name),
            devices=plan.devices,
            programs=plan.programs,
            manifest=deployment.package.manifest,
            source=self._name,
            joined=self._joined(deployment, plan.devices, stayed, now) if current else (),
            predicted_ms=plan.predicted_ms,
        )
        deployment.offered = header
        deployment.awaited = set(plan.devices)
        deployment.remind_at = now + REMIND_S
        deployment.prepare_until = now + PREPARE_S
        deployment.state = "preparing"
        text = f"preparing on {', '.join(plan.devices)}"
        return [
            ev.Log("info", text, header.model, header.epoch),
            self._persist(),
            *self._report(deployment, text),
            *(ev.Tell(device, Prepare(header)) for device in plan.devices),
        ]

    @staticmethod
    def _take_back_offers(deployment: Deployment) -> list[Effect]:
        # What was offered since the plan that serves, and given up, is not to stay loaded.
        current = deployment.current
        if current is None or deployment.offered or deployment.epoch == current.epoch:
            return []
        return [ev.Tell(device, Prepare(current)) for device in sorted(deployment.planned)]

    @staticmethod
    def _joined(
        deployment: Deployment, devices: tuple[str, ...], stayed: set[str], now: float
    ) -> tuple[str, ...]:
        # Who was to pass requests on to a device that joined may have died before it did.
        recent = {d: at for d, at in deployment.joined.items() if now - at < JOINED_S}
        deployment.joined = recent | {d: now for d in devices if d not in stayed}
        return tuple(d for d in devices if d in deployment.joined)

    def _prepared_seen(self, event: ev.PreparedSeen, now: float) -> list[Effect]:
        prepared = event.prepared
        deployment = self._deployments.get(prepared.model)
        if deployment is None:
            # What was offered before may be heard after the model was removed.
            return [ev.Withdraw(prepared.model)] if prepared.model in self._removed else []
        header = deployment.offered or deployment.current
        if header is None or header.epoch != prepared.epoch:
            return []
        if not prepared.ok:
            self._exclude(deployment, prepared.device, now)
            deployment.offered = None
            text = f"{prepared.device} cannot serve: {prepared.reason}"
            log = ev.Log("error", text, prepared.model, prepared.epoch)
            return [log, *self._report(deployment, text), *self._replan(deployment, now)]
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
        effects += self._tell_waiting(deployment, "serving", header)
        effects += self._prepare_losses(deployment, header, now)
        return effects + self._calibrate(deployment, now)

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

    def _compute_next(
        self, deployment: Deployment, members: tuple[Member, ...], now: float
    ) -> list[Effect]:
        if deployment.computing is not None:
            return []
        refined = self._refine(deployment, now)
        if refined:
            return refined
        present = {member.device: member for member in members}
        while deployment.to_compute:
            fleet = deployment.to_compute.popleft()
            if fleet <= present.keys():
                rest = tuple(present[device] for device in sorted(fleet))
                return [self._compute(deployment, rest)]
        return self._offer_standby(deployment)

    def _offer_standby(self, deployment: Deployment) -> list[Effect]:
        plan = deployment.plan
        if plan is None or deployment.state != "serving":
            return []
        effects: list[Effect] = [self._persist()]
        for device in sorted(deployment.planned):
            blobs: dict[str, int] = {}
            for other in deployment.after_loss.values():
                if device in other.programs:
                    ref = other.programs[device]
                    blobs |= other.blobs[device] | {ref.digest: ref.nbytes}
            extra = {d: n for d, n in blobs.items() if d not in plan.blobs.get(device, {})}
            refs = tuple(BlobRef(digest, nbytes) for digest, nbytes in sorted(extra.items()))
            standby = Standby(deployment.package.name, self._name, refs)
            effects.append(ev.Tell(device, standby))
        return effects

    # Calibration ---------------------------------------------------------------------------

    def _calibrate(self, deployment: Deployment, now: float) -> list[Effect]:
        """Have the devices of a model that is served measure its layers."""
        calibration, package = deployment.calibration, deployment.package
        if self._budget_s <= 0.0:
            return []
        if calibration.lacks_probes():
            return [ev.MakeProbes(package)]
        devices = calibration.unasked(deployment.planned.values(), now)
        if calibration.probes is None or not devices:
            return []
        ask = Calibrate(package.name, self._name, self._name, calibration.probes, self._budget_s)
        return [self._persist(), *(ev.Tell(device, ask) for device in devices)]

    def _probes_made(self, event: ev.ProbesMade, now: float) -> list[Effect]:
        deployment = self._deployments.get(event.package.name)
        if deployment is None or deployment.package != event.package:
            return []
        deployment.calibration.made(event.probes)
        return self._calibrate(deployment, now) if deployment.state == "serving" else []

    def _probes_refused(self, event: ev.ProbesRefused, _now: float) -> list[Effect]:
        text = f"cannot be calibrated: {event.reason}"
        return [ev.Log("warning", text, event.package.name)]

    def _calibrated_seen(self, event: ev.CalibratedSeen, now: float) -> list[Effect]:
        message = event.calibrated
        deployment = self._deployments.get(message.model)
        if deployment is None or message.device not in deployment.planned:
            return []
        deployment.calibration.answered(message.device, message.timings)
        text = f"{message.device} has measured the model's layers"
        return [ev.Log("info", text, message.model), *self._refine(deployment, now)]

    def _drift_seen(self, status: Status, now: float) -> list[Effect]:
        if self._budget_s <= 0.0:
            return []
        effects: list[Effect] = []
        for model, ratio in status.drift.items():
            deployment = self._deployments.get(model)
            header = deployment.current if deployment is not None else None
            if deployment is None or header is None or deployment.state != "serving":
                continue
            # What was measured under another plan is a ratio to other predictions.
            current = status.plans.get(model) == header.epoch and status.device in header.devices
            if current and deployment.calibration.drifted(status.device, ratio, now):
                text = f"{status.device} takes {ratio:.2f} times as long as planned"
                effects += [ev.Log("info", text, model), *self._refine(deployment, now)]
        return effects

    def _refine(self, deployment: Deployment, now: float) -> list[Effect]:
        """Look for a better plan where figures are new, while the current one serves."""
        ready = deployment.state == "serving" and deployment.computing is None
        members = self._members.candidates(deployment.package.name, now)
        if not ready or not members or deployment.plan is None:
            return []
        if not deployment.calibration.due(members, now):
            return []
        deployment.calibration.taken()
        return [self._compute(deployment, members, deployment.plan)]

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
        return [ev.Log("info", text, name), self._persist(), *losses]

    # Telling -------------------------------------------------------------------------------

    def _progress(self, sender: str, reference: str, text: str) -> Effect:
        return ev.Tell(sender, Progress(reference, text))

    def _report(self, deployment: Deployment, text: str) -> list[Effect]:
        return [self._progress(sender, ref, text) for sender, ref in deployment.waiting]

    def _tell_waiting(self, deployment: Deployment, text: str, header: PlanHeader) -> list[Effect]:
        clients, deployment.waiting = deployment.waiting, []
        return [
            ev.Tell(sender, Progress(reference, text, done=True, fraction=1.0, plan=header))
            for sender, reference in clients
        ]

    def _refuse_waiting(self, deployment: Deployment, reason: str) -> list[Effect]:
        clients, deployment.waiting = deployment.waiting, []
        name = deployment.package.name
        return [e for sender, ref in clients for e in self._refuse(sender, ref, reason, name)]

    def _refuse(self, sender: str, reference: str, reason: str, model: str) -> list[Effect]:
        message = Progress(reference, reason[:4000], done=True, ok=False)
        return [ev.Log("warning", reason, model), ev.Tell(sender, message)]

    def _persist(self) -> Effect:
        blobs: set[str] = set()
        for deployment in self._deployments.values():
            blobs |= deployment.package.blobs().keys()
            plans = [*deployment.after_loss.values()]
            plans += [deployment.plan] if deployment.plan else []
            blobs |= {ref.digest for plan in plans for ref in plan.programs.values()}
            blobs |= {digest for p in plans for needed in p.blobs.values() for digest in needed}
            blobs |= deployment.calibration.blobs()
        packages = [(d.package, d.epoch) for d in self._deployments.values()]
        figures = {n: d.calibration.to_save() for n, d in self._deployments.items()}
        return ev.Persist(tuple(packages), frozenset(blobs), figures)

    def _shown(self) -> tuple[ModelState, ...]:
        return tuple(
            ModelState(
                name,
                d.state[:4000],
                d.epoch,
                d.current.devices if d.current else (),
                d.calibration.measured,
                self._budget_s > 0.0,
            )
            for name, d in sorted(self._deployments.items())
        )
