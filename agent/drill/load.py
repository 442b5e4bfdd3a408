"""The steady stream of requests of a drill, and what their answers are worth. Sans-IO.

Requests go out whatever happens, but never more than `MOST_OPEN` at a time, so that it is the fault
that is measured and not a queue.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agent.drill.ledger import Judgement, Ledger, judge
from agent.errors import WireError
from agent.wire.tensors import message_array

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from agent.wire.messages import Answer

LEAST_INTERVAL_S = 0.05
MOST_OPEN = 4
WARM_UP = 8


@dataclass(frozen=True, slots=True)
class Ask:
    """Send a request for tensors with payload number `payload`."""

    request: str
    payload: int


class Load:
    """Requests whose ids start with `prefix`, each to be answered within `timeout_s`.

    `references` are the outputs of each payload; where one is None, its first answer is taken.
    `interval_s` is the time between two requests; None is twice what one takes. `bound` is the
    largest error that is right, relative to the largest output.
    """

    def __init__(
        self,
        references: Sequence[Mapping[str, NDArray[Any]] | None],
        prefix: str,
        timeout_s: float,
        interval_s: float | None,
        bound: float,
    ) -> None:
        self._references = list(references)
        self._prefix = prefix
        self._timeout_s = timeout_s
        self._interval_s = interval_s
        self._bound = bound
        self._payloads: dict[str, int] = {}
        self._next_at = 0.0
        self._answers = 0
        self.ledger = Ledger()

    @property
    def warm(self) -> bool:
        """Whether every payload has its reference, and what a request takes is known."""
        known = all(reference is not None for reference in self._references)
        return known and self._answers >= WARM_UP

    def due(self, now: float) -> list[Ask]:
        """Return the request that is due, if one is."""
        most = MOST_OPEN if self.warm else 1
        if now < self._next_at or self.ledger.open >= most:
            return []
        if self.warm and self._interval_s is None:
            latencies = self.ledger.tally().latencies_s
            self._interval_s = max(LEAST_INTERVAL_S, 2.0 * statistics.median(latencies))
        self._next_at = now + (self._interval_s or 0.0)
        return [self.ask(self.reserve(), now)]

    def next_at(self) -> float:
        """Return when the next request is due."""
        return self._next_at

    def reserve(self) -> str:
        """Return the id of a request that is yet to be sent."""
        number = len(self._payloads)
        name = f"{self._prefix}-{number}"
        self._payloads[name] = number % len(self._references)
        return name

    def ask(self, name: str, now: float) -> Ask:
        """Return a request, of a reserved id, that is sent now."""
        self.ledger.send(name, now, self._timeout_s)
        return Ask(name, self._payloads[name])

    def answered(self, name: str, answer: Answer, now: float, *, again: bool) -> Judgement | None:
        """Take an answer; return what it is worth, or None if it is not one for this load.

        `again` tells that the broker may have delivered it before; then it is no second answer.
        """
        if name not in self.ledger or (again and self.ledger.entry(name).answers):
            return None
        payload = self._payloads[name]
        self._answers += 1
        reference = self._references[payload]
        if reference is None:
            judgement = self._first(payload, answer)
        else:
            judgement = judge(answer, reference, self._bound)
        self.ledger.answer(name, now, judgement)
        return judgement

    def _first(self, payload: int, answer: Answer) -> Judgement:
        if not answer.ok:
            return judge(answer, {}, self._bound)
        try:
            outputs = {name: message_array(told) for name, told in (answer.outputs or {}).items()}
        except WireError as error:
            return Judgement("wrong", str(error))
        self._references[payload] = outputs
        return Judgement("identical")
