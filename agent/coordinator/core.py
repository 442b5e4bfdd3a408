"""The coordinator: one `handle(event, now)` that turns events into effects.

Rules: a plan is computed for the devices that are there, prepared by all of its devices while the
current plan serves, then announced, and announced again where a broker lost it; a device that a
plan loses is acted on at once, joins and changes once the fleet was quiet for `SETTLE_S`.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from agent.coordinator import events as ev
from agent.coordinator.catalog import MAX_EPOCH, MAX_RETIRED, Catalog
from agent.coordinator.clients import Clients
from agent.coordinator.measuring import Measuring
from agent.coordinator.membership import Membership
from agent.coordinator.offers import take_back
from agent.coordinator.planning import Planning
from agent.coordinator.pulses import Pulses

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from agent.coordinator.deployment import Deployment
    from agent.coordinator.events import Effect, Event
    from agent.wire.calibration import Figures
    from agent.wire.messages import ModelState, Status
    from agent.wire.model import ModelPackage

RETAINED_S = 2.0
BUDGET_S = 10.0


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
        self._members = Membership()
        self._members.settle(now)
        self._pulses = Pulses()
        self._catalog = Catalog(deployments, figures)
        self._measuring = Measuring(name, self._catalog, budget_s)
        self._planning = Planning(name, self._members, self._catalog, self._measuring)
        self._clients = Clients(self._catalog, self._planning)
        self._retained: dict[str, tuple[int, str]] = {}
        self._announce_at: float | None = None

    def next_timer(self) -> float | None:
        """Return when a `Tick` is due at the latest."""
        timers = [d.remind_at for d in self._catalog if d.offered]
        timers += [d.losses_at for d in self._catalog if d.losses_at]
        waits = [d.calibration.until for d in self._catalog]
        waits += [self._members.settled_at, self._announce_at]
        timers += [at for at in waits if at is not None]
        return min(timers, default=None)

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event at time `now` (seconds, monotonic); return what is to be done."""
        handlers: dict[type, Callable[[Any, float], list[Effect]]] = {
            ev.StatusSeen: self._status_seen,
            ev.HeaderSeen: self._header_seen,
            ev.DeployAsked: self._clients.deploy_asked,
            ev.RemoveAsked: self._clients.remove_asked,
            ev.Fetched: self._clients.fetched,
            ev.Fetching: self._clients.fetching,
            ev.FetchFailed: self._clients.fetch_failed,
            ev.Computed: self._planning.computed,
            ev.ComputeFailed: self._planning.compute_failed,
            ev.ProbesMade: self._probes_made,
            ev.ProbesRefused: self._probes_refused,
            ev.CalibratedSeen: self._calibrated_seen,
            ev.PreparedSeen: self._planning.prepared_seen,
            ev.ReadySeen: self._planning.ready_seen,
            ev.BeatSeen: self._beat_seen,
            ev.Reconnected: self._reconnected,
            ev.Tick: self._tick,
        }
        before = self._shown()
        effects = handlers[type(event)](event, now)
        after = self._shown()
        return effects if before == after else [*effects, ev.Show(after)]

    def _shown(self) -> tuple[ModelState, ...]:
        return self._catalog.shown(calibrated=self._measuring.wanted)

    # Membership ----------------------------------------------------------------------------

    def _status_seen(self, event: ev.StatusSeen, now: float) -> list[Effect]:
        status = event.status
        self._members.hear(status.device, now)
        self._members.heard_again(status.device, status.session, now)
        effects: list[Effect] = []
        for model, epoch in sorted(status.plans.items()):
            self._catalog.note_epoch(model, epoch)
            if model in self._catalog.removed:
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
        effects: list[Effect] = []
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
            deployment.current = header
        if deployment.offered and header.order >= deployment.offered.order:
            return self._planning.replan(deployment, now)
        return []

    def _reconnected(self, _event: ev.Reconnected, now: float) -> list[Effect]:
        # The broker needs a moment to send what it still has.
        self._members.hear_all(now)
        self._retained.clear()
        self._announce_at = now + RETAINED_S
        return []

    def _announce_lost(self) -> list[Effect]:
        lost = [
            deployment.current
            for deployment in self._catalog
            if deployment.current is not None
            and deployment.current.coordinator == self._name
            and deployment.current.order > self._retained.get(deployment.package.name, (0, ""))
        ]
        text = "announced again: the broker has lost the plan"
        logs = [ev.Log("info", text, header.model, header.epoch) for header in lost]
        effects: list[Effect] = [*logs, *(ev.Announce(header) for header in lost)]
        for deployment in self._catalog:
            effects += take_back(deployment)
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
