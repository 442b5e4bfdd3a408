"""Which requests a worker takes on: names for those that have none, a bound, no repetitions.

Rules: only the answering device of a plan turns requests away and names those without an id; what
was answered, or named, is remembered for a while, so that a redelivered message starts nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from agent.wire.messages import Failure
from agent.worker.events import Effect, Log, PublishAnswer, Republish, RequestArrived, RequestKey
from agent.worker.requests import Request, State
from agent.worker.unclaimed import Unclaimed

if TYPE_CHECKING:
    from agent.worker.endings import Endings
    from agent.worker.plans import Plan, Plans

REMEMBERED = 1024


class Admission:
    """Admits requests into `requests`, at most `max_in_flight` on the answering device.

    `session` is part of the names that it gives; `deadline_s` is the deadline of a request that
    brings none.
    """

    def __init__(
        self,
        requests: dict[RequestKey, Request],
        plans: Plans,
        endings: Endings,
        *,
        session: str,
        deadline_s: float,
        max_in_flight: int,
    ) -> None:
        self._requests = requests
        self._plans = plans
        self._endings = endings
        self._session = session
        self._deadline_s = deadline_s
        self._max_in_flight = max_in_flight
        self._recent: OrderedDict[RequestKey, None] = OrderedDict()
        self._count = 0
        self.unclaimed = Unclaimed()

    def admit(self, event: RequestArrived, now: float) -> tuple[Request | None, list[Effect]]:
        """Take a request that arrived; return it if it is to start, and what is to be done."""
        key = RequestKey(event.model, event.request or "", event.input)
        if key in self._requests or not self._plans.admits(event.model):
            return None, []
        if event.redelivered and (key in self._recent or key in self.unclaimed):
            return None, []
        self._count += 1
        life = self._deadline_s if event.expires_s is None else event.expires_s
        request = Request(key, self._count, event.payload, event.reply, now, now + life)
        plan = self._plans.active.get(event.model)
        if event.request is None:
            return None, self._take_unclaimed(request, plan, now)
        self.note_claimed(key)
        if len(self._requests) >= self._admitted(plan):
            return None, self._overloaded(request, plan)
        self._requests[key] = request
        return request, []

    def claim_all(self, model: str, now: float) -> list[Effect]:
        """Name the requests for `model` that have no id: this device answers them from now on."""
        waiting = [r for r in self.unclaimed if r.state is State.WAITING]
        effects: list[Effect] = []
        for request in [r for r in waiting if r.key.model == model]:
            self.unclaimed.remove(request)
            effects.append(self._claim(request, now))
        return effects

    def named(self, request: Request) -> Request:
        """Give a request without an id one."""
        self.remember(request.key)
        name = f"{self._session}-{request.number}"
        request.key = RequestKey(request.key.model, name, request.key.input)
        return request

    def note_claimed(self, key: RequestKey) -> None:
        """Note a request with an id: it may be one that came without."""
        if self.unclaimed.claimed(key):
            self.remember(RequestKey(key.model, "", key.input))

    def remember(self, key: RequestKey) -> None:
        """Note that a request was answered or named; a redelivered one is not taken again."""
        self._recent[key] = None
        if len(self._recent) > REMEMBERED:
            self._recent.popitem(last=False)

    def recent(self) -> set[tuple[str, str]]:
        """Return the (id, fingerprint) of the requests that are remembered."""
        return {(key.request, key.input) for key in self._recent}

    def _take_unclaimed(self, request: Request, plan: Plan | None, now: float) -> list[Effect]:
        if plan is not None and self._endings.answers(plan):
            return [self._claim(request, now)]
        if len(self.unclaimed) < self._admitted(plan):
            self.unclaimed.add(request)
        return []

    def _claim(self, request: Request, now: float) -> Effect:
        key = self.named(request).key
        remaining = max(0.0, request.deadline - now)
        return Republish(key.model, key.request, request.payload, request.reply, remaining)

    def _overloaded(self, request: Request, plan: Plan | None) -> list[Effect]:
        key = request.key
        text = "more requests in flight than max_in_flight"
        log = Log("warning", text, key.request, key.model)
        if plan is None or not self._endings.answers(plan):
            return [log]
        text = f"{self._max_in_flight} requests are in flight already; try again later"
        answer = self._endings.error(request, plan, 0.0, Failure("overloaded", text))
        return [log, PublishAnswer(answer, request.reply)]

    def _admitted(self, plan: Plan | None) -> int:
        # Only the answering device turns requests away; the others must never know fewer than it.
        answers = plan is not None and self._endings.answers(plan)
        return self._max_in_flight if answers else 4 * self._max_in_flight
