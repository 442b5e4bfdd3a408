"""Which requests a worker takes on: names for those that have none, a bound, no repetitions.

Rules: only the answering device of a plan turns requests away (`overload`: which) and names those
without an id, the others never know fewer than it; what was answered, or named, is remembered for
a while, so that a redelivered message starts nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from agent.wire.messages import Failure
from agent.worker.events import Effect, Log, PublishAnswer, Republish, RequestArrived, RequestKey
from agent.worker.overload import CROWDED, LATE, MAX_BYTES, fits, late, surplus, unanswered
from agent.worker.requests import Request, State
from agent.worker.turns import Turns
from agent.worker.unclaimed import Unclaimed

if TYPE_CHECKING:
    from agent.worker.endings import Endings
    from agent.worker.plans import Plan, Plans

REMEMBERED = 1024
# Of requests, and of their bytes: how many times as many other devices keep as the answering one.
BEYOND = 4
# What a client may ask for at most, as deadlines in the configuration.
MAX_LIFE_S = 3600.0


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
        self._bound = max_in_flight
        self._turns = Turns()
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
        life = self._deadline_s if event.expires_s is None else min(event.expires_s, MAX_LIFE_S)
        turn = 0 if event.request is None else self._turns.take(event.reply.client)
        request = Request(key, self._count, turn, event.payload, event.reply, now, now + life)
        plan = self._plans.active.get(event.model)
        if event.request is None:
            return None, self._take_unclaimed(request, plan, now)
        self.note_claimed(key)
        effects = self._forget_for(request)
        if self._is_crowded(request):
            self._turns.turned_away(request, self._requests.values())
            return None, self._refuse(request, plan)
        self._requests[key] = request
        if not self._is_mine(event.model):
            return request, effects
        effects += self._make_room(request, now) + self._turn_away_late(event.model, now)
        return (None if request.state is State.ANSWERED else request), effects

    def answered(self, request: Request, now: float) -> None:
        """Note the result of a request that this device answers."""
        if request.plan is not None:
            request.plan.pace.answered(request.arrived, now)

    def ended(self, request: Request, now: float, *, turned_away: bool) -> list[Effect]:
        """Take a request's answer, which all devices get, for whose turn is next."""
        if turned_away:
            self._turns.turned_away(request, self._requests.values())
        else:
            self._turns.served(request)
        return self._turn_away_late(request.key.model, now)

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
        if not fits([*self.unclaimed, request], BEYOND * self._bound, BEYOND * MAX_BYTES):
            return self._refuse(request, plan)
        self.unclaimed.add(request)
        return []

    def _claim(self, request: Request, now: float) -> Effect:
        key = self.named(request).key
        remaining = max(0.0, request.deadline - now)
        return Republish(key.model, key.request, request.payload, request.reply, remaining)

    def _is_mine(self, model: str) -> bool:
        plan = self._plans.active.get(model)
        return plan is not None and self._endings.answers(plan)

    def _mine(self) -> list[Request]:
        return [r for r in unanswered(self._requests.values()) if self._is_mine(r.key.model)]

    def _is_crowded(self, newcomer: Request) -> bool:
        known = [*self._requests.values(), newcomer]
        return not fits(known, BEYOND * self._bound, BEYOND * MAX_BYTES)

    def _forget_for(self, newcomer: Request) -> list[Effect]:
        # Requests that others answer, and who should have turned them away by now.
        effects: list[Effect] = []
        while self._is_crowded(newcomer) and not self._is_mine(newcomer.key.model):
            waiting = unanswered([*self._requests.values(), newcomer])
            theirs = [r for r in waiting if not self._is_mine(r.key.model)]
            request, why = surplus(theirs, newcomer)
            if request is newcomer:
                break
            del self._requests[request.key]
            self._turns.turned_away(request, [*self._requests.values(), newcomer])
            text = f"forgot a request that another device has not answered: {why}"
            effects.append(Log("warning", text, request.key.request, request.key.model))
        return effects

    def _make_room(self, newcomer: Request, now: float) -> list[Effect]:
        effects: list[Effect] = []
        # What others answer is theirs to turn away.
        while not fits(mine := self._mine(), self._bound, MAX_BYTES):
            request, why = surplus(mine, newcomer)
            effects += self._turn_away(request, why, now)
            if request is newcomer:
                break
        return effects

    def _turn_away_late(self, model: str, now: float) -> list[Effect]:
        plan = self._plans.active.get(model)
        if plan is None or not self._endings.answers(plan):
            return []
        mine = [request for request in self._requests.values() if request.key.model == model]
        gone = late(unanswered(mine), plan.pace.spacing_s, now)
        return [effect for request in gone for effect in self._turn_away(request, LATE, now)]

    def _turn_away(self, request: Request, why: str, now: float) -> list[Effect]:
        key = request.key
        failure = Failure("overloaded", why.format(bound=self._bound))
        log = Log("warning", f"overloaded: {failure.text}", key.request, key.model)
        return [log, *self._endings.publish(request, failure, now)]

    def _refuse(self, request: Request, plan: Plan | None) -> list[Effect]:
        key = request.key
        log = Log("warning", f"overloaded: {CROWDED}", key.request, key.model)
        if plan is None or not self._endings.answers(plan):
            # The answering device, which knows of as many, turns it away.
            return [log]
        answer = self._endings.error(request, plan, 0.0, Failure("overloaded", CROWDED))
        return [log, PublishAnswer(answer, request.reply)]
