"""The worker: one `handle(event, now)` that turns events into effects.

Rules of the file: nothing here waits, reads a clock or does I/O; the executor does one job at a
time, and of all that is ready the oldest request's earliest step goes first.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from agent.errors import WireError
from agent.geometry import size
from agent.wire.messages import Answer, Failure, Forward, Piece
from agent.wire.tensors import itemsize
from agent.worker import events as ev
from agent.worker.calibration import Calibrations
from agent.worker.drift import Drifts
from agent.worker.early import EarlyPieces
from agent.worker.events import Effect, Event, Held, PlanEvent, RequestKey
from agent.worker.execution import Execution
from agent.worker.meter import Transfer
from agent.worker.pieces import check_piece, chunked
from agent.worker.plans import Plan, Plans
from agent.worker.requests import RANK_DELAY_S, Request, State
from agent.worker.unclaimed import Unclaimed

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.wire.program import Program, Send

REMEMBERED = 1024
STANDBY_RANK = 32
LATE_S = 1.0


class WorkerCore:
    """The worker of `device`; `session` names this life of its process.

    `deadline_s` is the deadline of a request that brings none, `max_in_flight` how many requests
    of all models are admitted at a time, `traces` whether to tell what each request cost.
    """

    def __init__(
        self,
        device: str,
        session: str,
        deadline_s: float = 30.0,
        max_in_flight: int = 16,
        *,
        traces: bool = True,
    ) -> None:
        self._device = device
        self._session = session
        self._deadline_s = deadline_s
        self._forget_s = 2 * deadline_s
        self._max_in_flight = max_in_flight
        self._traces = traces
        self._plans = Plans(device)
        self._calibrations = Calibrations(device)
        self._drifts = Drifts()
        self._requests: dict[RequestKey, Request] = {}
        self._unclaimed = Unclaimed()
        self._recent: OrderedDict[RequestKey, None] = OrderedDict()
        self._early = EarlyPieces()
        self._busy = False
        self._leaving = False
        self._count = 0

    @property
    def in_flight(self) -> int:
        """How many requests are not yet known to be answered."""
        return len(self._requests)

    @property
    def serving(self) -> bool:
        """Whether this device has a part in any current plan."""
        return bool(self._plans.active)

    @property
    def drift(self) -> dict[str, float]:
        """How many times as long as predicted the steps of each served model take here."""
        return self._drifts.ratios({m: plan.digest for m, plan in self._plans.active.items()})

    def next_timer(self) -> float | None:
        """Return when a `Tick` is due at the latest."""
        timers = [self._timer_of(request) for request in self._requests.values()]
        timers += [self._timer_of(request) for request in self._unclaimed]
        others = (self._early.next_expiry(), self._plans.lapses_at())
        return min([*timers, *(at for at in others if at is not None)], default=None)

    def _timer_of(self, request: Request) -> float:
        if request.state is State.FAILED:
            return request.due
        if request.state is State.ANSWERED:
            return request.deadline + self._forget_s
        return request.deadline

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event at time `now` (seconds, monotonic); return what is to be done."""
        effects = self._handler(event)(event, now)
        # The executor must not idle while pieces are sent.
        return self._next_job() + effects

    def _handler(self, event: Event) -> Callable[[Any, float], list[Effect]]:
        if isinstance(event, ev.Fetched | ev.FetchFailed) and self._calibrations.owns(event.ticket):
            return self._calibration_event
        handlers: dict[type, Callable[[Any, float], list[Effect]]] = {
            ev.StepFinished: self._step_finished,
            ev.StepFailed: self._step_failed,
            ev.PieceArrived: self._piece_arrived,
            ev.RequestArrived: self._request_arrived,
            ev.Decoded: self._decoded,
            ev.DecodeRefused: self._decode_refused,
            ev.Concluded: self._concluded,
            ev.ResultSeen: self._result_seen,
            ev.Tick: self._tick,
            ev.LeaveAsked: self._leave_asked,
            ev.CalibrationAsked: self._calibration_event,
            ev.ProbesRead: self._calibration_event,
            ev.ProbesFailed: self._calibration_event,
            ev.ProbeRan: self._calibration_event,
        }
        return handlers.get(type(event), self._plan_event)

    # Calibration ---------------------------------------------------------------------------

    def _calibration_event(self, event: Event, _now: float) -> list[Effect]:
        if isinstance(event, ev.ProbeRan):
            self._busy = False
        return self._calibrations.handle(event)

    # Plans ---------------------------------------------------------------------------------

    def _plan_event(self, event: PlanEvent, now: float) -> list[Effect]:
        before = dict(self._plans.active)
        effects = self._change_plans(event, now)
        removed = isinstance(event, ev.PlanAnnounced) and event.header is None
        if isinstance(event, ev.PlanAnnounced) and removed:
            effects += self._calibrations.forget(event.model)
        for model in sorted(before.keys() | self._plans.active.keys()):
            active, old = self._plans.active.get(model), before.get(model)
            if old is active:
                continue
            if removed and old is not None and self._answers(old):
                effects += self._refuse_all(model, now)
            effects += self._switch(model, active, now)
        return effects + self._drop_unwatched(event, now)

    def _drop_unwatched(self, event: PlanEvent, now: float) -> list[Effect]:
        # This device would never see the answers. Those that it alone may know are passed on.
        gone = [r for r in self._requests.values() if not self._plans.watches(r.key.model)]
        self._unclaimed.take(lambda model: not self._plans.watches(model))
        for request in gone:
            del self._requests[request.key]
        if not isinstance(event, ev.PlanAnnounced) or event.header is None:
            return []
        lost = [request for request in gone if request.state is not State.ANSWERED]
        return [
            effect
            for request in lost
            if request.key.model == event.model
            for effect in self._pass_on(request, event.header.devices, now)
        ]

    def _change_plans(self, event: PlanEvent, now: float) -> list[Effect]:
        plans = self._plans
        match event:
            case ev.PlanOffered(header):
                effects = [] if self._leaving else plans.offer(header, announced=False, now=now)
            case ev.PlanAnnounced(model, header):
                effects = (
                    plans.remove(model) if header is None else plans.offer(header, announced=True)
                )
            case ev.StandbyOffered(standby):
                effects = plans.keep_ready(standby)
            case ev.Fetched(ticket):
                effects = plans.fetched(ticket)
            case ev.PlanRead(plan, program, manifest):
                effects = plans.read(plan, program, manifest)
            case ev.Loaded(plan):
                effects = plans.loaded(plan)
            case ev.FetchFailed(name, reason) | ev.PlanFailed(name, reason):
                effects = plans.failed(name, reason)
        return effects

    def _switch(self, model: str, plan: Plan | None, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for request in [r for r in self._requests.values() if r.key.model == model]:
            if request.state is State.ANSWERED:
                continue
            if request.state is State.FAILED and now >= request.deadline:
                request.due = now + self._rank(model) * RANK_DELAY_S
                continue
            if request.state is not State.WAITING:
                request.reset()
            if plan is not None and plan.program is not None:
                effects += self._forward(request, plan, now)
                effects += self._start(request, plan, plan.program, now)
        if plan is not None and self._answers(plan):
            waiting = [r for r in self._unclaimed if r.state is State.WAITING]
            for request in [r for r in waiting if r.key.model == model]:
                self._unclaimed.remove(request)
                effects.append(self._claim(request, now))
        return effects

    def _refuse_all(self, model: str, now: float) -> list[Effect]:
        failure = Failure("model", "the model was removed while the request was in flight")
        unanswered = [
            request
            for request in self._requests.values()
            if request.key.model == model and request.state is not State.ANSWERED
        ]
        nameless = self._unclaimed.take(lambda name: name == model)
        unanswered += [self._named(r) for r in nameless if r.state is State.WAITING]
        return [effect for r in unanswered for effect in self._publish_failure(r, failure, now)]

    def _leave_asked(self, _event: ev.LeaveAsked, _now: float) -> list[Effect]:
        self._leaving = True
        return []

    def _forward(self, request: Request, plan: Plan, now: float) -> list[Effect]:
        header = plan.header
        stayed = [device for device in header.devices if device not in header.joined]
        if stayed and stayed[0] != self._device:
            return []
        others = tuple(device for device in header.joined if device != self._device)
        return self._pass_on(request, others, now)

    def _pass_on(self, request: Request, devices: tuple[str, ...], now: float) -> list[Effect]:
        message = Forward(
            model=request.key.model,
            request=request.key.request,
            payload=request.payload,
            remaining_s=max(0.0, request.deadline - now),
            tensors=request.reply.tensors,
            content_type=request.reply.content_type,
            response_topic=request.reply.response_topic,
            correlation=request.reply.correlation,
        )
        return [ev.Pass(device, message) for device in devices]

    # Requests ------------------------------------------------------------------------------

    def _request_arrived(self, event: ev.RequestArrived, now: float) -> list[Effect]:
        key = RequestKey(event.model, event.request or "", event.input)
        if key in self._requests or not self._plans.watches(event.model):
            return []
        if event.redelivered and (key in self._recent or key in self._unclaimed):
            return []
        self._count += 1
        life = self._deadline_s if event.expires_s is None else event.expires_s
        request = Request(key, self._count, event.payload, event.reply, now, now + life)
        plan = self._plans.active.get(event.model)
        if event.request is None:
            return self._take_unclaimed(request, plan, now)
        self._note_claimed(key)
        if len(self._requests) >= self._admitted(plan):
            return self._overloaded(request, plan)
        self._requests[key] = request
        if plan is None or plan.program is None:
            return []
        return self._start(request, plan, plan.program, now)

    def _take_unclaimed(self, request: Request, plan: Plan | None, now: float) -> list[Effect]:
        if plan is not None and self._answers(plan):
            return [self._claim(request, now)]
        if len(self._unclaimed) < self._admitted(plan):
            self._unclaimed.add(request)
        return []

    def _claim(self, request: Request, now: float) -> Effect:
        key = self._named(request).key
        remaining = max(0.0, request.deadline - now)
        return ev.Republish(key.model, key.request, request.payload, request.reply, remaining)

    def _named(self, request: Request) -> Request:
        self._remember(request.key)
        name = f"{self._session}-{request.number}"
        request.key = RequestKey(request.key.model, name, request.key.input)
        return request

    def _note_claimed(self, key: RequestKey) -> None:
        if self._unclaimed.claimed(key):
            self._remember(RequestKey(key.model, "", key.input))

    def _remember(self, key: RequestKey) -> None:
        self._recent[key] = None
        if len(self._recent) > REMEMBERED:
            self._recent.popitem(last=False)

    def _overloaded(self, request: Request, plan: Plan | None) -> list[Effect]:
        log = self._log("warning", "more requests in flight than max_in_flight", request)
        if plan is None or not self._answers(plan):
            return [log]
        text = f"{self._max_in_flight} requests are in flight already; try again later"
        answer = self._answer(request, plan, 0.0, Failure("overloaded", text))
        return [log, ev.PublishAnswer(answer, request.reply)]

    def _start(self, request: Request, plan: Plan, program: Program, now: float) -> list[Effect]:
        if request.plan is not None and not _same_input(request.plan, plan):
            request.image = None
        request.plan = plan
        request.execution = Execution(program)
        if request.image is None:
            request.move(State.DECODING)
            return []
        request.move(State.RUNNING)
        return self._feed_image(request, now)

    def _decoded(self, event: ev.Decoded, now: float) -> list[Effect]:
        self._busy = False
        request = self._requests.get(event.key)
        if request is None or not self._is_current(request, event.plan):
            return []
        request.image = event.image
        request.meter.decode_s += event.seconds
        request.meter.decoded = now
        request.move(State.RUNNING)
        return self._feed_image(request, now)

    def _feed_image(self, request: Request, now: float) -> list[Effect]:
        execution, plan = request.execution, request.plan
        if execution is None or plan is None:
            return []
        spec = execution.program.tensors[execution.program.input]
        region = tuple((0, extent) for extent in spec.shape)
        sends = execution.add(execution.program.input, Held(region, request.image))
        effects = self._send(request, sends, now)
        early = self._early.take(plan.digest, request.key.request, request.key.input)
        for arrived, nbytes, piece in early:
            effects += self._take_piece(request, piece, nbytes, arrived, now)
        return effects

    def _piece_arrived(self, event: ev.PieceArrived, now: float) -> list[Effect]:
        piece = event.piece
        plan = next((p for p in self._plans.active.values() if p.digest == piece.plan), None)
        model = plan.header.model if plan else ""
        request = self._requests.get(RequestKey(model, piece.request, piece.input))
        if request is None or request.state in (State.WAITING, State.DECODING):
            dropped = self._early.add(piece, event.nbytes, now)
            if dropped:
                return [ev.Log("warning", f"dropped {dropped} early pieces: too many")]
            return []
        return self._take_piece(request, piece, event.nbytes, now, now)

    def _take_piece(
        self, request: Request, piece: Piece, nbytes: int, arrived: float, now: float
    ) -> list[Effect]:
        execution = request.execution
        if execution is None or request.state is not State.RUNNING:
            return []
        try:
            check_piece(piece, execution.program)
        except WireError as error:
            return [self._log("warning", f"refused a piece: {error}", request)]
        transfer = Transfer(piece.tensor, piece.region, arrived, arrived, nbytes)
        request.meter.receives.append(transfer)
        sends = execution.add(piece.tensor, Held(piece.region, piece.data))
        return self._send(request, sends, now) + self._maybe_conclude(request, now)

    def _decode_refused(self, event: ev.DecodeRefused, now: float) -> list[Effect]:
        self._busy = False
        return self._fail(event.key, event.plan, Failure("input", event.reason), now)

    def _step_finished(self, event: ev.StepFinished, now: float) -> list[Effect]:
        self._busy = False
        request = self._requests.get(event.key)
        if request is None or not self._is_current(request, event.plan):
            return []
        execution = request.execution
        if execution is None:
            return []
        request.meter.steps.append((event.step, event.started, event.ended))
        sends = execution.wrote(event.step, event.arrays)
        return self._send(request, sends, now) + self._maybe_conclude(request, now)

    def _step_failed(self, event: ev.StepFailed, now: float) -> list[Effect]:
        self._busy = False
        return self._fail(event.key, event.plan, Failure("compute", event.reason), now)

    def _maybe_conclude(self, request: Request, now: float) -> list[Effect]:
        execution = request.execution
        if execution is None or not execution.answerable or request.state is not State.RUNNING:
            return []
        request.finished = now
        request.move(State.CONCLUDING)
        return []

    def _concluded(self, event: ev.Concluded, now: float) -> list[Effect]:
        self._busy = False
        request = self._requests.get(event.key)
        if request is None or not self._is_current(request, event.plan) or request.plan is None:
            return []
        request.move(State.ANSWERED)
        request.meter.answered = now
        header = request.plan.header
        answer = Answer(
            request=request.key.request,
            model=request.key.model,
            input=request.key.input,
            ok=True,
            outputs=event.outputs,
            result=event.result,
            elapsed_ms=round((now - request.arrived) * 1e3, 3),
            epoch=header.epoch,
            devices=header.devices,
        )
        return [ev.PublishAnswer(answer, request.reply)]

    def _result_seen(self, event: ev.ResultSeen, now: float) -> list[Effect]:
        key = event.key
        self._remember(key)
        request = self._requests.pop(key, None)
        if request is None:
            self._note_claimed(key)
        if request is None or request.plan is None or not request.meter.steps:
            return []
        drift = self._note_drift(request, request.plan)
        if not self._traces:
            return drift
        return [ev.PublishTrace(key.model, request.trace(self._device, now)), *drift]

    def _note_drift(self, request: Request, plan: Plan) -> list[Effect]:
        if plan.program is None:
            return []
        ran = request.meter.steps
        predicted = sum(plan.program.steps[number].predicted_s for number, _, _ in ran)
        model, measured = request.key.model, request.meter.compute_s
        much = self._drifts.note(model, plan.digest, measured, predicted)
        return [ev.DriftChanged()] if much else []

    def _fail(self, key: RequestKey, plan: str, failure: Failure, now: float) -> list[Effect]:
        request = self._requests.get(key)
        if request is None or not self._is_current(request, plan):
            return []
        return self._give_up(request, failure, now, now)

    def _give_up(
        self, request: Request, failure: Failure, since: float, now: float
    ) -> list[Effect]:
        due = since + self._rank(request.key.model) * RANK_DELAY_S
        log = self._log("warning", f"{failure.code}: {failure.text}", request)
        request.fail(failure, due)
        return [log, *(self._publish_failure(request, failure, now) if due <= now else [])]

    def _publish_failure(self, request: Request, failure: Failure, now: float) -> list[Effect]:
        request.move(State.ANSWERED)
        plan = request.plan or self._plans.active.get(request.key.model)
        answer = self._answer(request, plan, now - request.arrived, failure)
        return [ev.PublishAnswer(answer, request.reply)]

    def _rank(self, model: str) -> int:
        # Devices that only prepare a plan come after all that serve it, then those on standby.
        header = self._plans.header(model)
        if header is None or self._device not in header.devices:
            return STANDBY_RANK
        rank = header.devices.index(self._device)
        return rank if model in self._plans.active else rank + len(header.devices)

    def _answer(
        self, request: Request, plan: Plan | None, elapsed_s: float, failure: Failure
    ) -> Answer:
        return Answer(
            request=request.key.request,
            model=request.key.model,
            input=request.key.input,
            ok=False,
            error=failure,
            elapsed_ms=round(elapsed_s * 1e3, 3),
            epoch=plan.header.epoch if plan else 0,
            devices=plan.header.devices if plan else (),
        )

    # Sends, jobs, time ---------------------------------------------------------------------

    def _send(self, request: Request, sends: list[Send], now: float) -> list[Effect]:
        execution, plan = request.execution, request.plan
        if execution is None or plan is None:
            return []
        effects: list[Effect] = []
        for send in sends:
            spec = execution.program.tensors[send.part.tensor]
            nbytes = size(send.part.region) * itemsize(spec.dtype)
            request.meter.sends.append(
                Transfer(send.part.tensor, send.part.region, now, now, nbytes, send.to)
            )
            pieces = execution.pieces(send.part)
            effects += [
                ev.SendPiece(request.key, plan.digest, send.to, send.part.tensor, region, pieces)
                for region in chunked(send.part.region, itemsize(spec.dtype))
            ]
        return effects

    def _next_job(self) -> list[Effect]:
        if self._busy:
            return []
        for request in sorted(self._requests.values(), key=lambda request: request.number):
            job = self._job_of(request)
            if job is not None:
                self._busy = True
                return [job]
        probe = self._calibrations.next_job() if self._is_idle() else None
        self._busy = probe is not None
        return [] if probe is None else [probe]

    def _is_idle(self) -> bool:
        # Between its steps a request waits for others; a probe would make it wait longer.
        answered = all(r.state in (State.ANSWERED, State.FAILED) for r in self._requests.values())
        return answered and not self._plans.preparing and not self._leaving

    def _job_of(self, request: Request) -> Effect | None:
        execution, plan = request.execution, request.plan
        if execution is None or plan is None:
            return None
        if request.state is State.DECODING:
            content_type = request.reply.content_type
            return ev.Decode(request.key, plan.digest, request.payload, content_type)
        if request.state is State.CONCLUDING:
            outputs = tuple(execution.pieces(part) for part in execution.program.answers)
            wanted = request.reply.tensors
            return ev.Conclude(request.key, plan.digest, request.image, outputs, wanted)
        if request.state is State.RUNNING and execution.ready:
            number = execution.ready.pop(0)
            inputs = tuple(execution.pieces(r) for r in execution.program.steps[number].reads)
            return ev.Run(request.key, plan.digest, number, inputs)
        return None

    def _tick(self, _event: ev.Tick, now: float) -> list[Effect]:
        effects = self._plans.lapse(now)
        for request in [*self._requests.values(), *self._unclaimed]:
            if now >= self._timer_of(request):
                effects += self._overdue(request, now)
        answered = {(key.request, key.input) for key in self._recent}
        dropped = {
            (piece.plan, piece.request)
            for piece in self._early.expire(now)
            if (piece.request, piece.input) not in answered
        }
        for plan, name in sorted(dropped):
            text = f"dropped pieces of an unknown request of plan {plan[:12]}"
            effects.append(ev.Log("warning", text, request=name))
        return effects

    def _overdue(self, request: Request, now: float) -> list[Effect]:
        if request.state is State.ANSWERED:
            self._requests.pop(request.key, None)
            self._unclaimed.remove(request)
            return []
        if request.state is State.FAILED and request.failure is not None:
            return self._publish_failure(request, request.failure, now)
        if not request.key.request:
            self._named(request)
        failure = Failure("deadline", "the deadline passed before the answer was there")
        # A device that was stopped meanwhile reads first what it has missed: the answer, perhaps.
        late = now > request.deadline + LATE_S
        since = now + RANK_DELAY_S if late else request.deadline
        return self._give_up(request, failure, since, now)

    def _admitted(self, plan: Plan | None) -> int:
        # Only the answering device turns requests away; the others must never know fewer than it.
        answers = plan is not None and self._answers(plan)
        return self._max_in_flight if answers else 4 * self._max_in_flight

    def _answers(self, plan: Plan) -> bool:
        return plan.header.devices[0] == self._device

    def _is_current(self, request: Request, plan: str) -> bool:
        live = request.state in (State.DECODING, State.RUNNING, State.CONCLUDING)
        return live and request.plan is not None and request.plan.digest == plan

    def _log(self, level: str, text: str, request: Request) -> ev.Log:
        epoch = request.plan.header.epoch if request.plan else None
        return ev.Log(level, text, request.key.request, request.key.model, epoch)


def _same_input(old: Plan, new: Plan) -> bool:
    if old.program is None or new.program is None:
        return False
    old_spec = old.program.tensors[old.program.input]
    new_spec = new.program.tensors[new.program.input]
    return old_spec == new_spec and old.header.manifest == new.header.manifest
