"""The coordinator: one `handle(event, now)` that turns events into effects.

Rules: on standby it keeps what it hears of devices, plans and deployments, and changes nothing.
When it leads, a plan is computed for the devices that are there, prepared by all of them while the
current plan serves, then announced, and announced again where a broker lost it; a device that a
plan loses is acted on at once, joins and changes once the fleet was quiet for `SETTLE_S`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agent.coordinator import events as ev
from agent.coordinator.catalog import MAX_EPOCH, MAX_RETIRED, Catalog
from agent.coordinator.clients import Clients
from agent.coordinator.following import Following
from agent.coordinator.leadership import Leadership
from agent.coordinator.measuring import Measuring
from agent.coordinator.membership import Membership
from agent.coordinator.offers import decline, take_back
from agent.coordinator.planning import Planning
from agent.coordinator.pulses import Pulses

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from agent.coordinator.deployment import Deployment
    from agent.coordinator.events import Effect, Event
    from agent.wire.messages import Deployed, Status

    Handler = Callable[[Any, float], list[Effect]]

RETAINED_S = 2.0
UNREADY_S = 3.0
BUDGET_S = 10.0


class CoordinatorCore:
    """The coordinator `name` in its life `session`; `saved` is what an earlier life persisted.

    The one with the highest `priority` takes over first. Each device may spend `budget_s` on the
    calibration of a model; where that is 0, plans follow nominal rates alone.
    """

    def __init__(
        self,
        name: str,
        session: str,
        saved: Iterable[Deployed],
        now: float,
        *,
        priority: int = 0,
        budget_s: float = BUDGET_S,
    ) -> None:
        self._name = name
        self._leadership = Leadership(name, session, priority, now)
        self._members = Membership()
        self._pulses = Pulses()
        self._catalog = Catalog(name, saved)
        self._leadership.hear_of_term(self._catalog.newest_term, now)
        self._measuring = Measuring(name, self._catalog, budget_s)
        self._planning = Planning(name, self._members, self._catalog, self._measuring)
        self._clients = Clients(self._catalog, self._planning)
        self._following = Following(name, self._catalog, self._measuring)
        self._retained: dict[str, tuple[int, str]] = {}
        self._announce_at: float | None = None

    def next_timer(self) -> float:
        """Return when a `Tick` is due at the latest."""
        waits = [self._leadership.next_timer(), self._following.retry_at]
        if self._leadership.leads:
            waits += [d.remind_at for d in self._catalog if d.offered]
            waits += [d.losses_at for d in self._catalog if d.losses_at]
            waits += [d.calibration.until for d in self._catalog]
            waits += [self._members.settled_at, self._announce_at]
        return min(at for at in waits if at is not None)

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event at time `now` (seconds, monotonic); return what is to be done."""
        before = self._shown(now)
        effects = self._look_who_leads(event, now)
        handlers = self._always() | (self._leading() if self._leadership.leads else {})
        if type(event) in handlers:
            effects += handlers[type(event)](event, now)
        after = self._shown(now)
        due = before != after or (isinstance(event, ev.Tick) and self._leadership.beats(now))
        return [*effects, after] if due else effects

    def _always(self) -> dict[type, Handler]:
        return {
            ev.StatusSeen: self._status_seen,
            ev.HeaderSeen: self._header_seen,
            ev.RecordSeen: self._record_seen,
            ev.Fetched: self._fetched,
            ev.FetchFailed: self._fetch_failed,
            ev.Computed: self._planning.computed,
            ev.ComputeFailed: self._planning.compute_failed,
            ev.PreparedSeen: self._prepared_seen,
            ev.ProbesMade: self._probes_made,
            ev.ProbesRefused: self._probes_refused,
            ev.Connected: self._connected,
            ev.Tick: self._tick,
        }

    def _leading(self) -> dict[type, Handler]:
        return {
            ev.DeployAsked: self._clients.deploy_asked,
            ev.RemoveAsked: self._clients.remove_asked,
            ev.Fetching: self._clients.fetching,
            ev.CalibratedSeen: self._calibrated_seen,
            ev.ReadySeen: self._planning.ready_seen,
            ev.BeatSeen: self._beat_seen,
        }

    def _shown(self, now: float) -> ev.Show:
        if not self._leadership.leads:
            return ev.Show((), 0)
        models = self._catalog.shown(calibrated=self._measuring.wanted)
        return ev.Show(models, self._leadership.term, tuple(self._members.held(now)))

    # Leadership ----------------------------------------------------------------------------

    def _look_who_leads(self, event: Event, now: float) -> list[Effect]:
        leadership = self._leadership
        leadership.wake(now)
        match event:
            case ev.StatusSeen(status) if status.role == "coordinator":
                leadership.see(status, now)
            case ev.RecordSeen(record):
                leadership.hear_of_term(record.term, now)
            case ev.Connected():
                leadership.connected(now)
            case ev.Tick():
                leadership.handicap_s = UNREADY_S if self._catalog.lacking else 0.0
                leadership.pass_time(now)
        if leadership.term == self._catalog.term:
            return []
        return self._take_over(now) if leadership.leads else self._stand_by()

    def _take_over(self, now: float) -> list[Effect]:
        self._members.settle_at_once(now)
        text = f"leads from now on, in term {self._leadership.term}"
        return [ev.Log("info", text), *self._catalog.reign(self._leadership.term)]

    def _stand_by(self) -> list[Effect]:
        self._catalog.term = 0
        self._clients.rest()
        for deployment in self._catalog:
            self._planning.rest(deployment)
        text = f"stands by; {self._leadership.leader or 'nobody known'} leads"
        return [ev.Log("info", text)]

    def _prepared_seen(self, event: ev.PreparedSeen, now: float) -> list[Effect]:
        if self._leadership.leads:
            return self._planning.prepared_seen(event, now)
        deployment = self._catalog.get(event.prepared.model)
        current = deployment.current if deployment is not None else None
        if deployment is None or current is None:
            return []
        serves = (current.epoch, current.coordinator) == (event.prepared.epoch, self._name)
        # Else an offer was on its way when this coordinator was led already.
        return [] if serves else decline(deployment, [event.prepared.device])

    def _record_seen(self, event: ev.RecordSeen, now: float) -> list[Effect]:
        return self._following.hear(event.record, now) if self._catalog.hear(event.record) else []

    def _fetched(self, event: ev.Fetched, now: float) -> list[Effect]:
        if not self._following.owns(event.ticket):
            return self._clients.fetched(event, now)
        self._members.settle(now)
        return self._following.fetched(event.ticket)

    def _fetch_failed(self, event: ev.FetchFailed, now: float) -> list[Effect]:
        if self._following.owns(event.ticket):
            return self._following.failed(event.reason, now)
        return self._clients.fetch_failed(event, now)

    # Membership ----------------------------------------------------------------------------

    def _status_seen(self, event: ev.StatusSeen, now: float) -> list[Effect]:
        status = event.status
        if status.role == "coordinator":
            return self._coordinator_seen(status)
        self._members.hear(status, now)
        self._members.heard_again(status.device, status.session, now)
        effects: list[Effect] = []
        for deployment in self._catalog:
            deployment.heard(status)
        for model, epoch in sorted(status.plans.items()):
            self._catalog.note_epoch(model, epoch)
            if model in self._catalog.removed and self._leadership.leads:
                # The device was away, and the broker has forgotten to tell it.
                effects.append(ev.Withdraw(model))
        changes = self._changes(status, now)
        if not changes:
            return effects + self._drift_seen(status, now)
        self._members.settle(now)
        if not self._leadership.leads:
            return []
        return effects + changes + self._fleet_changed(now)

    def _beat_seen(self, event: ev.BeatSeen, now: float) -> list[Effect]:
        beat = event.beat
        if not self._members.heard_again(beat.device, beat.session, now):
            return []
        self._pulses.take(beat, now)
        if not self._members.beating([beat.device], now):
            # It was taken for dead: what it waits for may be over.
            return []
        found: dict[str, None] = {}
        for model in beat.waits:
            deployment = self._catalog.get(model)
            header = deployment.current if deployment is not None else None
            if header is not None:
                beating = self._members.beating(header.devices, now)
                found |= dict.fromkeys(self._pulses.suspects(model, {*beating, beat.device}, now))
        if not found:
            return []
        for device in found:
            self._members.suspect(device, now)
        text = "is silent while others wait for it, so it is planned without"
        logs: list[Effect] = [ev.Log("warning", f"{device} {text}") for device in found]
        return logs + self._fleet_changed(now)

    def _fleet_changed(self, now: float) -> list[Effect]:
        self._members.settle(now)
        lost = [deployment for deployment in self._catalog if self._has_lost(deployment, now)]
        return [e for deployment in lost for e in self._planning.replan(deployment, now)]

    def _changes(self, status: Status, now: float) -> list[Effect]:
        changes: list[Effect] = [
            ev.Log("warning", f"{device} is silent, so it is taken for dead")
            for device in self._members.expire(now)
        ]
        if self._members.see(status, now):
            changes.append(ev.Log("info", f"{status.device} is {status.state}"))
            held = self._members.held(now).get(status.device)
            if held is not None:
                text = f"{status.device} comes and goes: held back for {held:.0f} s"
                changes.append(ev.Log("warning", text))
        return changes

    def _coordinator_seen(self, status: Status) -> list[Effect]:
        if status.term == 0 or status.device != self._leadership.leader:
            return []
        # It may never have heard of what was deployed here before it was there.
        return self._catalog.unknown_to((model.name for model in status.models), status.term)

    def _has_lost(self, deployment: Deployment, now: float) -> bool:
        header = deployment.offered or deployment.current
        # Of a plan from an earlier life, a device that was not heard of yet is not lost.
        if header is None or not deployment.planned:
            return False
        members = self._members.candidates(deployment.package.name, now)
        sessions = {member.device: member.session for member in members}
        return any(
            device not in sessions
            or (
                device in deployment.planned
                and sessions[device] != deployment.planned[device].session
            )
            for device in header.devices
        )

    def _is_outdated(self, deployment: Deployment, now: float) -> bool:
        members = self._members.candidates(deployment.package.name, now)
        return {member.device: member for member in members} != deployment.planned

    def _tick(self, _event: ev.Tick, now: float) -> list[Effect]:
        effects = self._following.retry(self._leadership.peers, now)
        if not self._leadership.leads:
            return effects
        if self._announce_at is not None and now >= self._announce_at:
            self._announce_at = None
            effects += self._announce_lost()
        for deployment in self._catalog:
            effects += self._planning.refine(deployment, now)
            effects += self._planning.losses_due(deployment, now)
            if deployment.offered and now >= deployment.remind_at:
                effects += self._planning.remind(deployment, deployment.offered, now)
        if self._members.has_settled(now):
            for deployment in self._catalog:
                if self._is_outdated(deployment, now):
                    effects += self._planning.replan(deployment, now)
        return effects

    # Plans that the broker has, or has lost ------------------------------------------------

    def _header_seen(self, event: ev.HeaderSeen, now: float) -> list[Effect]:
        header = event.header
        deployment = self._catalog.get(header.model)
        if header.epoch >= MAX_EPOCH:
            return [ev.Log("warning", "a plan of an impossible epoch", header.model)]
        if deployment is not None or len(self._retained) < MAX_RETIRED:
            self._retained[header.model] = header.order
        if deployment is None:
            self._catalog.note_epoch(header.model, header.epoch)
            return [ev.Log("warning", "a plan of a model that is not deployed", header.model)]
        newest = deployment.current.order if deployment.current else (0, "")
        if header.order > newest:
            deployment.epoch = max(deployment.epoch, header.epoch)
            deployment.announced_elsewhere(header, self._members.sessions(), now)
            if deployment.planned and not deployment.offered and self._leadership.leads:
                # Another coordinator's, made without what is known here.
                return self._planning.replan(deployment, now)
        if deployment.offered and header.order >= deployment.offered.order:
            return self._planning.replan(deployment, now)
        return []

    def _connected(self, _event: ev.Connected, now: float) -> list[Effect]:
        # The broker needs a moment to send what it still has.
        self._members.hear_all(now)
        self._retained.clear()
        self._announce_at = now + RETAINED_S
        return self._following.connected()

    def _announce_lost(self) -> list[Effect]:
        lost = [
            deployment.current
            for deployment in self._catalog
            if deployment.current is not None
            and deployment.current.order > self._retained.get(deployment.package.name, (0, ""))
        ]
        text = "announced again: the broker has lost the plan"
        logs = [ev.Log("info", text, header.model, header.epoch) for header in lost]
        effects: list[Effect] = [*logs, *(ev.Announce(header) for header in lost)]
        effects += self._catalog.tell()
        for deployment in self._catalog:
            effects += take_back(deployment, self._members.sessions())
        return effects

    # Calibration ---------------------------------------------------------------------------

    def _probes_made(self, event: ev.ProbesMade, now: float) -> list[Effect]:
        deployment = self._catalog.get(event.package.name)
        if deployment is None or deployment.package != event.package:
            return []
        return self._measuring.made(deployment, event.probes, now)

    def _probes_refused(self, event: ev.ProbesRefused, _now: float) -> list[Effect]:
        text = f"cannot be calibrated: {event.reason}"
        return [ev.Log("warning", text, event.package.name)]

    def _calibrated_seen(self, event: ev.CalibratedSeen, now: float) -> list[Effect]:
        message = event.calibrated
        deployment = self._catalog.get(message.model)
        if deployment is None or message.device not in deployment.planned:
            return []
        told = self._measuring.answered(deployment, message)
        return [*told, *self._planning.refine(deployment, now)]

    def _drift_seen(self, status: Status, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for deployment in self._catalog:
            told = self._measuring.drifted(deployment, status, now)
            if told:
                effects += [*told, *self._planning.refine(deployment, now)]
        return effects
