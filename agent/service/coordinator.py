"""The coordinator: its core wired to the planner, the store and the fleet."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import msgspec

from agent.adapters.logs import log
from agent.adapters.store import BlobStore
from agent.coordinator import CoordinatorCore
from agent.coordinator import events as ev
from agent.errors import WireError, reason_of
from agent.service.checks import check_header, check_record, check_status
from agent.service.loop import monotonic
from agent.service.member import Member
from agent.service.planning import compute_plan, make_probes
from agent.service.transfer import FetchBroken, FetchDone, FetchProgress
from agent.wire import messages as wire
from agent.wire.topics import Address, Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from agent.adapters.mqtt import Received
    from agent.config import Config

STATE_FILE = "deployments.json"


class CoordinatorService(Member):
    """Leads, or stands by to lead, as `name` until `leave` is called; plans go on being served.

    Its blobs and what it knows of deployments are kept in `folder`.

    Raises:
        HaloMQError: if the data directory cannot be used.
    """

    role = "coordinator"

    def __init__(
        self, name: str, folder: Path, config: Config, environment: Mapping[str, str]
    ) -> None:
        store = BlobStore(folder / "blobs", config.store.limit_mb << 20)
        super().__init__(name, config, store, environment)
        self._file = folder / STATE_FILE
        self._core = CoordinatorCore(
            name,
            self.session,
            self._saved(),
            monotonic(),
            priority=config.coordinator.priority,
            budget_s=config.planning.calibration_s,
        )
        self._planner = self.executor("planner")
        self._shown = ev.Show((), 0)

    # The member's calls --------------------------------------------------------------------

    def details(self) -> dict[str, Any]:
        """Return whether this coordinator leads, what is deployed, and how far each model is."""
        shown = self._shown
        return {
            "models": shown.models,
            "term": shown.term,
            "held": shown.held,
            "priority": self.config.coordinator.priority,
        }

    def forgotten(self) -> None:
        """What a coordinator has to know is retained, or told again by agents and clients."""

    def connected(self, *, first: bool) -> None:
        """Subscribe to the inbox, all statuses, plans and deployments."""
        if first:
            topics = self.topics
            shared = (topics.status("+"), topics.plan("+"), topics.deployment("+"))
            self.link.subscribe(topics.inbox(self.name), *shared)
            self.link.subscribe(topics.beat("+"), qos=0)
        self._handle(ev.Connected())
        self.publish_status()
        self.notifier.ready()

    def posted(self, item: Any) -> None:
        """Take what a thread of this coordinator posted."""
        match item:
            case FetchDone(ticket):
                self._handle(ev.Fetched(ticket))
            case FetchProgress(ticket, fraction):
                self._handle(ev.Fetching(ticket, fraction))
            case FetchBroken(ticket, reason):
                self._handle(ev.FetchFailed(ticket, reason))
            case ev.Computed() | ev.ComputeFailed() | ev.ProbesMade() | ev.ProbesRefused():
                self._handle(item)

    def turn(self, now: float) -> float | None:
        """Do what is due: settling, reminders, announcements."""
        due = self._core.next_timer()
        if self.link.connected and now >= due:
            self._handle(ev.Tick())
        # Without a connection nothing can be done about what is due: no need to wake for it.
        return self._core.next_timer() if self.link.connected else None

    def leaving(self) -> None:
        """End at once: agents serve without a coordinator."""
        self.loop.stop()

    def received(self, address: Address, message: Received) -> None:
        """Take a status, a plan's header, a deployment's record or a control message."""
        match address.kind:
            case Kind.STATUS if message.payload:
                status = wire.decode_json(message.payload, wire.Status)
                self._handle(ev.StatusSeen(check_status(status, address.subject)))
            case Kind.PLAN if message.payload:
                header = wire.decode_json(message.payload, wire.PlanHeader)
                self._handle(ev.HeaderSeen(check_header(header, address.subject)))
            case Kind.BEAT:
                beat = wire.decode_json(message.payload, wire.Beat)
                if beat.device == address.subject:
                    self._handle(ev.BeatSeen(beat))
            case Kind.DEPLOYMENT if message.payload:
                record = wire.decode_json(message.payload, wire.Deployed)
                self._handle(ev.RecordSeen(check_record(record, address.subject)))
            case Kind.INBOX:
                self._control(wire.decode_json(message.payload, wire.Control))

    def _control(self, message: Any) -> None:
        match message:
            case wire.Deploy():
                self._handle(ev.DeployAsked(message))
            case wire.Remove():
                self._handle(ev.RemoveAsked(message))
            case wire.Prepared():
                self._handle(ev.PreparedSeen(message))
            case wire.Ready():
                self._handle(ev.ReadySeen(message))
            case wire.Calibrated():
                self._handle(ev.CalibratedSeen(message))
            case wire.Want() | wire.Absent():
                self.transfer.take(message)
            case _:
                raise WireError("a message for an agent or a client")

    # Effects -------------------------------------------------------------------------------

    def _handle(self, event: ev.Event) -> None:
        self.carry_out(self._core.handle(event, monotonic()))

    def perform(self, effect: ev.Effect) -> None:
        """Carry out one effect of the coordinator core."""
        performers: dict[type, Callable[[Any], None]] = {
            ev.Fetch: self._fetch,
            ev.ComputePlan: self._compute,
            ev.MakeProbes: self._make_probes,
            ev.Tell: self._tell,
            ev.Announce: self._announce,
            ev.Withdraw: lambda e: self.publish(self.topics.plan(e.model), b"", retain=True),
            ev.Persist: self._persist,
            ev.Record: self._record,
            ev.Show: self._show,
            ev.Log: self._log,
        }
        performers[type(effect)](effect)

    def _fetch(self, effect: ev.Fetch) -> None:
        # Reading what this process has not read yet is for the thread of the transfer.
        if self.store.has_read(effect.blobs):
            self.loop.post(FetchDone(effect.ticket))
        else:
            self.transfer.fetch(effect.ticket, effect.blobs, effect.holder)

    def _compute(self, effect: ev.ComputePlan) -> None:
        package, members = effect.package, effect.members
        fleet = frozenset(member.device for member in members)
        self._planner.submit(
            lambda: ev.Computed(
                package,
                compute_plan(package, members, self.store, effect.figures, effect.against),
            ),
            lambda error: ev.ComputeFailed(package, fleet, reason_of(error)),
        )

    def _make_probes(self, effect: ev.MakeProbes) -> None:
        package = effect.package
        self._planner.submit(
            lambda: ev.ProbesMade(package, make_probes(package, self.store)),
            lambda error: ev.ProbesRefused(package, reason_of(error)),
        )

    def _tell(self, effect: ev.Tell) -> None:
        self.tell(effect.device, effect.message)

    def _announce(self, effect: ev.Announce) -> None:
        header = effect.header
        self.publish(self.topics.plan(header.model), wire.encode_json(header), retain=True)

    def _persist(self, effect: ev.Persist) -> None:
        self.store.pin(effect.blobs)
        partial = self._file.with_suffix(".tmp")
        with partial.open("wb") as file:
            file.write(msgspec.json.encode(effect.records))
            file.flush()
            # A power cut must not leave an empty file in the place of the deployments.
            os.fsync(file.fileno())
        partial.replace(self._file)

    def _record(self, effect: ev.Record) -> None:
        record = effect.record
        payload = wire.encode_json(record)
        self.publish(self.topics.deployment(record.model), payload, retain=True)

    def _saved(self) -> list[wire.Deployed]:
        if not self._file.exists():
            return []
        try:
            saved = msgspec.json.decode(self._file.read_bytes(), type=list[wire.Deployed])
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            aside = self._file.with_suffix(".damaged")
            self._file.replace(aside)
            log("error", f"{self._file} cannot be read ({error}), it is {aside} now; deploy again")
            return []
        packages = [record.package for record in saved if record.package is not None]
        self.store.pin({digest for package in packages for digest in package.blobs()})
        return saved

    def _show(self, effect: ev.Show) -> None:
        self._shown = effect
        self.publish_status()

    def _log(self, effect: ev.Log) -> None:
        log(effect.level, effect.text, model=effect.model, epoch=effect.epoch)
