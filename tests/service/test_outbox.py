"""Answers on their way: an error waits for what others may have answered before."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.service.outbox import Outbox
from agent.wire.messages import Answer, Failure
from agent.worker.events import PublishAnswer, ReplyTo, RequestKey

if TYPE_CHECKING:
    import pytest

LIMIT = 3


class Broker:
    """What an outbox has published, and its echoes that have not come back."""

    def __init__(self) -> None:
        self.outbox = Outbox(self._publish, self._echo, LIMIT)
        self.published: list[str] = []
        self.echoes: list[bytes] = []

    def _publish(self, effect: PublishAnswer) -> None:
        self.published.append(effect.answer.request)

    def _echo(self, payload: bytes) -> None:
        self.echoes.append(payload)

    def take(self, request: str, *, ok: bool) -> None:
        error = None if ok else Failure("deadline", "too late")
        answer = Answer(request, "m", "0" * 32, ok, error=error)
        self.outbox.take(PublishAnswer(answer, ReplyTo()))

    def deliver(self, request: str) -> None:
        self.outbox.seen(RequestKey("m", request, "0" * 32))

    def bring_echo(self) -> None:
        self.outbox.echoed(self.echoes.pop(0))


def test_a_result_goes_out_at_once() -> None:
    broker = Broker()
    broker.take("r", ok=True)
    assert broker.published == ["r"]
    assert not broker.echoes


def test_an_error_goes_out_once_an_echo_is_back() -> None:
    broker = Broker()
    broker.take("r", ok=False)
    assert broker.published == []
    broker.bring_echo()
    assert broker.published == ["r"]
    assert not broker.echoes


def test_an_error_is_dropped_where_an_answer_comes_before_the_echo() -> None:
    broker = Broker()
    broker.take("r", ok=False)
    broker.deliver("r")
    broker.bring_echo()
    assert broker.published == []


def test_an_echo_that_was_under_way_before_lets_no_error_out() -> None:
    broker = Broker()
    broker.take("first", ok=False)
    broker.take("second", ok=False)
    assert len(broker.echoes) == 1
    broker.bring_echo()
    assert broker.published == ["first"]
    broker.bring_echo()
    assert broker.published == ["first", "second"]


def test_foreign_and_old_echoes_are_ignored() -> None:
    broker = Broker()
    broker.take("first", ok=False)
    old = broker.echoes[0]
    broker.bring_echo()
    broker.take("second", ok=False)
    for payload in (old, b"", b"\0\0" + bytes(62), b"fence" + bytes(8), b"fence" + b"\xff" * 99):
        broker.outbox.echoed(payload)
    assert broker.published == ["first"]


def test_what_was_not_delivered_is_published_again_after_a_new_connection() -> None:
    broker = Broker()
    for request in ("delivered", "lost"):
        broker.take(request, ok=True)
    broker.deliver("delivered")
    broker.take("error", ok=False)
    lost_echo = broker.echoes.pop()
    broker.outbox.reconnected()
    broker.outbox.echoed(lost_echo)
    assert broker.published == ["delivered", "lost"]
    broker.bring_echo()
    assert sorted(broker.published[2:]) == ["error", "lost"]
    # And once more, where that connection breaks as well.
    broker.outbox.reconnected()
    broker.deliver("lost")
    broker.bring_echo()
    assert broker.published[4:] == ["error"]


def test_what_nobody_delivers_is_forgotten_beyond_the_limit() -> None:
    broker = Broker()
    for number in range(LIMIT + 2):
        broker.take(str(number), ok=True)
    broker.outbox.reconnected()
    broker.bring_echo()
    assert broker.published[LIMIT + 2 :] == ["2", "3", "4"]


def test_errors_beyond_a_bound_go_out_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.service.outbox.MAX_HELD", 2)
    broker = Broker()
    for name in ("r1", "r2", "r3"):
        broker.take(name, ok=False)
    assert broker.published == ["r1"]
    broker.bring_echo()
    broker.bring_echo()
    assert broker.published == ["r1", "r2", "r3"]
