"""The accounting of a load: each request ends in exactly one class."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from agent.drill.ledger import GRACE_S, Judgement, Ledger, judge
from agent.wire.messages import Answer, Failure
from agent.wire.tensors import TensorMessage, tensor_message

IDENTICAL, RIGHT = Judgement("identical"), Judgement("right")
EXPECTED = {"scores": np.array([1.0, -4.0, 0.5], np.float32)}


def answer(outputs: dict[str, Any] | None, error: Failure | None = None) -> Answer:
    told = outputs and {
        name: value if isinstance(value, TensorMessage) else tensor_message(value)
        for name, value in outputs.items()
    }
    return Answer("r", "m", "0" * 32, ok=error is None, outputs=told, error=error)


def ledger(**answers: tuple[float, Judgement]) -> Ledger:
    """Return a ledger of requests sent at 0 s, each with one answer."""
    made = Ledger()
    for name, (at, judgement) in answers.items():
        made.send(name, 0.0, 5.0)
        made.answer(name, at, judgement)
    return made


def test_each_request_is_counted_once() -> None:
    made = ledger(
        a=(0.1, IDENTICAL),
        b=(0.2, RIGHT),
        c=(0.3, Judgement("error", "deadline")),
        d=(0.4, Judgement("error", "compute")),
        e=(0.5, Judgement("error", "deadline")),
        f=(0.6, Judgement("wrong", "off by 0.5")),
    )
    made.send("g", 1.0, 5.0)
    counted = made.tally()
    assert (counted.sent, counted.right, counted.identical, counted.open) == (7, 2, 1, 1)
    assert counted.errors == {"compute": 1, "deadline": 2}
    assert counted.wrong == {"f": "off by 0.5"}
    assert counted.latencies_s == (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
    assert not counted.lost
    assert not counted.clean


def test_errors_that_are_told_are_no_broken_promise() -> None:
    assert ledger(a=(0.1, Judgement("error", "deadline")), b=(0.1, RIGHT)).tally().clean


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        (IDENTICAL, RIGHT, True),
        (IDENTICAL, Judgement("wrong", "other"), False),
        (IDENTICAL, Judgement("error", "deadline"), False),
        (Judgement("error", "deadline"), IDENTICAL, False),
        (Judgement("error", "deadline"), Judgement("error", "deadline"), True),
        (Judgement("error", "deadline"), Judgement("error", "compute"), False),
        (Judgement("wrong", "other"), Judgement("wrong", "other"), False),
    ],
)
def test_a_second_answer_is_a_duplicate_where_it_says_something_else(
    first: Judgement, second: Judgement, *, same: bool
) -> None:
    made = ledger(a=(0.5, first))
    before = made.tally()
    assert not made.answer("a", 0.7, second)
    after = made.tally()
    assert (after.repeated, after.duplicated) == ((("a",), ()) if same else ((), ("a",)))
    assert (after.right, after.wrong, after.errors) == (before.right, before.wrong, before.errors)
    assert after.latencies_s == (0.5,)
    assert after.clean == (same and before.clean)


def test_what_is_not_answered_in_time_is_lost_even_if_it_comes_later() -> None:
    made = Ledger()
    made.send("a", 1.0, 5.0)
    made.send("b", 1.0, 5.0)
    last = 6.0 + GRACE_S
    assert made.expire(last) == []
    assert made.answer("b", last, IDENTICAL)
    assert made.expire(last + 0.1) == ["a"]
    assert not made.answer("a", last + 1.0, IDENTICAL)
    counted = made.tally()
    assert counted.lost == ("a",)
    assert (counted.right, counted.open, made.open) == (1, 0, 0)
    assert not counted.clean


def test_an_answer_too_late_is_lost_though_nobody_looked_meanwhile() -> None:
    made = Ledger()
    made.send("a", 0.0, 5.0)
    assert not made.answer("a", 5.0 + GRACE_S + 0.1, IDENTICAL)
    assert made.tally().lost == ("a",)
    assert made.entry("a").latency_s is None


def test_a_tally_is_of_what_was_sent_within_a_time() -> None:
    made = Ledger()
    for number in range(4):
        made.send(f"r{number}", float(number), 5.0)
    assert made.tally(1.0, 3.0).sent == 2
    assert made.tally(until=1.0).sent == 1


@pytest.mark.parametrize(
    ("told", "verdict"),
    [
        ({"scores": EXPECTED["scores"]}, "identical"),
        ({"scores": EXPECTED["scores"] + np.float32(2e-5)}, "right"),
        ({"scores": EXPECTED["scores"] + np.float32(2e-4)}, "wrong"),
        ({"scores": EXPECTED["scores"][:2]}, "wrong"),
        ({"other": EXPECTED["scores"]}, "wrong"),
        ({"scores": TensorMessage("float32", (3,), memoryview(b"\0\0"))}, "wrong"),
        (None, "wrong"),
    ],
)
def test_an_answer_is_compared_with_what_one_device_gives(
    told: dict[str, Any] | None, verdict: str
) -> None:
    judged = judge(answer(told), EXPECTED, 1e-5)
    assert judged.verdict == verdict
    assert bool(judged.cause) == (verdict == "wrong")


def test_an_error_is_judged_by_its_code() -> None:
    told = answer(None, Failure("deadline", "the deadline passed"))
    assert judge(told, EXPECTED, 1e-5) == Judgement("error", "deadline")
    told = Answer("r", "m", "0" * 32, ok=False)
    assert judge(told, EXPECTED, 1e-5).verdict == "wrong"
