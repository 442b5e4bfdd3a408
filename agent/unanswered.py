"""A client's requests that have no answer yet, and when each is to be sent again. No I/O.

Rules of the file: a request is sent again when a connection is back, because a broker that was
killed loses what it has acknowledged, and when the broker says that nobody listens; the id stays
the same, so a fleet that has it takes no notice. Times are in seconds of the caller's clock.
"""

from __future__ import annotations

from dataclasses import dataclass

FIRST_WAIT_S = 0.25
LAST_WAIT_S = 2.0


@dataclass(slots=True)
class Question:
    """A request as it is published; `number` is the message that the broker has to acknowledge."""

    topic: str
    payload: bytes
    content_type: str | None
    deadline: float
    number: int | None = None
    again_at: float | None = None
    wait_s: float = FIRST_WAIT_S


class Unanswered:
    """Requests by id."""

    def __init__(self) -> None:
        self._questions: dict[str, Question] = {}

    def __bool__(self) -> bool:
        return bool(self._questions)

    def add(self, name: str, question: Question) -> None:
        """Keep a request until it is removed."""
        self._questions[name] = question

    def remove(self, name: str) -> None:
        """Forget a request: it was answered, or nobody waits for it any more."""
        self._questions.pop(name, None)

    def acknowledged(self, number: int, *, heard: bool, now: float) -> None:
        """Note that the broker has a message, and whether anybody listens to its topic."""
        for question in self._questions.values():
            if question.number == number:
                question.number = None
                if not heard:
                    question.again_at = now + question.wait_s
                    question.wait_s = min(2 * question.wait_s, LAST_WAIT_S)

    def reconnected(self, now: float) -> None:
        """Have all sent again but those that the connection itself sends: not acknowledged yet."""
        for question in self._questions.values():
            if question.number is None:
                question.again_at = now

    def take_due(self, now: float) -> list[Question]:
        """Return what is to be sent again at time `now`."""
        due = [
            question
            for question in self._questions.values()
            if question.again_at is not None and question.again_at <= now < question.deadline
        ]
        for question in due:
            question.again_at = None
        return due
