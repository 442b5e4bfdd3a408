"""The accounting sees what must not be: lost, wrong and duplicated."""

from __future__ import annotations

from tests.chaos.ledger import Ledger


def told(ledger: Ledger) -> dict[str, object]:
    names = ("sent", "exact", "errors", "lost", "wrong", "duplicated")
    return {name: ledger.counts()[name] for name in names}


def one_request() -> Ledger:
    ledger = Ledger()
    ledger.sent("r", 0, 1.0)
    ledger.accepted("r", 1.1)
    return ledger


def test_an_answered_request_is_exact() -> None:
    ledger = one_request()
    assert ledger.open() == ["r"]
    ledger.answered("r", b"answer", "exact", 1.5)
    counts = {"sent": 1, "exact": 1, "errors": {}, "lost": 0, "wrong": 0, "duplicated": 0}
    assert told(ledger) == counts
    assert ledger.open() == []
    assert ledger.entries["r"].latency_s == 0.5


def test_an_error_is_told_by_its_cause() -> None:
    ledger = one_request()
    ledger.answered("r", b"answer", "deadline", 1.5)
    counts = {"exact": 0, "errors": {"deadline": 1}, "lost": 0, "wrong": 0, "duplicated": 0}
    assert told(ledger) == {"sent": 1, **counts}


def test_a_request_that_the_broker_accepted_and_nobody_answered_is_lost() -> None:
    assert one_request().lost() == ["r"]


def test_a_request_that_the_broker_never_accepted_is_refused() -> None:
    ledger = Ledger()
    ledger.sent("r", 0, 1.0)
    assert ledger.lost() == []
    assert ledger.counts()["refused"] == 1


def test_a_wrong_result_is_seen_whatever_comes_before_or_after_it() -> None:
    for verdicts in (["wrong"], ["exact", "wrong"], ["deadline", "wrong"]):
        ledger = one_request()
        for number, verdict in enumerate(verdicts):
            ledger.answered("r", bytes([number]), verdict, 2.0)
        assert ledger.wrong() == ["r"]


def test_an_answer_to_nothing_that_was_asked_is_wrong() -> None:
    ledger = one_request()
    ledger.answered("another", b"answer", "exact", 1.5)
    assert ledger.wrong() == ["another"]
    assert ledger.lost() == ["r"]


def test_two_answers_that_say_different_things_are_a_duplicate() -> None:
    for verdicts in (["exact", "deadline"], ["deadline", "exact"], ["compute", "deadline"]):
        ledger = one_request()
        for number, verdict in enumerate(verdicts):
            ledger.answered("r", bytes([number]), verdict, 1.5 + number)
        assert ledger.duplicated() == ["r"]
        assert ledger.entries["r"].latency_s == 0.5


def test_an_answer_that_comes_again_is_one_answer() -> None:
    ledger = one_request()
    ledger.answered("r", b"answer", "exact", 1.5)
    ledger.answered("r", b"answer", "exact", 1.6)
    ledger.answered("r", b"the same of another device", "exact", 1.7)
    counts = ledger.counts()
    assert (counts["delivered_again"], counts["repeated"], counts["duplicated"]) == (1, 1, 0)


def test_a_request_that_was_sent_twice_may_have_two_answers_but_not_three() -> None:
    ledger = one_request()
    ledger.sent_again("r")
    ledger.answered("r", b"1", "overloaded", 1.5)
    ledger.answered("r", b"2", "exact", 1.6)
    assert ledger.duplicated() == []
    ledger.answered("r", b"3", "deadline", 1.7)
    assert ledger.duplicated() == ["r"]
