"""The worker: one `handle(event, now)` that turns events into effects.

Rules of the file: nothing here waits, reads a clock or does I/O; the executor does one job at a
time, and of all that is ready the earliest step of the request that has its turn goes first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agent.wire.messages import Failure, Forward
from agent.worker import events as ev
from agent.worker.admission import Admission
from agent.worker.calibration import Calibrations
from agent.worker.drift import Drifts
from agent.worker.drills import Drills
from agent.worker.endings import Endings
from agent.worker.plans import Plan, Plans
from agent.worker.pulse import Pulse
from agent.worker.requests import RANK_DELAY_S, Request, State
from agent.worker.runs import Runs

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.worker.events import Effect, Event, PlanEvent, RequestKey

LATE_S = 1.0


class WorkerCore:
    """The worker of `device`; `session` names this life of its process.

    `deadline_s` is the deadline of a request that brings none, `max_in_flight` how many requests
    of all models are admitted at a time, `traces` whether to tell what each request cost, `drills`
    whether clients may have this device fail.
    """

    def __init__(
        self,
        device: str,
        session: str,
        deadline_s: float = 30.0,
        max_in_flight: int = 16,
        *,
        traces: bool = True,
        drills: bool = False,
    ) -> None:
        self._device = device
        self._forget_s = 2 * deadline_s
        self._traces = traces
        self._requests: dict[RequestKey, Request] = {}
        self._plans = Plans(device, session)
        self._endings = Endings(device, self._plans)
        self._admission = Admission(
            self._requests,
            self._plans,
            self._endings,
            session=session,
            deadline_s=deadline_s,
            max_in_flight=max_in_flight,
        )
        self._unclaimed = self._admission.unclaimed
        self._runs = Runs(self._requests, self._plans)
        self._early = self._runs.early
        self._pulse = Pulse(self._plans)
        self._calibrations = Calibrations(device)
        self._drifts = Drifts()
        self._drills = Drills(device, session, allowed=drills)
        self._busy = False
        self._leaving = False

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
        timers = [self._timer_of(request) for request in self._open()]
        others = (
            self._early.next_expiry(),
            self._plans.lapses_at(),
            self._plans.spares.due(),
            self._drills.lapses_at(),
            self._pulse.due(),
        )
        return min([*timers, *(at for at in others if at is not None)], default=None)

    def _timer_of(self, request: Request) -> float:
        if request.state is State.FAILED:
            return request.due
        if request.state is State.ANSWERED:
            return request.deadline + self._forget_s
        return request.deadline

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event at time `now` (seconds, monotonic); return what is to be done."""
        if isinstance(event, ev.JobEnded):
            self._busy = False
        effects = self._handler(event)(event, now)
        if self._plans.removed:
            effects += self._plans.ended(self._in_flight())
        # What the executor runs must be there; then, it must not idle while pieces are sent.
        first = [effect for effect in effects if isinstance(effect, ev.Adopt)]
        rest = [effect for effect in effects if not isinstance(effect, ev.Adopt)]
        effects = first + self._next_job() + rest + self._next_spare(now)
        self._pulse.follow(self._open(), now)
        return self._drills.at(event, effects, self._requests)

    def _in_flight(self) -> set[str]:
        return {request.key.model for request in self._open()}

    def _open(self) -> list[Request]:
        return [*self._requests.values(), *self._unclaimed]

    def _handler(self, event: Event) -> Callable[[Any, float], list[Effect]]:
        if isinstance(event, ev.Fetched | ev.FetchFailed) and self._calibrations.owns(event.ticket):
            return self._calibration_event
        if self._plans.spares.owns(event):
            return self._plans.spares.handle
        handlers: dict[type, Callable[[Any, float], list[Effect]]] = {
            ev.StepFinished: self._runs.step_finished,
            ev.StepFailed: self._step_failed,
            ev.PieceArrived: self._runs.piece_arrived,
            ev.PieceSent: self._runs.piece_sent,
            ev.PieceFailed: self._piece_failed,
            ev.RequestArrived: self._request_arrived,
            ev.Decoded: self._runs.decoded,
            ev.DecodeRefused: self._decode_refused,
            ev.Concluded: self._concluded,
            ev.ResultSeen: self._result_seen,
            ev.DrillAsked: self._drills.ask,
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
        return self._calibrations.handle(event)

    # Plans ---------------------------------------------------------------------------------

    def _plan_event(self, event: PlanEvent, now: float) -> list[Effect]:
        before = dict(self._plans.active)
        effects: list[Effect] = []
        if isinstance(event, ev.PlanAnnounced) and event.header is None:
            # Whose turn it is to tell, the plan says that is about to be forgotten.
            effects += self._give_up_all(event.model, now)
            effects += self._calibrations.forget(event.model)
        effects += self._change_plans(event, now)
        for model in sorted(before.keys() | self._plans.active.keys()):
            active, old = self._plans.active.get(model), before.get(model)
            if old is active or (active is None and not self._plans.admits(model)):
                continue
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
                request.due = self._endings.due(model, now)
                continue
            if request.state is not State.WAITING:
                request.reset()
            if plan is not None and plan.program is not None:
                effects += self._forward(request, plan, now)
                effects += self._runs.start(request, plan, plan.program, now)
        if plan is not None and self._endings.answers(plan):
            effects += self._admission.claim_all(model, now)
        return effects

    def _give_up_all(self, model: str, now: float) -> list[Effect]:
        failure = Failure("model", "the model was removed while the request was in flight")
        ended = (State.ANSWERED, State.FAILED)
        effects: list[Effect] = []
        for request in self._open():
            if request.key.model == model and request.state not in ended:
                named = request if request.key.request else self._admission.named(request)
                effects += self._endings.give_up(named, failure, now, now)
        return effects

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
            client=request.reply.client,
        )
        return [ev.Pass(device, message) for device in devices]

    # Requests ------------------------------------------------------------------------------

    def _request_arrived(self, event: ev.RequestArrived, now: float) -> list[Effect]:
        request, effects = self._admission.admit(event, now)
        plan = self._plans.active.get(event.model)
        if request is None or plan is None or plan.program is None:
            return effects
        return effects + self._runs.start(request, plan, plan.program, now)

    def _decode_refused(self, event: ev.DecodeRefused, now: float) -> list[Effect]:
        return self._fail(event.key, event.plan, Failure("input", event.reason), now)

    def _step_failed(self, event: ev.StepFailed, now: float) -> list[Effect]:
        return self._fail(event.key, event.plan, Failure("compute", event.reason), now)

    def _concluded(self, event: ev.Concluded, now: float) -> list[Effect]:
        effects = self._runs.concluded(event, now)
        if effects:
            self._admission.answered(self._requests[event.key], now)
        return effects

    def _piece_failed(self, event: ev.PieceFailed, now: float) -> list[Effect]:
        return self._fail(event.key, event.plan, Failure("compute", event.reason), now)

    def _result_seen(self, event: ev.ResultSeen, now: float) -> list[Effect]:
        self._admission.remember(event.key)
        request = self._requests.pop(event.key, None)
        if request is None:
            self._admission.note_claimed(event.key)
            return []
        ended = self._admission.ended(request, now, turned_away=event.turned_away)
        return ended + self._told(request, now)

    def _told(self, request: Request, now: float) -> list[Effect]:
        if request.plan is None or not request.meter.steps:
            return []
        drift = self._note_drift(request, request.plan)
        if not self._traces:
            return drift
        return [ev.PublishTrace(request.key.model, request.trace(self._device, now)), *drift]

    def _note_drift(self, request: Request, plan: Plan) -> list[Effect]:
        if plan.program is None:
            return []
        ran = request.meter.steps
        predicted = sum(plan.program.steps[number].predicted_s for number, _, _ in ran)
        model, measured = request.key.model, request.meter.compute_s
        much = self._drifts.note(model, plan.digest, measured, predicted)
        return [ev.DriftChanged()] if much else []

    def _fail(self, key: RequestKey, plan: str, failure: Failure, now: float) -> list[Effect]:
        request = self._runs.find(key, plan)
        return [] if request is None else self._endings.give_up(request, failure, now, now)

    # Jobs, time ---------------------------------------------------------------------

    def _next_job(self) -> list[Effect]:
        if self._busy:
            return []
        job = self._runs.next_job()
        if job is None and self._is_idle():
            job = self._calibrations.next_job()
        self._busy = job is not None
        return [] if job is None else [job]

    def _is_idle(self) -> bool:
        # Between its steps a request waits for others; a probe would make it wait longer.
        answered = all(r.state in (State.ANSWERED, State.FAILED) for r in self._requests.values())
        busy = self._plans.preparing or self._plans.spares.loading
        return answered and not busy and not self._leaving

    def _next_spare(self, now: float) -> list[Effect]:
        spares = self._plans.spares
        # What is loaded while probes run would count as a layer's time.
        spares.follow(now, idle=self._is_idle() and not self._calibrations.running)
        return spares.next_job(now)

    def _tick(self, _event: ev.Tick, now: float) -> list[Effect]:
        effects = self._pulse.beat(self._open(), now, busy=self._busy)
        effects += self._plans.lapse(now) + self._drills.lapse(now)
        for request in self._open():
            if now >= self._timer_of(request):
                effects += self._overdue(request, now)
        answered = self._admission.recent()
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
            return self._endings.publish(request, request.failure, now)
        if not request.key.request:
            self._admission.named(request)
        failure = Failure("deadline", "the deadline passed before the answer was there")
        # A device that was stopped meanwhile reads first what it has missed: the answer, perhaps.
        late = now > request.deadline + LATE_S
        since = now + RANK_DELAY_S if late else request.deadline
        return self._endings.give_up(request, failure, since, now)
