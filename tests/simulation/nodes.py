"""Members of the simulated fleet: a real core each, its effects carried out on the virtual clock.

What `agent/service` does with threads, sockets and files is done here with delays; the decisions
are the cores' own.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from agent.adapters.compute import gather
from agent.coordinator import CoordinatorCore
from agent.coordinator import events as co
from agent.service.agent import LEAVE_S, LINGER_S, STATUS_EVERY_S
from agent.wire import messages as wire
from agent.wire.tensors import bytes_of
from agent.worker import WorkerCore
from agent.worker import events as ev
from tests.simulation import compute
from tests.simulation.broker import Link, Message

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.wire.model import ModelPackage
    from agent.wire.program import Program
    from tests.simulation.fleet import Fleet

PATIENCE_S = 3.0
GIVE_UP_S = 60.0
NEVER = float("inf")


class Disk:
    """What outlives a process: blobs by digest, and a coordinator's deployments."""

    def __init__(self) -> None:
        self.blobs: set[str] = set()
        self.saved: tuple[wire.Deployed, ...] = ()


class Node:
    """One life of a member `name`'s process; `offset` is what its clock is ahead of the world's."""

    role: Literal["agent", "coordinator"] = "agent"
    core: Any

    def __init__(self, fleet: Fleet, name: str, disk: Disk, session: str) -> None:
        self.fleet = fleet
        self.world = fleet.world
        self.name = name
        self.disk = disk
        self.session = self.told_session = session
        self.alive = True
        self.frozen = False
        self.leaving = False
        self.offset = self.world.random.uniform(0.0, 1e4)
        self.slowness = 1.0
        self._kernel: deque[Callable[[], None]] = deque()
        self._wake_at = NEVER
        self._fetches: dict[str, object] = {}
        offline = wire.Status(name, session, "offline", self.role)
        will = Message("status", name, offline, name, retain=True)
        self.link = Link(fleet.broker, self, name, will)

    def clock(self) -> float:
        """Return this device's monotonic clock, in seconds."""
        return self.world.now + self.offset

    def do(self, action: Callable[[], None]) -> None:
        """Have the process do something, once it runs; a dead one never does."""
        if self.frozen:
            self._kernel.append(action)
        elif self.alive:
            action()

    def thaw(self) -> None:
        """Run again, and find all that waited."""
        self.frozen = False
        if self.world.random.random() < 0.5:
            self.do(self._turn)
        while self._kernel and not self.frozen:
            self.do(self._kernel.popleft())
        self.do(self.rouse)

    def rouse(self) -> None:
        """Look at the clock anew."""
        self._wake_at = NEVER
        self.schedule()

    def kill(self) -> None:
        """Die at once."""
        self.alive = False
        self.link.end(will=True)

    # Time ----------------------------------------------------------------------------------

    def next_due(self) -> float | None:
        """Return when the core wants to be called, on this device's clock."""
        due: float | None = self.core.next_timer()
        return due

    def schedule(self) -> None:
        """Wake when the core wants to be."""
        due = self.next_due()
        if due is not None and due - self.offset < self._wake_at:
            self._wake_at = due - self.offset
            self.world.at(self._wake_at, self._wake, self._wake_at)

    def _wake(self, at: float) -> None:
        if at == self._wake_at:
            self._wake_at = NEVER
            self.do(self._turn)

    def _turn(self) -> None:
        due = self.next_due()
        if due is not None and self.clock() >= due - 1e-6:
            self.tick(max(self.clock(), due))
        self.schedule()

    def tick(self, now: float) -> None:
        """Give the core its due `Tick`."""
        raise NotImplementedError

    # Blobs ---------------------------------------------------------------------------------

    def fetch(self, ticket: str, blobs: dict[str, int], holder: str) -> None:
        """Bring blobs here; `fetched` or `fetch_failed` is called once that has ended."""
        mark = self._fetches[ticket] = object()
        delay = 0.0 if self._missing(blobs) == set() else self.fleet.transfer_s()
        self.world.after(delay, self.do, partial(self._try, ticket, mark, blobs, holder, None))

    def cancel(self, ticket: str) -> None:
        """Forget a fetch."""
        self._fetches.pop(ticket, None)

    def _missing(self, blobs: dict[str, int]) -> set[str]:
        return blobs.keys() - self.disk.blobs

    def _try(
        self,
        ticket: str,
        mark: object,
        blobs: dict[str, int],
        holder: str,
        since: float | None,
    ) -> None:
        if self._fetches.get(ticket) is not mark:
            return
        missing = self._missing(blobs)
        since = self.world.now if since is None or not self.link.connected else since
        source = self.fleet.holder(holder) if self.link.connected else None
        if missing and source is not None and missing <= source:
            self.disk.blobs |= missing
        if not self._missing(blobs):
            del self._fetches[ticket]
            self.fetched(ticket)
        elif source is not None or self.world.now - since > GIVE_UP_S:
            del self._fetches[ticket]
            self.fetch_failed(ticket, f"{holder} does not send it")
        else:
            again = partial(self._try, ticket, mark, blobs, holder, since)
            self.world.after(PATIENCE_S, self.do, again)

    def fetched(self, ticket: str) -> None:
        """Tell the core that a fetch is done."""
        raise NotImplementedError

    def fetch_failed(self, ticket: str, reason: str) -> None:
        """Tell the core that a fetch cannot be done."""
        raise NotImplementedError

    # The link's calls ----------------------------------------------------------------------

    def forgotten(self) -> None:
        """Learn that the broker has lost what came here since the last connection."""

    def connected(self, *, first: bool) -> None:
        """Subscribe and tell the status."""
        raise NotImplementedError

    def received(self, message: Message, again: bool) -> None:  # noqa: FBT001
        """Take a message."""
        raise NotImplementedError

    def tell(self, device: str, control: wire.Control) -> None:
        """Publish a control message to an inbox."""
        self.link.publish(Message("inbox", device, control, self.name))


class Agent(Node):
    """An agent."""

    def __init__(self, fleet: Fleet, name: str, disk: Disk, session: str) -> None:
        super().__init__(fleet, name, disk, session)
        limits = fleet.limits
        self.core = WorkerCore(name, session, limits.deadline_s, limits.max_in_flight)
        self.programs: dict[str, Program] = {}
        self.loaded: dict[str, Program] = {}
        self.watched: set[str] = set()
        self.busy = False
        self._epochs: dict[str, int] = {}
        self._times_forgotten = 0
        self._status_at = 0.0
        self._disk_free_at = 0.0
        self._left_at: float | None = None

    def forgotten(self) -> None:
        """See `AgentService.forgotten`."""
        self._times_forgotten += 1
        self.told_session = f"{self.session}.{self._times_forgotten}"

    def connected(self, *, first: bool) -> None:
        """See `AgentService.connected`."""
        if first:
            self.link.subscribe(("inbox", self.name), ("halo", self.name), ("plan", "+"))
        self._tell_status()

    def leave(self) -> None:
        """Hand over and end."""
        self._publish_state("offline")
        self.leaving = True
        self._left_at = self.world.now
        self._handle(ev.LeaveAsked())
        self._maybe_end()

    def _maybe_end(self) -> None:
        if not self.alive or self._left_at is None:
            return
        waited = self.world.now - self._left_at
        idle = self.core.in_flight == 0
        if waited > LEAVE_S or (idle and (waited > LINGER_S or not self.core.serving)):
            self.alive = False
            self.link.end(will=False)
            self.fleet.left(self)
        else:
            self.world.after(0.1, self.do, self._maybe_end)

    def next_due(self) -> float | None:
        """Return when the core or the status is due."""
        due: float | None = self.core.next_timer()
        if not self.link.connected or self.leaving:
            return due
        return self._status_at if due is None else min(due, self._status_at)

    def tick(self, now: float) -> None:
        """See `AgentService.turn`."""
        due = self.core.next_timer()
        if due is not None and now >= due:
            self._handle(ev.Tick(), now)
        if self.link.connected and now >= self._status_at and not self.leaving:
            self._tell_status()

    def _tell_status(self) -> None:
        self._status_at = self.clock() + STATUS_EVERY_S
        self._publish_state("online")
        self.schedule()

    def _publish_state(self, state: Any) -> None:
        if not self.leaving:
            status = wire.Status(self.name, self.told_session, state)
            if state == "online":
                capacity, plans = compute.capacity_of(self.name), dict(self._epochs)
                status = wire.Status(
                    self.name, self.told_session, state, capacity=capacity, plans=plans, beats=True
                )
            self.link.publish(Message("status", self.name, status, self.name, retain=True))

    # Messages ------------------------------------------------------------------------------

    def received(self, message: Message, again: bool) -> None:  # noqa: FBT001
        """See `AgentService.received`."""
        content = message.content
        match message.kind:
            case "halo" if isinstance(content, wire.Piece):
                self._handle(ev.PieceArrived(content, len(content.data)))
            case "halo":
                self._forwarded(content)
            case "infer":
                self._request(message, again)
            case "result":
                key = ev.RequestKey(message.subject, content.request, content.input)
                self.fleet.referee.result_seen(self, key)
                refused = content.error is not None and content.error.code == "overloaded"
                self._handle(ev.ResultSeen(key, refused))
            case "plan":
                self.fleet.referee.plan_heard(self, message.subject, content)
                self._handle(ev.PlanAnnounced(message.subject, content))
            case "inbox" if isinstance(content, wire.Prepare):
                self._handle(ev.PlanOffered(content.plan))
            case "inbox" if isinstance(content, wire.Standby):
                self._handle(ev.StandbyOffered(content))

    def _forwarded(self, message: wire.Forward) -> None:
        mark = wire.fingerprint(message.payload)
        event = ev.RequestArrived(
            message.model,
            message.request,
            mark,
            message.payload,
            ev.ReplyTo(client=message.client),
            message.remaining_s,
            redelivered=True,
        )
        self._handle(event)
        self.fleet.referee.request_arrived(self, event)

    def _request(self, message: Message, again: bool) -> None:  # noqa: FBT001
        name, content, client = message.content
        expires = None if message.expires_at is None else message.expires_at - self.world.now
        mark = wire.fingerprint(content)
        event = ev.RequestArrived(
            message.subject, name, mark, content, ev.ReplyTo(client=client), expires, again
        )
        self._handle(event)
        self.fleet.referee.request_arrived(self, event)

    def fetched(self, ticket: str) -> None:
        """See `Node.fetched`."""
        self._handle(ev.Fetched(ticket))

    def fetch_failed(self, ticket: str, reason: str) -> None:
        """See `Node.fetch_failed`."""
        self._handle(ev.FetchFailed(ticket, reason))

    # Effects -------------------------------------------------------------------------------

    def _handle(self, event: ev.Event, now: float | None = None) -> None:
        effects = self.core.handle(event, self.clock() if now is None else now)
        self.fleet.referee.handled(self)
        for effect in effects:
            self._perform(effect)
        self.schedule()

    def _perform(self, effect: ev.Effect) -> None:  # noqa: C901, PLR0912 - one case an effect
        match effect:
            case ev.Fetch(ticket, blobs, holder):
                self.fetch(ticket, blobs, holder)
            case ev.CancelFetch(ticket):
                self.cancel(ticket)
            case ev.ReadPlan(plan, ref):
                self._on_disk(partial(self._read, plan, ref.digest))
            case ev.Load(plan, program):
                self.programs[plan] = program
                self._on_disk(partial(self._load, plan, program))
            case ev.LoadSpare(name, program):
                self._on_disk(partial(self._load_spare, name, program))
            case ev.Adopt(plan, spare, program):
                self.programs[plan] = program
                self.loaded[plan] = self.loaded[spare]
            case ev.Unload(plan):
                self.programs.pop(plan, None)
                self._on_disk(partial(self._unload, plan))
            case ev.Watch(model):
                self.watched.add(model)
                self.link.subscribe(("infer", model), ("result", model))
            case ev.Unwatch(model):
                self.watched.discard(model)
                self.link.unsubscribe(("infer", model), ("result", model))
            case ev.Tell(device, message):
                self.tell(device, message)
            case ev.Pass(device, message):
                self.link.publish(Message("halo", device, message, self.name))
            case ev.Decode() | ev.Run() | ev.Conclude():
                self._execute(effect)
            case ev.SendPiece():
                self._send_piece(effect)
            case ev.PublishAnswer(answer):
                self.fleet.referee.answering(self, answer)
                self.link.publish(Message("result", answer.model, answer, self.name))
            case ev.Republish(model, name, content, reply, remaining):
                named, end = (name, content, reply.client), self.world.now + remaining
                self.link.publish(Message("infer", model, named, self.name, expires_at=end))
            case ev.PublishTrace(model, trace):
                self.link.publish(Message("trace", model, trace, self.name, qos=0))
            case ev.Beat(waits, first):
                if self.link.connected:
                    beat = wire.Beat(self.name, self.told_session, waits, first)
                    self.link.publish(Message("beat", self.name, beat, self.name, qos=0))
            case ev.PlansChanged(epochs):
                if epochs != self._epochs:
                    self._epochs = epochs
                    self._tell_status()
            case ev.Log(level, text, request) if level != "info":
                self.world.note(f"{self.name}: {text} {request or ''}")

    def _send_piece(self, effect: ev.SendPiece) -> None:
        if effect.plan not in self.programs:
            self.fleet.referee.fail(f"{self.name} sends a piece of a plan that it has unloaded")
        dtype = self.programs[effect.plan].tensors[effect.tensor].dtype
        data = bytes_of(gather(effect.region, dtype, effect.pieces))
        key = effect.key
        piece = wire.Piece(effect.plan, key.request, key.input, effect.tensor, effect.region, data)
        self.link.publish(Message("halo", effect.to, piece, self.name))

    # Threads -------------------------------------------------------------------------------

    def _on_disk(self, job: Callable[[], ev.Event | None]) -> None:
        self._disk_free_at = max(self._disk_free_at, self.world.now) + self.fleet.load_s()
        self.world.at(self._disk_free_at, self.do, partial(self._done, job))

    def _done(self, job: Callable[[], ev.Event | None]) -> None:
        event = job()
        if event is not None:
            self._handle(event)

    def _read(self, plan: str, digest: str) -> ev.Event:
        if digest not in self.disk.blobs:
            return ev.PlanFailed(plan, "its program is gone")
        return ev.PlanRead(plan, compute.program(digest), None)

    def _load(self, plan: str, program: Program) -> ev.Event:
        if not program.blobs().keys() <= self.disk.blobs:
            return ev.PlanFailed(plan, "its segments are gone")
        self.loaded[plan] = program
        return ev.Loaded(plan)

    def _load_spare(self, name: str, program: Program) -> ev.Event:
        if not self.fleet.has_room():
            return ev.PlanFailed(name, "there is no room for it")
        return self._load(name, program)

    def _unload(self, plan: str) -> None:
        self.loaded.pop(plan, None)

    def _execute(self, job: ev.Decode | ev.Run | ev.Conclude) -> None:
        self.fleet.referee.job_begins(self)
        self.busy = True
        delay = self.slowness * self.fleet.job_s()
        self.world.after(delay, self.do, partial(self._executed, job))

    def _executed(self, job: ev.Decode | ev.Run | ev.Conclude) -> None:
        self.busy = False
        program = self.loaded.get(job.plan)
        match job:
            case ev.Decode(key, plan):
                self._handle(self._decoded(job, program is not None))
            case _ if program is None:
                self._handle(ev.StepFailed(job.key, job.plan, 0, "the plan is not loaded"))
            case ev.Run(key, plan, step, inputs):
                arrays = compute.run(program, step, inputs)
                now = self.clock()
                self._handle(ev.StepFinished(key, plan, step, arrays, now, now))
            case ev.Conclude(key, plan, _, outputs):
                self._handle(ev.Concluded(key, plan, compute.result(program, outputs), None))

    @staticmethod
    def _decoded(job: ev.Decode, loaded: bool) -> ev.Event:  # noqa: FBT001
        try:
            image = compute.decode(job.payload)
        except ValueError as error:
            return ev.DecodeRefused(job.key, job.plan, str(error))
        if not loaded:
            return ev.DecodeRefused(job.key, job.plan, "the plan is not loaded")
        return ev.Decoded(job.key, job.plan, image, 0.001)


class Coordinator(Node):
    """A coordinator."""

    role = "coordinator"

    def __init__(self, fleet: Fleet, name: str, disk: Disk, session: str) -> None:
        super().__init__(fleet, name, disk, session)
        self.core = CoordinatorCore(name, session, disk.saved, self.clock(), budget_s=0.0)
        self.shown = co.Show((), 0)
        self._planner_free_at = 0.0

    def connected(self, *, first: bool) -> None:
        """See `CoordinatorService.connected`."""
        if first:
            shared = (("status", "+"), ("plan", "+"), ("deployment", "+"), ("beat", "+"))
            self.link.subscribe(("inbox", self.name), *shared)
        self._handle(co.Connected())
        self._publish_status()
        self.rouse()

    def next_due(self) -> float | None:
        """See `CoordinatorService.turn`: without a connection nothing is due."""
        due: float | None = self.core.next_timer()
        return due if self.link.connected else None

    def tick(self, now: float) -> None:
        """See `CoordinatorService.turn`."""
        self._handle(co.Tick(), now)

    def fetched(self, ticket: str) -> None:
        """See `Node.fetched`."""
        self._handle(co.Fetched(ticket))

    def fetch_failed(self, ticket: str, reason: str) -> None:
        """See `Node.fetch_failed`."""
        self._handle(co.FetchFailed(ticket, reason))

    def received(self, message: Message, again: bool) -> None:  # noqa: ARG002, FBT001
        """See `CoordinatorService.received`."""
        content = message.content
        match message.kind:
            case "status" if content is not None:
                self.fleet.referee.status_heard(self, content)
                self._handle(co.StatusSeen(content))
            case "plan" if content is not None:
                self._handle(co.HeaderSeen(content))
            case "beat":
                self._handle(co.BeatSeen(content))
                self.fleet.referee.suspected(self)
            case "deployment" if content is not None:
                self._handle(co.RecordSeen(content))
            case "inbox":
                self._control(content)

    def _control(self, message: Any) -> None:
        match message:
            case wire.Deploy():
                self._handle(co.DeployAsked(message))
            case wire.Remove():
                self._handle(co.RemoveAsked(message))
            case wire.Prepared():
                self.fleet.referee.prepared_heard(self, message)
                self._handle(co.PreparedSeen(message))
            case wire.Ready():
                self.fleet.referee.ready_heard(self, message)
                self._handle(co.ReadySeen(message))

    def _handle(self, event: co.Event, now: float | None = None) -> None:
        for effect in self.core.handle(event, self.clock() if now is None else now):
            self._perform(effect)
        self.schedule()

    def _perform(self, effect: co.Effect) -> None:
        match effect:
            case co.Fetch(ticket, blobs, holder):
                self.fetch(ticket, blobs, holder)
            case co.ComputePlan(package, members):
                self.fleet.referee.planning(self)
                start = max(self._planner_free_at, self.world.now)
                self._planner_free_at = start + self.fleet.planning_s()
                job = partial(self._planned, package, members)
                self.world.at(self._planner_free_at, self.do, job)
            case co.Tell(device, message):
                self.tell(device, message)
            case co.Announce(header):
                self.world.note(f"{self.name} announces {header.epoch} on {header.devices}")
                self.fleet.referee.announcing(self, header)
                self.link.publish(Message("plan", header.model, header, self.name, retain=True))
            case co.Withdraw(model):
                self.link.publish(Message("plan", model, None, self.name, retain=True))
            case co.Persist(records):
                self.disk.saved = records
            case co.Record(record):
                self.link.publish(
                    Message("deployment", record.model, record, self.name, retain=True)
                )
            case co.Show():
                self.shown = effect
                self._publish_status()
            case co.Log(level, text, model, epoch):
                self.world.note(f"{self.name}: {text} {model or ''} {epoch or ''} {level}")

    def _planned(self, package: ModelPackage, members: tuple[co.Member, ...]) -> None:
        if self._missing(package.blobs()):
            fleet = frozenset(member.device for member in members)
            self._handle(co.ComputeFailed(package, fleet, "the model's blobs are gone"))
            return
        plan = compute.plan(package, members)
        self.disk.blobs |= {ref.digest for ref in plan.programs.values()}
        self.disk.blobs |= {digest for blobs in plan.blobs.values() for digest in blobs}
        self._handle(co.Computed(package, plan))

    def _publish_status(self) -> None:
        shown = self.shown
        status = wire.Status(
            self.name, self.session, "online", self.role, models=shown.models, term=shown.term
        )
        self.link.publish(Message("status", self.name, status, self.name, retain=True))
