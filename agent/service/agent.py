"""The agent of one device: its worker core wired to MQTT, onnxruntime, the store and systemd."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from agent import __version__
from agent.adapters.capacity import measure_capacity, measure_health, runtime_versions
from agent.adapters.compute import gather
from agent.adapters.logs import log
from agent.adapters.mqtt import Connected, Disconnected, Link, LinkEvent, Received, Will
from agent.adapters.runtime import RuntimeOptions
from agent.adapters.store import BlobStore
from agent.adapters.systemd import Notifier
from agent.errors import BrokerError, HaloMQError, WireError
from agent.service.checks import check_header
from agent.service.executor import Executor
from agent.service.jobs import Jobs, reason_of
from agent.service.link_probe import LinkProbe
from agent.service.loop import Loop, monotonic
from agent.service.transfer import FetchBroken, FetchDone, TransferService
from agent.wire import messages as wire
from agent.wire.topics import Address, Kind, Topics
from agent.worker import WorkerCore
from agent.worker import events as ev

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agent.config import Config
    from agent.wire.program import Program

STATUS_EVERY_S = 15.0
FIRST_CONNECTION_S = 15.0
LEAVE_S = 5.0
LINGER_S = 1.0
STUCK_S = 120.0


@dataclass(frozen=True, slots=True)
class _Leave:
    """The process was asked to end."""


class AgentService:
    """Serves as `config.device` until `leave` is called.

    Raises:
        HaloMQError: if the data directory or the runtime cannot be used.
    """

    def __init__(self, config: Config, environment: Mapping[str, str]) -> None:
        self._config = config
        self._device = config.device
        self._session = secrets.token_hex(6)
        self._topics = Topics(config.fleet)
        self._notifier = Notifier.from_environment(environment)
        self._store = BlobStore(config.data_dir / "blobs", config.store.limit_mb << 20)
        self._options = RuntimeOptions(config.runtime.providers, config.runtime.threads)
        self._core = WorkerCore(
            self._device, self._session, config.requests.deadline_s, config.requests.max_in_flight
        )
        max_payload = config.requests.max_payload_mb << 20
        self._jobs = Jobs(self._store, self._options, max_payload, monotonic)
        will = self._status("offline")
        self._link = Link(
            f"halomq-{config.fleet}-{self._device}",
            config.broker,
            Will(self._topics.status(self._device), wire.encode_json(will)),
        )
        self._loop = Loop(self._link, self, monotonic)
        self._transfer = TransferService(
            self._device, self._topics, config.broker, self._store, self._loop.post
        )
        self._probe = LinkProbe()
        self._capacity: wire.Capacity | None = None
        self._programs: dict[str, Program] = {}
        self._epochs: dict[str, int] = {}
        self._status_at = 0.0
        self._watchdog_at = 0.0
        self._started = monotonic()
        self._was_connected = False
        self._leaving_since: float | None = None
        self._failure: HaloMQError | None = None

    def run(self) -> None:
        """Serve until told to leave.

        Raises:
            BrokerError: if the broker could not be reached at the start, or refuses this device.
        """
        self._executor = Executor("executor", self._loop.post, monotonic)
        self._disk = Executor("loader", self._loop.post, monotonic)
        self._transfer.start()
        try:
            self._loop.run()
        finally:
            self._transfer.stop()
            self._executor.stop()
            self._disk.stop()
        if self._failure is not None:
            raise self._failure

    def leave(self) -> None:
        """Finish or hand over what is in flight, then end `run`; callable from a signal handler."""
        self._loop.post(_Leave())

    # The loop's calls ----------------------------------------------------------------------

    def on_link(self, event: LinkEvent) -> None:
        """Take an event of the connection; nothing that arrives may end the process."""
        match event:
            case Connected():
                self._connected()
            case Disconnected(reason, fatal):
                self._disconnected(reason, fatal=fatal)
            case Received():
                try:
                    self._received(event)
                except WireError as error:
                    log("warning", f"refused a message on {event.topic}: {error}")
                except Exception as error:  # noqa: BLE001 - a message can't take the agent down
                    log("error", f"dropped a message on {event.topic}: {reason_of(error)}")

    def on_post(self, item: object) -> None:
        """Take what a thread of this agent posted."""
        match item:
            case FetchDone(ticket):
                self._handle(ev.Fetched(ticket))
            case FetchBroken(ticket, reason):
                self._handle(ev.FetchFailed(ticket, reason))
            case wire.Capacity():
                self._capacity = item
                log("info", f"computes {item.flops_per_s / 1e9:.1f} Gflop/s on {item.cpu}")
                self._publish_status()
            case _Leave():
                self._leave()
            case (
                ev.PlanRead()
                | ev.Loaded()
                | ev.PlanFailed()
                | ev.Decoded()
                | ev.DecodeRefused()
                | ev.StepFinished()
                | ev.StepFailed()
                | ev.Concluded()
            ):
                self._handle(item)

    def on_turn(self, now: float) -> float | None:
        """Do what is due: deadlines, health, the watchdog, leaving."""
        due = self._core.next_timer()
        if due is not None and now >= due:
            self._handle(ev.Tick())
        if self._link.connected:
            if self._probe.overdue(now):
                self._probe_link()
            if self._capacity is not None and now >= self._status_at:
                self._publish_status()
        elif not self._was_connected and now - self._started > FIRST_CONNECTION_S:
            self._fail(self._failure or BrokerError("the broker does not answer"))
        self._feed_watchdog(now)
        if self._leaving_since is not None:
            waited = now - self._leaving_since
            idle = self._core.in_flight == 0
            if waited > LEAVE_S or (idle and (waited > LINGER_S or not self._core.serving)):
                self._loop.stop()
            return now + 0.05
        return self._core.next_timer()

    def _feed_watchdog(self, now: float) -> None:
        interval = self._notifier.interval_s
        alive = max(self._executor.busy_for(), self._disk.busy_for()) < STUCK_S
        if interval is not None and alive and now >= self._watchdog_at:
            self._watchdog_at = now + interval / 2
            self._notifier.watchdog()

    def _fail(self, error: HaloMQError) -> None:
        self._failure = error
        self._loop.stop()

    # Connection and status -----------------------------------------------------------------

    def _connected(self) -> None:
        log("info", f"connected to the broker at {self._config.broker.host}")
        first, self._was_connected = not self._was_connected, True
        self._failure = None
        if first:
            own = (self._topics.inbox, self._topics.halo, self._topics.echo)
            self._link.subscribe(*(topic(self._device) for topic in own), self._topics.plan("+"))
        if self._probe.done:
            self._publish_status()
        else:
            self._probe_link()

    def _disconnected(self, reason: str, *, fatal: bool) -> None:
        log("warning", f"no connection to the broker: {reason}")
        if not self._was_connected:
            self._failure = BrokerError(reason)
            if fatal:
                self._fail(self._failure)

    def _probe_link(self) -> None:
        payload = self._probe.next_payload(monotonic())
        if payload is not None:
            self._publish(self._topics.echo(self._device), payload, qos=0)

    def _echoed(self, payload: bytes) -> None:
        if self._probe.done:
            return
        self._probe.take(payload, monotonic())
        if not self._probe.done:
            self._probe_link()
            return
        limit = self._config.runtime.memory_limit_mb
        measure = partial(
            measure_capacity,
            self._options,
            None if limit is None else limit << 20,
            self._probe.latency_s,
            self._probe.bytes_per_s,
        )
        self._disk.submit(measure, self._not_measured)

    def _not_measured(self, error: Exception) -> None:
        log("error", f"cannot measure this device: {reason_of(error)}")
        self._fail(HaloMQError(f"onnxruntime does not work here: {reason_of(error)}"))

    def _status(self, state: Any) -> wire.Status:
        online = state == "online"
        return wire.Status(
            device=self._device,
            session=self._session,
            state=state,
            versions={"halomq": __version__, **runtime_versions()},
            capacity=self._capacity if online else None,
            health=measure_health() if online else None,
            plans=self._epochs if online else {},
        )

    def _publish_status(self) -> None:
        self._status_at = monotonic() + STATUS_EVERY_S
        if self._leaving_since is None and self._capacity is not None:
            payload = wire.encode_json(self._status("online"))
            self._publish(self._topics.status(self._device), payload, retain=True)
            self._notifier.ready()
            self._notifier.status(f"serving {', '.join(self._epochs) or 'no model yet'}")

    def _leave(self) -> None:
        if self._leaving_since is not None:
            return
        log("info", "leaving")
        self._leaving_since = monotonic()
        self._notifier.stopping()
        payload = wire.encode_json(self._status("offline"))
        self._publish(self._topics.status(self._device), payload, retain=True)
        self._handle(ev.LeaveAsked())

    # Messages ------------------------------------------------------------------------------

    def _received(self, message: Received) -> None:
        address = self._topics.parse(message.topic)
        if address is None:
            raise WireError("not a topic of this fleet")
        match address.kind:
            case Kind.HALO:
                self._peer(message.payload)
            case Kind.INFER:
                self._request(address, message)
            case Kind.RESULT:
                key = wire.decode_answer(message.payload, wire.AnswerKey)
                self._handle(ev.ResultSeen(ev.RequestKey(address.subject, key.request, key.input)))
            case Kind.PLAN:
                header = None
                if message.payload:
                    header = wire.decode_json(message.payload, wire.PlanHeader)
                    check_header(header, address.subject)
                self._handle(ev.PlanAnnounced(address.subject, header))
            case Kind.INBOX:
                self._control(wire.decode_json(message.payload, wire.Control))
            case Kind.ECHO:
                self._echoed(message.payload)

    def _peer(self, payload: bytes) -> None:
        message = wire.decode_msgpack(payload, wire.Peer)
        if isinstance(message, wire.Piece):
            self._handle(ev.PieceArrived(message, len(message.data)))
            return
        reply = ev.ReplyTo(
            message.tensors, message.content_type, message.response_topic, message.correlation
        )
        self._handle(
            ev.RequestArrived(
                message.model,
                message.request,
                wire.fingerprint(message.payload),
                message.payload,
                reply,
                message.remaining_s,
                redelivered=True,
            )
        )

    def _request(self, address: Address, message: Received) -> None:
        if message.retained:
            raise WireError("a retained request would run again at every connection")
        topic = message.response_topic
        if topic is not None and ("#" in topic or "+" in topic):
            raise WireError("its response topic has a wildcard")
        reply = ev.ReplyTo(address.tensors, message.content_type, topic, message.correlation)
        self._handle(
            ev.RequestArrived(
                address.subject,
                address.request,
                wire.fingerprint(message.payload),
                message.payload,
                reply,
                message.expires_s,
                message.redelivered,
            )
        )

    def _control(self, message: Any) -> None:
        match message:
            case wire.Prepare(plan):
                self._handle(ev.PlanOffered(check_header(plan, plan.model)))
            case wire.Standby():
                self._handle(ev.StandbyOffered(message))
            case wire.Want() | wire.Absent():
                self._transfer.take(message)
            case _:
                raise WireError("a message for a coordinator or a client")

    def _publish(self, topic: str, payload: bytes, **options: Any) -> None:
        try:
            self._link.publish(topic, payload, **options)
        except BrokerError as error:
            log("warning", str(error))

    # Effects -------------------------------------------------------------------------------

    def _handle(self, event: ev.Event) -> None:
        for effect in self._core.handle(event, monotonic()):
            try:
                self._perform(effect)
            except Exception as error:  # noqa: BLE001 - one effect can't take the agent down
                log("error", f"{type(effect).__name__} failed: {reason_of(error)}")

    def _perform(self, effect: ev.Effect) -> None:
        performers: dict[type, Callable[[Any], None]] = {
            ev.Run: self._run,
            ev.SendPiece: self._send_piece,
            ev.Decode: self._decode,
            ev.Conclude: self._conclude,
            ev.PublishAnswer: self._publish_answer,
            ev.PublishTrace: self._publish_trace,
            ev.Republish: self._republish,
            ev.Tell: self._tell,
            ev.Pass: self._pass,
            ev.Fetch: self._fetch,
            ev.CancelFetch: lambda e: self._transfer.cancel(e.ticket),
            ev.ReadPlan: self._read_plan,
            ev.Load: self._load,
            ev.Unload: self._unload,
            ev.Watch: self._watch,
            ev.Unwatch: self._unwatch,
            ev.PlansChanged: self._plans_changed,
            ev.Log: self._log,
        }
        performers[type(effect)](effect)

    def _run(self, job: ev.Run) -> None:
        self._executor.submit(
            lambda: self._jobs.run(job),
            lambda error: ev.StepFailed(job.key, job.plan, job.step, reason_of(error)),
        )

    def _decode(self, job: ev.Decode) -> None:
        self._executor.submit(
            lambda: self._jobs.decode(job),
            lambda error: ev.DecodeRefused(job.key, job.plan, reason_of(error)),
        )

    def _conclude(self, job: ev.Conclude) -> None:
        self._executor.submit(
            lambda: self._jobs.conclude(job),
            lambda error: ev.StepFailed(job.key, job.plan, 0, reason_of(error)),
        )

    def _send_piece(self, effect: ev.SendPiece) -> None:
        dtype = self._programs[effect.plan].tensors[effect.tensor].dtype
        data = gather(effect.region, dtype, effect.pieces).tobytes()
        key = effect.key
        piece = wire.Piece(effect.plan, key.request, key.input, effect.tensor, effect.region, data)
        self._publish(self._topics.halo(effect.to), wire.encode_msgpack(piece))

    def _publish_answer(self, effect: ev.PublishAnswer) -> None:
        answer, reply = effect.answer, effect.reply
        payload = wire.encode_answer(answer)
        kind = "application/msgpack" if answer.outputs is not None else "application/json"
        told = {"content_type": kind, "correlation": reply.correlation}
        if reply.response_topic:
            self._publish(reply.response_topic, payload, **told)
        self._publish(self._topics.result(answer.model, answer.request), payload, **told)

    def _publish_trace(self, effect: ev.PublishTrace) -> None:
        topic = self._topics.trace(effect.model, effect.trace.request)
        self._publish(topic, wire.encode_json(effect.trace), qos=0)

    def _republish(self, effect: ev.Republish) -> None:
        reply = effect.reply
        self._publish(
            self._topics.infer(effect.model, effect.request),
            effect.payload,
            content_type=reply.content_type,
            response_topic=reply.response_topic,
            correlation=reply.correlation,
            expires_s=effect.remaining_s,
        )

    def _tell(self, effect: ev.Tell) -> None:
        self._publish(self._topics.inbox(effect.device), wire.encode_json(effect.message))

    def _pass(self, effect: ev.Pass) -> None:
        self._publish(self._topics.halo(effect.device), wire.encode_msgpack(effect.message))

    def _fetch(self, effect: ev.Fetch) -> None:
        if self._store.missing(effect.blobs):
            self._transfer.fetch(effect.ticket, effect.blobs, effect.holder)
        else:
            self._loop.post(FetchDone(effect.ticket))

    def _read_plan(self, effect: ev.ReadPlan) -> None:
        self._disk.submit(
            lambda: self._jobs.read(effect),
            lambda error: ev.PlanFailed(effect.plan, reason_of(error)),
        )

    def _load(self, effect: ev.Load) -> None:
        self._programs[effect.plan] = effect.program
        self._disk.submit(
            lambda: self._jobs.load(effect.plan, effect.program),
            lambda error: ev.PlanFailed(effect.plan, reason_of(error)),
        )

    def _unload(self, effect: ev.Unload) -> None:
        self._programs.pop(effect.plan, None)
        self._disk.submit(lambda: self._jobs.unload(effect.plan), lambda _: None)

    def _watch(self, effect: ev.Watch) -> None:
        self._link.subscribe(*self._watched(effect.model))

    def _unwatch(self, effect: ev.Unwatch) -> None:
        self._link.unsubscribe(*self._watched(effect.model))

    def _watched(self, model: str) -> tuple[str, str]:
        return (f"{self._topics.infer(model)}/#", self._topics.result(model, "+"))

    def _plans_changed(self, effect: ev.PlansChanged) -> None:
        self._store.pin(effect.blobs)
        if effect.epochs != self._epochs:
            self._epochs = effect.epochs
            self._publish_status()

    def _log(self, effect: ev.Log) -> None:
        log(
            effect.level,
            effect.text,
            model=effect.model,
            request=effect.request,
            epoch=effect.epoch,
        )
