"""The coordinator: its core wired to MQTT, the planner, the store and systemd."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from agent import __version__
from agent.adapters.logs import log
from agent.adapters.mqtt import Connected, Disconnected, Link, LinkEvent, Received, Will
from agent.adapters.store import BlobStore
from agent.adapters.systemd import Notifier
from agent.coordinator import CoordinatorCore
from agent.coordinator import events as ev
from agent.errors import BrokerError, HaloMQError, StoreError, WireError
from agent.service.checks import check_header, check_status
from agent.service.executor import Executor
from agent.service.jobs import reason_of
from agent.service.loop import Loop, monotonic
from agent.service.planning import compute_plan
from agent.service.transfer import FetchBroken, FetchDone, FetchProgress, TransferService
from agent.wire import messages as wire
from agent.wire.model import ModelPackage
from agent.wire.topics import Kind, Topics

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agent.config import Config

FIRST_CONNECTION_S = 15.0
STUCK_S = 120.0
STATE_FILE = "deployments.json"


@dataclass(frozen=True, slots=True)
class _Leave:
    """The process was asked to end."""


class SavedDeployment(msgspec.Struct, frozen=True):
    """A deployment as it is kept on disk."""

    package: ModelPackage
    epoch: int


class CoordinatorService:
    """Plans and deploys as `name` until `leave` is called.

    Raises:
        HaloMQError: if the data directory cannot be used.
    """

    def __init__(self, name: str, config: Config, environment: Mapping[str, str]) -> None:
        self._name = name
        self._config = config
        self._session = secrets.token_hex(6)
        self._topics = Topics(config.fleet)
        self._notifier = Notifier.from_environment(environment)
        folder = config.data_dir / "coordinator"
        self._store = BlobStore(folder / "blobs", config.store.limit_mb << 20)
        self._file = folder / STATE_FILE
        self._core = CoordinatorCore(name, self._saved(), monotonic())
        self._models: tuple[wire.ModelState, ...] = ()
        will = wire.encode_json(self._status("offline"))
        self._link = Link(
            f"halomq-{config.fleet}-{name}", config.broker, Will(self._topics.status(name), will)
        )
        self._loop = Loop(self._link, self, monotonic)
        self._transfer = TransferService(
            name, self._topics, config.broker, self._store, self._loop.post
        )
        self._watchdog_at = 0.0
        self._started = monotonic()
        self._was_connected = False
        self._failure: HaloMQError | None = None

    def run(self) -> None:
        """Serve until told to leave.

        Raises:
            BrokerError: if the broker could not be reached at the start, or refuses us.
        """
        self._planner = Executor("planner", self._loop.post, monotonic)
        self._transfer.start()
        try:
            self._loop.run()
        finally:
            self._transfer.stop()
            self._planner.stop()
        if self._failure is not None:
            raise self._failure

    def leave(self) -> None:
        """End `run`, while the plans go on being served; callable from a signal handler."""
        self._loop.post(_Leave())

    def on_link(self, event: LinkEvent) -> None:
        """Take an event of the connection; nothing that arrives may end the process."""
        match event:
            case Connected():
                self._connected()
            case Disconnected(reason, fatal):
                log("warning", f"no connection to the broker: {reason}")
                if not self._was_connected:
                    self._failure = BrokerError(reason)
                    if fatal:
                        self._loop.stop()
            case Received():
                try:
                    self._received(event)
                except WireError as error:
                    log("warning", f"refused a message on {event.topic}: {error}")
                except Exception as error:  # noqa: BLE001 - a message can't take the fleet down
                    log("error", f"dropped a message on {event.topic}: {reason_of(error)}")

    def on_post(self, item: object) -> None:
        """Take what a thread of this coordinator posted."""
        match item:
            case FetchDone(ticket):
                self._handle(ev.Fetched(ticket))
            case FetchProgress(ticket, fraction):
                self._handle(ev.Fetching(ticket, fraction))
            case FetchBroken(ticket, reason):
                self._handle(ev.FetchFailed(ticket, reason))
            case ev.Computed() | ev.ComputeFailed():
                self._handle(item)
            case _Leave():
                log("info", "leaving; the plans go on being served")
                self._notifier.stopping()
                payload = wire.encode_json(self._status("offline"))
                self._publish(self._topics.status(self._name), payload, retain=True)
                self._loop.stop()

    def on_turn(self, now: float) -> float | None:
        """Do what is due: settling, overdue preparations, the watchdog."""
        if self._was_connected:
            self._handle(ev.Tick())
        elif now - self._started > FIRST_CONNECTION_S:
            self._failure = self._failure or BrokerError("the broker does not answer")
            self._loop.stop()
        interval = self._notifier.interval_s
        if interval is not None and self._planner.busy_for() < STUCK_S and now >= self._watchdog_at:
            self._watchdog_at = now + interval / 2
            self._notifier.watchdog()
        return self._core.next_timer()

    def _connected(self) -> None:
        log("info", f"connected to the broker at {self._config.broker.host}")
        if not self._was_connected:
            self._was_connected = True
            self._failure = None
            topics = self._topics
            self._link.subscribe(topics.inbox(self._name), topics.status("+"), topics.plan("+"))
        else:
            self._handle(ev.Reconnected())
        self._publish_status()
        self._notifier.ready()

    def _status(self, state: Any) -> wire.Status:
        return wire.Status(
            device=self._name,
            session=self._session,
            state=state,
            role="coordinator",
            versions={"halomq": __version__},
            models=self._models if state == "online" else (),
        )

    def _publish_status(self) -> None:
        payload = wire.encode_json(self._status("online"))
        self._publish(self._topics.status(self._name), payload, retain=True)

    def _received(self, message: Received) -> None:
        address = self._topics.parse(message.topic)
        if address is None:
            raise WireError("not a topic of this fleet")
        match address.kind:
            case Kind.STATUS if message.payload:
                status = wire.decode_json(message.payload, wire.Status)
                self._handle(ev.StatusSeen(check_status(status, address.subject)))
            case Kind.PLAN if message.payload:
                header = wire.decode_json(message.payload, wire.PlanHeader)
                self._handle(ev.HeaderSeen(check_header(header, address.subject)))
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
            case wire.Want() | wire.Absent():
                self._transfer.take(message)
            case _:
                raise WireError("a message for an agent or a client")

    def _publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        try:
            self._link.publish(topic, payload, retain=retain)
        except BrokerError as error:
            log("warning", str(error))

    # Effects -------------------------------------------------------------------------------

    def _handle(self, event: ev.Event) -> None:
        for effect in self._core.handle(event, monotonic()):
            try:
                self._perform(effect)
            except Exception as error:  # noqa: BLE001 - one effect can't take the fleet down
                log("error", f"{type(effect).__name__} failed: {reason_of(error)}")

    def _perform(self, effect: ev.Effect) -> None:
        performers: dict[type, Callable[[Any], None]] = {
            ev.Fetch: self._fetch,
            ev.ComputePlan: self._compute,
            ev.Tell: self._tell,
            ev.Announce: self._announce,
            ev.Withdraw: lambda e: self._publish(self._topics.plan(e.model), b"", retain=True),
            ev.Persist: self._persist,
            ev.Show: self._show,
            ev.Log: self._log,
        }
        performers[type(effect)](effect)

    def _fetch(self, effect: ev.Fetch) -> None:
        if self._store.missing(effect.blobs):
            self._transfer.fetch(effect.ticket, effect.blobs, effect.holder)
        else:
            self._loop.post(FetchDone(effect.ticket))

    def _compute(self, effect: ev.ComputePlan) -> None:
        package, members = effect.package, effect.members
        fleet = frozenset(member.device for member in members)
        self._planner.submit(
            lambda: ev.Computed(package, compute_plan(package, members, self._store)),
            lambda error: ev.ComputeFailed(package, fleet, reason_of(error)),
        )

    def _tell(self, effect: ev.Tell) -> None:
        self._publish(self._topics.inbox(effect.device), wire.encode_json(effect.message))

    def _announce(self, effect: ev.Announce) -> None:
        header = effect.header
        self._publish(self._topics.plan(header.model), wire.encode_json(header), retain=True)

    def _persist(self, effect: ev.Persist) -> None:
        self._store.pin(effect.blobs)
        saved = [SavedDeployment(package, epoch) for package, epoch in effect.deployments]
        partial = self._file.with_suffix(".tmp")
        partial.write_bytes(msgspec.json.encode(saved))
        partial.replace(self._file)

    def _saved(self) -> list[tuple[ModelPackage, int]]:
        if not self._file.exists():
            return []
        try:
            saved = msgspec.json.decode(self._file.read_bytes(), type=list[SavedDeployment])
        except (OSError, msgspec.MsgspecError) as error:
            raise StoreError(
                f"{self._file} cannot be read: {error}; remove it and deploy the models again"
            ) from error
        self._store.pin({digest for item in saved for digest in item.package.blobs()})
        return [(item.package, item.epoch) for item in saved]

    def _show(self, effect: ev.Show) -> None:
        self._models = effect.models
        self._publish_status()

    def _log(self, effect: ev.Log) -> None:
        log(effect.level, effect.text, model=effect.model, epoch=effect.epoch)
