"""A drill, sans-IO: one device after the other fails under load, and the fleet recovers.

Rules: a case begins only when the fleet is whole, and is over once it is whole again and has served
in peace for a while; where a device does not come back, no further one is made to fail.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from agent.drill.fleet import FleetView
from agent.drill.load import Ask, Load
from agent.drill.report import Report
from agent.drill.run import Run
from agent.wire.drill import Drill

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from agent.drill.course import Case, Course
    from agent.drill.run import Outcome
    from agent.wire.drill import Drilled
    from agent.wire.messages import Answer, PlanHeader, Status

TURN_S = 0.1
WARM_S = 30.0
ARMING_S = 5.0
LAPSES_S = 30.0
# What comes twice comes soon after.
ENDING_S = 2.0

SILENT = (
    "it does not answer: is it older than drills, or does the broker's access list keep this user "
    "from device/+/drill?"
)
FORGOT = "it waited for the request and told nothing more"
MISSED = "the request never got there on this device"
NOT_STARTED = "nothing started it again; systemd would (systemd/README.md)"
NOT_BACK = "it was not back in the plan in time; see `halomq devices` and its log"


@dataclass(frozen=True, slots=True)
class StatusSeen:
    """A device told its status, or its will did."""

    status: Status


@dataclass(frozen=True, slots=True)
class PlanSeen:
    """A plan was announced."""

    header: PlanHeader


@dataclass(frozen=True, slots=True)
class AnswerSeen:
    """An answer to `request` came; `again` if the broker may have delivered it before."""

    request: str
    answer: Answer
    again: bool = False


@dataclass(frozen=True, slots=True)
class DrilledSeen:
    """An agent told how a drill goes."""

    drilled: Drilled


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class AskDrill:
    """Ask a device to fail."""

    device: str
    drill: Drill


Event = StatusSeen | PlanSeen | AnswerSeen | DrilledSeen | Tick
Effect = Ask | AskDrill


class Phase(Enum):
    """Where a drill is."""

    CALM = "serving in peace"
    ARMING = "asking"
    FLYING = "waiting for the request to get there"
    RECOVERING = "waiting for the fleet to be whole again"
    AFTER = "serving in peace again"
    ENDING = "waiting for the last answers"
    DONE = "done"


_OF_A_CASE = frozenset({Phase.ARMING, Phase.FLYING, Phase.RECOVERING, Phase.AFTER})


class Director:
    """One drill of client `sender` by `course`; `prefix` starts the ids of its requests.

    `references` are the outputs of each payload; where one is None, its first answer is taken.
    """

    def __init__(
        self,
        course: Course,
        references: Sequence[Mapping[str, NDArray[Any]] | None],
        sender: str,
        prefix: str,
    ) -> None:
        self._course = course
        self._sender = sender
        self._prefix = prefix
        self._cases = list(course.cases)
        self._view = FleetView(course.model)
        self._load = Load(references, prefix, course.timeout_s, course.interval_s, course.bound)
        self._runs: list[Run] = []
        self._phase = Phase.CALM
        self._since: float | None = None
        self._calm_from = 0.0
        self.failure: str | None = None

    @property
    def done(self) -> bool:
        """Whether there is nothing left to do."""
        return self._phase is Phase.DONE

    @property
    def doing(self) -> str:
        """What is done now, in words."""
        if self._phase not in _OF_A_CASE:
            return self._phase.value
        return f"{self._runs[-1].case}: {self._phase.value}"

    @property
    def share(self) -> float:
        """The share of the cases that are over."""
        over = len(self._runs) - (self._phase in _OF_A_CASE)
        return over / max(1, len(self._runs) + len(self._cases))

    def report(self) -> Report:
        """Return what was seen so far."""
        return Report(self._course, self._load.ledger, tuple(self._runs), tuple(self._cases))

    def next_timer(self, now: float) -> float:
        """Return when a `Tick` is due at the latest."""
        next_at = self._load.next_at()
        return min(next_at, now + TURN_S) if next_at > now else now + TURN_S

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event at time `now` (seconds, monotonic); return what is to be done."""
        if self._since is None:
            self._since = now
        self._note(event, now)
        self._load.ledger.expire(now)
        steps: dict[Phase, Callable[[float], list[Effect]]] = {
            Phase.CALM: self._calm,
            Phase.ARMING: self._arming,
            Phase.FLYING: self._flying,
            Phase.RECOVERING: self._recovering,
            Phase.AFTER: self._after,
            Phase.ENDING: self._ending,
        }
        effects = steps[self._phase](now) if self._phase in steps else []
        if self._phase not in (Phase.ENDING, Phase.DONE):
            effects += self._load.due(now)
        return effects

    # What is seen --------------------------------------------------------------------------

    def _note(self, event: Event, now: float) -> None:
        match event:
            case StatusSeen(status):
                self._view.see_status(status)
            case PlanSeen(header):
                self._view.see_plan(header)
                if self._phase in _OF_A_CASE and header.model == self._course.model:
                    self._runs[-1].see_plan(header, now)
            case AnswerSeen():
                self._note_answer(event, now)
            case DrilledSeen(drilled) if self._phase in _OF_A_CASE:
                self._runs[-1].see_drilled(drilled, now)

    def _note_answer(self, seen: AnswerSeen, now: float) -> None:
        warm, answer = self._load.warm, seen.answer
        judgement = self._load.answered(seen.request, answer, now, again=seen.again)
        if judgement is not None and judgement.verdict in ("error", "wrong") and not warm:
            told = answer.error.text if answer.error else judgement.cause
            self._fail(
                f"{self._course.model} does not serve as it should before anything fails: {told}",
                now,
            )
        elif self._load.warm and not warm:
            self._calm_from = now

    # Phases --------------------------------------------------------------------------------

    def _move(self, phase: Phase, now: float) -> None:
        self._phase, self._since = phase, now

    def _waited(self, now: float) -> float:
        return now - (now if self._since is None else self._since)

    def _fail(self, text: str, now: float) -> None:
        self.failure = text
        self._move(Phase.DONE, now)

    def _calm(self, now: float) -> list[Effect]:
        whole = self._view.plan is not None and self._view.whole(*self._course.devices)
        if not whole or not self._load.warm:
            self._calm_from = now
        elif now - self._calm_from >= self._course.pause_s:
            return self._next_case(now)
        if self._waited(now) > self._course.pause_s + max(WARM_S, self._course.patience_s):
            missing = [d for d in self._course.devices if not self._view.serves(d)]
            listed = ", ".join(missing) or "the fleet"
            model = self._course.model
            self._fail(
                f"nothing was drilled: {listed} did not come to serve {model} by its plan", now
            )
        return []

    def _next_case(self, now: float) -> list[Effect]:
        if not self._cases:
            self._move(Phase.ENDING, now)
            return []
        case = self._cases.pop(0)
        run = Run(
            case=case,
            calm_from=self._calm_from,
            asked_at=now,
            epoch=self._view.epoch,
            reference=f"{self._prefix}-drill-{len(self._runs)}",
            session=self._view.session(case.device) or "",
            request=self._load.reserve(),
        )
        self._runs.append(run)
        self._move(Phase.ARMING, now)
        if reason := self._unmet(case):
            run.end("skipped", now, reason)
            return []
        return [AskDrill(case.device, self._drill_of(run))]

    def _unmet(self, case: Case) -> str:
        """Say why a case cannot be met."""
        if not self._view.serves(case.device):
            return "the plan does without it now"
        if case.at.point == "answer" and case.device != self._view.devices[0]:
            return f"{self._view.devices[0]} answers, not this one"
        return ""

    def _drill_of(self, run: Run) -> Drill:
        case = run.case
        return Drill(
            reference=run.reference,
            sender=self._sender,
            session=run.session,
            fault=case.fault,
            point=case.at.point,
            model=self._course.model,
            request=run.request,
            step=case.at.step,
            seconds=self._course.seconds,
            lapses_s=LAPSES_S,
        )

    def _arming(self, now: float) -> list[Effect]:
        run = self._runs[-1]
        if run.told == "armed":
            self._move(Phase.FLYING, now)
            return [self._load.ask(run.request, now)]
        if run.outcome == "skipped":
            return self._next_case(now)
        if run.told == "refused":
            return self._skip("refused", now)
        if self._waited(now) > ARMING_S:
            return self._skip("silent", now, SILENT)
        return []

    def _skip(self, outcome: Outcome, now: float, reason: str = "") -> list[Effect]:
        self._runs[-1].end(outcome, now, reason)
        return self._next_case(now)

    def _flying(self, now: float) -> list[Effect]:
        run = self._runs[-1]
        if run.case.fault == "die" and self._view.session(run.case.device) != run.session:
            run.meet(now)
        if run.met_at is not None:
            self._move(Phase.RECOVERING, now)
        elif run.told in ("missed", "lapsed"):
            return self._skip("missed", now, MISSED)
        elif self._waited(now) > LAPSES_S + ARMING_S:
            return self._skip("silent", now, FORGOT)
        return []

    def _recovering(self, now: float) -> list[Effect]:
        run = self._runs[-1]
        self._look(run, now)
        if run.back_at is not None and not self._load.ledger.is_open(run.request):
            self._calm_from = run.back_at
            self._move(Phase.AFTER, now)
        elif self._waited(now) > self._course.seconds + self._course.patience_s:
            died = run.case.fault == "die" and self._view.session(run.case.device) is None
            run.end("not back", now, NOT_STARTED if died else NOT_BACK)
            self._move(Phase.ENDING, now)
        return []

    def _look(self, run: Run, now: float) -> None:
        device = run.case.device
        run.see_fleet(self._view.session(device), whole=self._view.whole(device), now=now)

    def _after(self, now: float) -> list[Effect]:
        run = self._runs[-1]
        self._look(run, now)
        if run.back_at is None:
            self._move(Phase.RECOVERING, now)
        elif now - run.back_at >= self._course.pause_s:
            run.end("back", now)
            return self._next_case(now)
        return []

    def _ending(self, now: float) -> list[Effect]:
        if not self._load.ledger.open and self._waited(now) >= ENDING_S:
            self._move(Phase.DONE, now)
        return []
