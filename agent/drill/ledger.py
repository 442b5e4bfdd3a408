"""What became of each request of a load: right, wrong, an error, lost, answered twice. Pure.

Rules: a request's first answer counts; a further one that says the same is a repetition, which MQTT
allows, and one that says something else a duplicate; a request that is not answered `GRACE_S` after
its deadline is lost, whatever comes later.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from agent.comparison import equal, relative_error
from agent.errors import WireError
from agent.wire.tensors import message_array

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from agent.wire.messages import Answer

# The last of 32 devices tells an error 9.6 s after the deadline (docs/reliability.md).
GRACE_S = 10.0

Verdict = Literal["identical", "right", "wrong", "error"]


@dataclass(frozen=True, slots=True)
class Judgement:
    """What an answer is worth: `right` is right to rounding, `cause` tells what is not right."""

    verdict: Verdict
    cause: str = ""

    def agrees(self, other: Judgement) -> bool:
        """Tell whether two answers say the same."""
        right = ("identical", "right")
        both_right = self.verdict in right and other.verdict in right
        return both_right or (
            self.verdict == other.verdict == "error" and self.cause == other.cause
        )


@dataclass(slots=True)
class Entry:
    """One request; times in seconds of the clock that the ledger is given."""

    name: str
    sent_at: float
    deadline: float
    answered_at: float | None = None
    judgement: Judgement | None = None
    answers: int = 0
    contradicted: bool = False
    lost: bool = False

    @property
    def latency_s(self) -> float | None:
        """From sending to the first answer, where there is one in time."""
        return None if self.lost or self.answered_at is None else self.answered_at - self.sent_at


@dataclass(frozen=True, slots=True)
class Tally:
    """What became of some requests. `identical` are among the `right` ones; `open` are undecided.

    `errors` counts clear errors by their code, `wrong` names requests with the reason;
    `duplicated` have two answers that differ, `repeated` the same one twice.
    """

    sent: int = 0
    right: int = 0
    identical: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    wrong: dict[str, str] = field(default_factory=dict)
    lost: tuple[str, ...] = ()
    duplicated: tuple[str, ...] = ()
    repeated: tuple[str, ...] = ()
    open: int = 0
    latencies_s: tuple[float, ...] = ()

    @property
    def clean(self) -> bool:
        """Whether nothing was lost, wrong or duplicated."""
        return not self.lost and not self.wrong and not self.duplicated


class Ledger:
    """The requests of one load, by their ids."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._open: dict[str, Entry] = {}

    @property
    def open(self) -> int:
        """How many requests are neither answered nor lost."""
        return len(self._open)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def is_open(self, name: str) -> bool:
        """Tell whether request `name` was sent and is neither answered nor lost."""
        return name in self._open

    def entry(self, name: str) -> Entry:
        """Return what is known of a request that was sent."""
        return self._entries[name]

    def send(self, name: str, now: float, timeout_s: float) -> None:
        """Note that request `name` is sent at time `now`, to be answered within `timeout_s`."""
        entry = Entry(name, now, now + timeout_s)
        self._entries[name] = self._open[name] = entry

    def answer(self, name: str, now: float, judgement: Judgement) -> bool:
        """Note an answer; return whether it is the first, and in time."""
        entry = self._entries[name]
        entry.answers += 1
        if self._open.pop(name, None) is None:
            first = entry.judgement
            entry.contradicted |= first is not None and not first.agrees(judgement)
            return False
        if now > entry.deadline + GRACE_S:
            entry.lost = True
            return False
        entry.answered_at, entry.judgement = now, judgement
        return True

    def expire(self, now: float) -> list[str]:
        """Give up what is overdue at time `now`; return the ids."""
        overdue = [e for e in self._open.values() if now > e.deadline + GRACE_S]
        for entry in overdue:
            entry.lost = True
            del self._open[entry.name]
        return [entry.name for entry in overdue]

    def tally(self, since: float = float("-inf"), until: float = float("inf")) -> Tally:
        """Count the requests that were sent from `since` on and before `until`."""
        return tally(e for e in self._entries.values() if since <= e.sent_at < until)


def tally(entries: Iterable[Entry]) -> Tally:
    """Count entries."""
    chosen = list(entries)
    judged = [(e, e.judgement) for e in chosen if e.judgement is not None]
    verdicts = Counter(judgement.verdict for _, judgement in judged)
    errors = Counter(judgement.cause for _, judgement in judged if judgement.verdict == "error")
    return Tally(
        sent=len(chosen),
        right=verdicts["right"] + verdicts["identical"],
        identical=verdicts["identical"],
        errors=dict(sorted(errors.items())),
        wrong={e.name: judged.cause for e, judged in judged if judged.verdict == "wrong"},
        lost=tuple(e.name for e in chosen if e.lost),
        duplicated=tuple(e.name for e in chosen if e.contradicted),
        repeated=tuple(e.name for e in chosen if e.answers > 1 and not e.contradicted),
        open=sum(e.judgement is None and not e.lost for e in chosen),
        latencies_s=tuple(e.latency_s for e in chosen if e.latency_s is not None),
    )


def judge(answer: Answer, expected: Mapping[str, NDArray[Any]], bound: float) -> Judgement:
    """Compare an answer with tensors to what a single device gives.

    Args:
        answer: it has `outputs`, or an error.
        expected: the outputs by name.
        bound: the largest difference that is right, relative to the largest output.
    """
    if answer.error is not None and not answer.ok:
        return Judgement("error", answer.error.code)
    try:
        outputs = {name: message_array(told) for name, told in (answer.outputs or {}).items()}
    except WireError as error:
        return Judgement("wrong", str(error))
    if outputs.keys() != expected.keys():
        return Judgement("wrong", f"it has the outputs {sorted(outputs)}")
    if all(equal(expected[name], outputs[name]) for name in expected):
        return Judgement("identical")
    worst = max(relative_error(expected[name], outputs[name]) for name in expected)
    if worst <= bound:
        return Judgement("right")
    return Judgement("wrong", f"off by {worst:.2g} of the largest output")
