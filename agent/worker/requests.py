"""The requests of a worker: from their arrival until the broker delivers their answer.

Rules: the first device of a plan answers; everybody keeps a request's payload until its answer is
seen; a newer plan starts unanswered requests again from their payload; what fails on a device, or
passes its deadline, ends in an error that the first device publishes at once, and each further one
`RANK_DELAY_S` later if the ones before it kept silent.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from agent.wire.messages import Failure, Trace
from agent.worker.meter import Meter, milliseconds, transfer_traces

if TYPE_CHECKING:
    from agent.worker.events import ReplyTo, RequestKey
    from agent.worker.execution import Execution
    from agent.worker.plans import Plan

RANK_DELAY_S = 0.3


class State(Enum):
    """Where a request is on this device."""

    WAITING = "waiting for a plan"
    DECODING = "decoding"
    RUNNING = "running"
    CONCLUDING = "making the answer"
    FAILED = "failed here, to be answered with an error when this device's turn comes"
    ANSWERED = "answered, not yet seen"


_ENDS = frozenset({State.FAILED, State.ANSWERED})
TRANSITIONS: dict[State, frozenset[State]] = {
    State.WAITING: frozenset({State.DECODING, State.RUNNING}) | _ENDS,
    State.DECODING: frozenset({State.RUNNING, State.WAITING}) | _ENDS,
    State.RUNNING: frozenset({State.CONCLUDING, State.WAITING}) | _ENDS,
    State.CONCLUDING: frozenset({State.WAITING}) | _ENDS,
    State.FAILED: frozenset({State.WAITING, State.ANSWERED}),
    State.ANSWERED: frozenset(),
}


@dataclass(slots=True, eq=False)
class Request:
    """A request that is not yet known to be answered.

    `number` orders arrivals, (`turn`, `number`) what is worked on first.
    """

    key: RequestKey
    number: int
    turn: int
    payload: bytes
    reply: ReplyTo
    arrived: float
    deadline: float
    state: State = State.WAITING
    image: Any = None
    plan: Plan | None = None
    execution: Execution | None = None
    meter: Meter = field(default_factory=Meter)
    finished: float | None = None
    failure: Failure | None = None
    due: float = 0.0

    @property
    def client(self) -> str:
        """Who asks."""
        return self.reply.client

    def move(self, state: State) -> None:
        """Change the state along `TRANSITIONS`; anything else is a bug of the core."""
        if state not in TRANSITIONS[self.state]:
            raise AssertionError(f"request {self.key.request}: {self.state} to {state}")
        self.state = state
        if state is State.ANSWERED:
            self.payload = b""

    def reset(self) -> None:
        """Go back to waiting for a plan; the payload and the decoded picture are kept."""
        self.move(State.WAITING)
        self.execution = None
        self.failure = None
        self.finished = None
        self.meter.restart()

    def fail(self, failure: Failure, due: float) -> None:
        """Give up here; the error is to be published at time `due` if no answer was seen."""
        self.move(State.FAILED)
        self.failure, self.due = failure, due

    def trace(self, device: str, now: float) -> Trace:
        """Return what the request cost here; waiting is what is neither computing nor decoding.

        Only for a request whose steps ran.
        """
        meter, execution = self.meter, self.execution
        if execution is None:
            raise AssertionError("a step ran without an execution")
        program, origin = execution.program, self.arrived
        end = self.finished or max((stop for _, _, stop in meter.steps), default=now)
        busy = meter.compute_s + meter.decode_s
        answered = end if meter.answered is None else meter.answered
        decoded = origin if meter.decoded is None else meter.decoded - meter.decode_s
        return Trace(
            device=device,
            request=self.key.request,
            epoch=self.plan.header.epoch if self.plan else 0,
            steps=meter.step_traces(program, origin),
            decode_ms=milliseconds(meter.decode_s),
            compute_ms=milliseconds(meter.compute_s),
            wait_ms=milliseconds(max(0.0, end - origin - busy)),
            total_ms=milliseconds(end - origin),
            bytes_sent=sum(transfer.nbytes for transfer in meter.sends),
            bytes_received=sum(transfer.nbytes for transfer in meter.receives),
            decode_start_ms=milliseconds(decoded - origin),
            answer_ms=milliseconds(answered - end),
            sends=transfer_traces(meter.sends, program, origin),
            receives=transfer_traces(meter.receives, program, origin),
        )
