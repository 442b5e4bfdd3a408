"""When a client sends a request again."""

from __future__ import annotations

from agent.unanswered import FIRST_WAIT_S, LAST_WAIT_S, Question, Unanswered


def asked(number: int | None = 1, deadline: float = 30.0) -> tuple[Unanswered, Question]:
    unanswered = Unanswered()
    question = Question("topic", b"picture", None, deadline, number)
    unanswered.add("r", question)
    return unanswered, question


def test_nothing_is_sent_again_while_the_connection_lasts() -> None:
    unanswered, _ = asked()
    assert unanswered.take_due(1.0) == []
    unanswered.acknowledged(1, heard=True, now=1.0)
    assert unanswered.take_due(20.0) == []


def test_what_was_acknowledged_is_sent_again_once_after_a_new_connection() -> None:
    unanswered, question = asked()
    unanswered.acknowledged(1, heard=True, now=1.0)
    unanswered.reconnected(2.0)
    assert unanswered.take_due(2.0) == [question]
    assert unanswered.take_due(2.1) == []


def test_what_was_not_acknowledged_is_left_to_the_connection() -> None:
    unanswered, _ = asked()
    unanswered.reconnected(2.0)
    assert unanswered.take_due(2.0) == []


def test_what_nobody_hears_is_sent_again_with_growing_waits() -> None:
    unanswered, question = asked()
    now, waits = 0.0, []
    for number in range(1, 7):
        question.number = number
        unanswered.acknowledged(number, heard=False, now=now)
        began = now
        while not unanswered.take_due(now):
            now += FIRST_WAIT_S
        waits.append(now - began)
    assert waits == [FIRST_WAIT_S, 2 * FIRST_WAIT_S, 4 * FIRST_WAIT_S, *[LAST_WAIT_S] * 3]


def test_what_was_answered_or_is_too_old_is_not_sent_again() -> None:
    unanswered, _ = asked(number=None, deadline=3.0)
    unanswered.reconnected(3.0)
    assert unanswered.take_due(3.0) == []
    unanswered, _ = asked(number=None)
    unanswered.remove("r")
    unanswered.remove("r")
    unanswered.reconnected(2.0)
    assert unanswered.take_due(2.0) == []
    assert not unanswered
