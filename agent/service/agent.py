"""The agent of one device: its worker core wired to onnxruntime, the store and the fleet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from agent import __version__
from agent.adapters.capacity import (
    measure_capacity,
    measure_health,
    room_for_spares,
    runtime_versions,
)
from agent.adapters.logs import log
from agent.adapters.runtime import RuntimeOptions, check_providers
from agent.adapters.store import BlobStore
from agent.errors import HaloMQError, WireError, reason_of
from agent.service import drills
from agent.service.checks import check_header
from agent.service.jobs import Jobs, PackedPiece, encode_piece
from agent.service.link_probe import LinkProbe
from agent.service.loop import monotonic
from agent.service.member import Member
from agent.service.outbox import Outbox
from agent.service.pacing import Pacer
from agent.service.probes import ProbeJobs
from agent.service.standby import StandbyProcess
from agent.service.transfer import FetchBroken, FetchDone
from agent.wire import messages as wire
from agent.wire.clients import client_of
from agent.wire.topics import Address, Kind
from agent.worker import WorkerCore
from agent.worker import events as ev

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agent.adapters.mqtt import Received
    from agent.config import Config
    from agent.wire.program import Program

STATUS_EVERY_S = 15.0
LEAVE_S = 30.0
LINGER_S = 1.0
LEAVING_TURN_S = 0.05
# How many pieces may wait for the packer.
MOST_PACKED = 64
MAX_CONTENT_TYPE = 256
MAX_TOPIC = 1024


class AgentService(Member):
    """Serves as `config.device` until `leave` is called.

    Raises:
        HaloMQError: if the data directory or a provider of onnxruntime cannot be used.
    """

    role = "agent"

    def __init__(self, config: Config, environment: Mapping[str, str]) -> None:
        store = BlobStore(config.data_dir / "blobs", config.store.limit_mb << 20)
        super().__init__(config.device, config, store, environment)
        limits = config.requests
        self._options = RuntimeOptions(config.runtime.providers, config.runtime.threads)
        check_providers(self._options)
        self._core = WorkerCore(
            self.name,
            self.session,
            limits.deadline_s,
            limits.max_in_flight,
            traces=limits.traces,
            drills=config.drill.allowed,
        )
        self._pacer = Pacer(config.runtime.slowness, config.runtime.pace_lock)
        self._jobs = Jobs(
            store,
            self._options,
            max_payload_bytes=limits.max_payload_mb << 20,
            clock=monotonic,
            pacer=self._pacer,
            room=self._room_for_spares,
        )
        folder = config.data_dir / "profiles"
        self._probes = ProbeJobs(store, folder, self._options, monotonic, self._pacer)
        self._executor = self.executor("executor")
        self._packer = self.executor("packer")
        self._disk = self.executor("loader")
        self._life, self._times_forgotten = self.session, 0
        self._link_probe = LinkProbe()
        self._outbox = Outbox(self._publish_answer, self._send_echo, limits.max_in_flight)
        self._capacity: wire.Capacity | None = None
        self._programs: dict[str, Program] = {}
        self._epochs: dict[str, int] = {}
        self._status_at = 0.0
        self._leaving_since: float | None = None
        self._standby = StandbyProcess(config) if config.coordinator.standby else None

    # The member's calls --------------------------------------------------------------------

    def details(self) -> dict[str, Any]:
        """Return versions, capacity, health and the plans that are served."""
        return {
            "versions": {"halomq": __version__, **runtime_versions()},
            "capacity": self._capacity,
            "health": measure_health(),
            "plans": self._epochs,
            "drift": self._core.drift,
            "drills": self.config.drill.allowed,
            "supervised": self.notifier.supervised,
            "beats": True,
        }

    def forgotten(self) -> None:
        """Begin a new life: requests and pieces may be lost, and a new plan mends that."""
        self._times_forgotten += 1
        self.session = f"{self._life}.{self._times_forgotten}"

    def connected(self, *, first: bool) -> None:
        """Subscribe to this device's own topics and all plans; measure the link, once."""
        if first:
            topics = self.topics
            own = (topics.inbox, topics.halo, topics.echo, topics.drill)
            self.link.subscribe(*(topic(self.name) for topic in own), self.topics.plan("+"))
        else:
            self._outbox.reconnected()
        if self._link_probe.done:
            self._tell_status()
        else:
            self._probe_link()

    def posted(self, item: Any) -> None:
        """Take what a thread of this agent posted."""
        match item:
            case FetchDone(ticket):
                self._handle(ev.Fetched(ticket))
            case FetchBroken(ticket, reason):
                self._handle(ev.FetchFailed(ticket, reason))
            case PackedPiece():
                self._packed(item)
            case ev.Log():
                self._log(item)
            case wire.Capacity():
                self._capacity = item
                log("info", f"computes {item.flops_per_s / 1e9:.1f} Gflop/s on {item.cpu}")
                self._tell_status()
            case (
                ev.PlanRead()
                | ev.Loaded()
                | ev.PlanFailed()
                | ev.Decoded()
                | ev.DecodeRefused()
                | ev.StepFinished()
                | ev.StepFailed()
                | ev.PieceFailed()
                | ev.PieceArrived()
                | ev.Concluded()
                | ev.ProbesRead()
                | ev.ProbesFailed()
                | ev.ProbeRan()
            ):
                self._handle(item)

    def turn(self, now: float) -> float | None:
        """Do what is due: deadlines, the link's measuring, health, leaving."""
        due = self._core.next_timer()
        if due is not None and now >= due:
            self._handle(ev.Tick())
        if self.link.connected and self._link_probe.overdue(now):
            self._probe_link()
        if self.link.connected and now >= self._status_at:
            self._tell_status()
        if self._leaving_since is None:
            if self._standby is not None:
                self._standby.keep(now)
            return self._core.next_timer()
        waited = now - self._leaving_since
        idle = self._core.in_flight == 0
        if waited > LEAVE_S or (idle and (waited > LINGER_S or not self._core.serving)):
            self.loop.stop()
        return now + LEAVING_TURN_S

    def leaving(self) -> None:
        """Take no new plans, and end once what is in flight is finished or handed over."""
        self._leaving_since = monotonic()
        if self._standby is not None:
            self._standby.stop()
        self._handle(ev.LeaveAsked())

    def received(self, address: Address, message: Received) -> None:
        """Take a message on one of the topics that this agent subscribes to."""
        match address.kind:
            case Kind.HALO:
                self._peer(message.payload)
            case Kind.INFER:
                self._request(address, message)
            case Kind.RESULT:
                told = wire.decode_answer(message.payload, wire.AnswerKey)
                key = ev.RequestKey(address.subject, told.request, told.input)
                self._outbox.seen(key)
                self._handle(ev.ResultSeen(key, told.turned_away))
            case Kind.PLAN:
                header = None
                if message.payload:
                    header = wire.decode_json(message.payload, wire.PlanHeader)
                    check_header(header, address.subject)
                self._handle(ev.PlanAnnounced(address.subject, header))
            case Kind.INBOX:
                self._control(wire.decode_json(message.payload, wire.Control))
            case Kind.DRILL:
                self._handle(ev.DrillAsked(drills.read_drill(message)))
            case Kind.ECHO:
                self._echoed(message.payload)

    # Link and status -----------------------------------------------------------------------

    def _probe_link(self) -> None:
        payload = self._link_probe.next_payload(monotonic())
        if payload is not None:
            self.publish(self.topics.echo(self.name), payload, qos=0)

    def _send_echo(self, payload: bytes) -> None:
        self.publish(self.topics.echo(self.name), payload)

    def _echoed(self, payload: bytes) -> None:
        self._outbox.echoed(payload)
        if self._link_probe.done:
            return
        self._link_probe.take(payload, monotonic())
        if not self._link_probe.done:
            self._probe_link()
            return
        self._disk.submit(self._measure, self._not_measured)

    def _measure(self) -> wire.Capacity:
        limit = self.config.runtime.memory_limit_mb
        with self._pacer.alone():
            capacity = measure_capacity(
                self._options,
                None if limit is None else limit << 20,
                self._link_probe.latency_s,
                self._link_probe.bytes_per_s,
                **self._pacer.probing,
            )
        return self._pacer.slowed(capacity)

    def _not_measured(self, error: Exception) -> None:
        self.fail(HaloMQError(f"onnxruntime does not work here: {reason_of(error)}"))

    def _tell_status(self) -> None:
        self._status_at = monotonic() + STATUS_EVERY_S
        if self._capacity is not None:
            self.publish_status()
            self.notifier.ready()
            self.notifier.status(f"serving {', '.join(self._epochs) or 'no model yet'}")

    # Messages ------------------------------------------------------------------------------

    def _peer(self, payload: bytes) -> None:
        message = wire.decode_msgpack(payload, wire.Peer)
        if isinstance(message, wire.Piece):
            self._piece(message)
            return
        reply = ev.ReplyTo(
            message.tensors,
            message.content_type,
            message.response_topic,
            message.correlation,
            message.client,
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

    def _piece(self, piece: wire.Piece) -> None:
        arrived = ev.PieceArrived(piece, len(piece.data))
        program = self._programs.get(piece.plan)
        if piece.coding == "plain" or program is None or self._packer.waiting > MOST_PACKED:
            # What is not unpacked here is where it is used.
            self._handle(arrived)
            return
        self._packer.submit(
            lambda: self._jobs.unpack(arrived, program),
            lambda error: ev.Log("warning", f"refused a piece: {reason_of(error)}", piece.request),
        )

    def _request(self, address: Address, message: Received) -> None:
        self.check_reply(message)
        topic = message.response_topic
        client = client_of(message.client, address.request, topic)
        told = message.content_type and message.content_type[:MAX_CONTENT_TYPE]
        reply = ev.ReplyTo(address.tensors, told, topic, message.correlation, client)
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

    def check_reply(self, message: Received) -> None:
        """Check what a request says beside its payload.

        Raises:
            WireError: if it cannot be answered as it wants.
        """
        if message.retained:
            raise WireError("a retained request would run again at every connection")
        topic = message.response_topic
        if topic is None:
            return
        # Answers are published with this device's rights, which may be more than the client's.
        address = self.topics.parse(topic)
        if address is not None and address.kind is not Kind.RESULT:
            raise WireError("its response topic is one that members of the fleet read")
        if "#" in topic or "+" in topic or topic.startswith("$") or len(topic) > MAX_TOPIC:
            raise WireError("its response topic is none that can be published to")

    def _control(self, message: Any) -> None:
        match message:
            case wire.Prepare(plan):
                self._handle(ev.PlanOffered(check_header(plan, plan.model)))
            case wire.Standby():
                self._handle(ev.StandbyOffered(message))
            case wire.Calibrate() if self._capacity is not None:
                self._handle(ev.CalibrationAsked(message))
            case wire.Want() | wire.Absent():
                self.transfer.take(message)
            case _:
                raise WireError("a message for a coordinator or a client, or too early")

    # Effects -------------------------------------------------------------------------------

    def _handle(self, event: ev.Event) -> None:
        self.carry_out(self._core.handle(event, monotonic()))

    def perform(self, effect: ev.Effect) -> None:
        """Carry out one effect of the worker core."""
        performers: dict[type, Callable[[Any], None]] = {
            ev.Run: self._run,
            ev.SendPiece: self._send_piece,
            ev.Decode: self._decode,
            ev.Conclude: self._conclude,
            ev.ReadProbes: self._read_probes,
            ev.RunProbe: self._run_probe,
            ev.KeepTimings: self._keep_timings,
            ev.PublishAnswer: self._outbox.take,
            ev.PublishTrace: self._publish_trace,
            ev.Republish: self._republish,
            ev.Tell: self._tell,
            ev.Pass: self._pass,
            ev.Fetch: self._fetch,
            ev.CancelFetch: lambda e: self.transfer.cancel(e.ticket),
            ev.ReadPlan: self._read_plan,
            ev.Load: self._load,
            ev.LoadSpare: self._load_spare,
            ev.Adopt: self._adopt,
            ev.Unload: self._unload,
            ev.Watch: self._watch,
            ev.Unwatch: self._unwatch,
            ev.Beat: self._beat,
            ev.PlansChanged: self._plans_changed,
            ev.DriftChanged: lambda _: self._tell_status(),
            ev.FailNow: lambda e: drills.fail(self, e.drill),
            ev.TellDrilled: lambda e: drills.tell(self, e.sender, e.drilled),
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

    def _read_probes(self, effect: ev.ReadProbes) -> None:
        if self._capacity is None:
            raise AssertionError("a device is asked for nothing before it told what it is")
        runtime = wire.runtime_of(self._capacity, runtime_versions())
        self._disk.submit(
            lambda: self._probes.read(effect, runtime),
            lambda error: ev.ProbesFailed(effect.model, effect.probes.digest, reason_of(error)),
        )

    def _run_probe(self, job: ev.RunProbe) -> None:
        self._executor.submit(
            lambda: self._probes.run(job),
            lambda _error: ev.ProbeRan(job.model, job.probes, job.index, None, 0.0),
        )

    def _keep_timings(self, effect: ev.KeepTimings) -> None:
        self._disk.submit(lambda: self._probes.keep(effect.timings), self._not_kept)

    def _not_kept(self, error: Exception) -> None:
        log("warning", f"the calibration cannot be kept: {reason_of(error)}")

    def _send_piece(self, effect: ev.SendPiece) -> None:
        dtype = self._programs[effect.plan].tensors[effect.tensor].dtype
        if effect.coding == "plain":
            payload, _ = encode_piece(effect, dtype)
            self.publish(self.topics.halo(effect.to), payload)
            return
        due = monotonic()
        self._packer.submit(
            lambda: self._jobs.pack(effect, dtype, due),
            lambda error: ev.PieceFailed(effect.key, effect.plan, reason_of(error)),
        )

    def _packed(self, packed: PackedPiece) -> None:
        self.publish(self.topics.halo(packed.sent.to), packed.payload)
        self._handle(packed.sent)

    def _publish_answer(self, effect: ev.PublishAnswer) -> None:
        answer, reply = effect.answer, effect.reply
        payload = wire.encode_answer(answer)
        if len(payload) > self.link.largest_payload:
            text = f"the answer has {len(payload)} bytes, more than the broker takes"
            answer = msgspec.structs.replace(
                answer, ok=False, result=None, outputs=None, error=wire.Failure("compute", text)
            )
            payload = wire.encode_answer(answer)
        kind = "application/msgpack" if answer.outputs is not None else "application/json"
        told = {"content_type": kind, "correlation": reply.correlation}
        topic = self.topics.result(answer.model, answer.request)
        self.publish(topic, payload, **told)
        if reply.response_topic and reply.response_topic != topic:
            self.publish(reply.response_topic, payload, **told)

    def _publish_trace(self, effect: ev.PublishTrace) -> None:
        topic = self.topics.trace(effect.model, effect.trace.request)
        trace = msgspec.structs.replace(effect.trace, pace=self._pacer.pace)
        self.publish(topic, wire.encode_json(trace), qos=0)

    def _republish(self, effect: ev.Republish) -> None:
        reply = effect.reply
        self.publish(
            self.topics.infer(effect.model, effect.request),
            effect.payload,
            content_type=reply.content_type,
            response_topic=reply.response_topic,
            correlation=reply.correlation,
            expires_s=effect.remaining_s,
            sender=reply.client,
        )

    def _tell(self, effect: ev.Tell) -> None:
        self.tell(effect.device, effect.message)

    def _pass(self, effect: ev.Pass) -> None:
        self.publish(self.topics.halo(effect.device), wire.encode_msgpack(effect.message))

    def _fetch(self, effect: ev.Fetch) -> None:
        # Reading what this process has not read yet is for the thread of the transfer.
        if self.store.has_read(effect.blobs):
            self.loop.post(FetchDone(effect.ticket))
        else:
            self.transfer.fetch(effect.ticket, effect.blobs, effect.holder)

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

    def _load_spare(self, effect: ev.LoadSpare) -> None:
        self._disk.submit(
            lambda: self._jobs.load_spare(effect.plan, effect.program),
            lambda error: ev.PlanFailed(effect.plan, reason_of(error)),
        )

    def _room_for_spares(self) -> int:
        limit = self.config.runtime.memory_limit_mb
        return room_for_spares(None if limit is None else limit << 20)

    def _adopt(self, effect: ev.Adopt) -> None:
        self._programs[effect.plan] = effect.program
        self._jobs.adopt(effect.plan, effect.spare)

    def _unload(self, effect: ev.Unload) -> None:
        self._programs.pop(effect.plan, None)
        self._disk.submit(lambda: self._jobs.unload(effect.plan), lambda _: None)

    def _watch(self, effect: ev.Watch) -> None:
        self.link.subscribe(*self._watched(effect.model))

    def _unwatch(self, effect: ev.Unwatch) -> None:
        self.link.unsubscribe(*self._watched(effect.model))

    def _watched(self, model: str) -> tuple[str, str]:
        return (f"{self.topics.infer(model)}/#", self.topics.result(model, "+"))

    def _beat(self, effect: ev.Beat) -> None:
        if self.link.connected:
            beat = wire.Beat(self.name, self.session, effect.waits, effect.first)
            self.publish(self.topics.beat(self.name), wire.encode_json(beat), qos=0)

    def _plans_changed(self, effect: ev.PlansChanged) -> None:
        self.store.pin(effect.blobs)
        if effect.epochs != self._epochs:
            self._epochs = effect.epochs
            self._tell_status()

    def _log(self, effect: ev.Log) -> None:
        log(
            effect.level,
            effect.text,
            model=effect.model,
            request=effect.request,
            epoch=effect.epoch,
        )
