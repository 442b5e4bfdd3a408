"""Answers on their way: an error may not contradict a result that this device has not heard of yet.

Rules of the file: a result goes out at once. An error waits until an echo has come back through the
broker: what others have answered before has then arrived here. When a connection is back, answers
that were published and never delivered wait for an echo as well and are published again, because a
broker that was killed loses what it has acknowledged.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from agent.worker.events import PublishAnswer, RequestKey

if TYPE_CHECKING:
    from collections.abc import Callable

MARK = b"fence"
NUMBER_BYTES = 8
# What is beyond goes out at once: errors that a flood of requests gets.
MAX_HELD = 1024


class Outbox:
    """Holds up to `limit` answers that were not seen yet; the oldest are forgotten.

    `send` publishes an answer, `echo` a message that comes back to `echoed`.
    """

    def __init__(
        self, send: Callable[[PublishAnswer], None], echo: Callable[[bytes], None], limit: int
    ) -> None:
        self._send = send
        self._echo = echo
        self._limit = limit
        self._sent: OrderedDict[RequestKey, PublishAnswer] = OrderedDict()
        self._held: OrderedDict[RequestKey, tuple[int, PublishAnswer]] = OrderedDict()
        self._asked = 0
        self._returned = 0

    def take(self, effect: PublishAnswer) -> None:
        """Publish an answer, now or when an echo has come back."""
        if effect.answer.ok:
            self._publish(effect)
        else:
            self._hold(effect)
            self._ask()

    def seen(self, key: RequestKey) -> None:
        """Forget a request whose answer the broker has delivered."""
        self._sent.pop(key, None)
        self._held.pop(key, None)

    def echoed(self, payload: bytes) -> None:
        """Take an echo; those of others than this outbox are ignored."""
        if not payload.startswith(MARK):
            return
        number = int.from_bytes(payload[len(MARK) :], "big")
        if not self._returned < number <= self._asked:
            return
        self._returned = number
        due = [effect for asked, effect in self._held.values() if asked <= number]
        for effect in due:
            del self._held[_key(effect)]
            self._publish(effect)
        self._ask()

    def reconnected(self) -> None:
        """Look again after what was on its way when the connection broke."""
        self._returned = self._asked
        waiting = [effect for _, effect in self._held.values()]
        for effect in [*self._sent.values(), *waiting]:
            self._hold(effect)
        self._sent.clear()
        self._ask()

    def _publish(self, effect: PublishAnswer) -> None:
        self._sent[_key(effect)] = effect
        if len(self._sent) > self._limit:
            self._sent.popitem(last=False)
        self._send(effect)

    def _hold(self, effect: PublishAnswer) -> None:
        # An echo that is under way has left before this answer was to be held.
        self._held[_key(effect)] = (self._asked + 1, effect)
        if len(self._held) > MAX_HELD:
            self._publish(self._held.popitem(last=False)[1][1])

    def _ask(self) -> None:
        if self._held and self._asked == self._returned:
            self._asked += 1
            self._echo(MARK + self._asked.to_bytes(NUMBER_BYTES, "big"))


def _key(effect: PublishAnswer) -> RequestKey:
    answer = effect.answer
    return RequestKey(answer.model, answer.request, answer.input)
