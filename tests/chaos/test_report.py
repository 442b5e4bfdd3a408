"""The figures of a run: which requests a fault is judged by."""

from __future__ import annotations

from tests.chaos.ledger import Ledger
from tests.chaos.report import Window, failed, figures

CLEAN = {"lost": 0, "wrong": 0, "duplicated": 0}


def ledger_of(*requests: tuple[float, float]) -> Ledger:
    """Return a ledger of requests sent and rightly answered at these times."""
    ledger = Ledger()
    for number, (sent, answered) in enumerate(requests):
        ledger.sent(str(number), 0, sent)
        ledger.accepted(str(number), sent)
        ledger.answered(str(number), b"%d" % number, "exact", answered)
    return ledger


def test_requests_are_told_by_what_they_met() -> None:
    before, in_flight, sent_during, after = (7.0, 7.1), (9.9, 10.4), (11.0, 11.3), (13.0, 13.2)
    told = figures(
        ledger_of(before, in_flight, sent_during, after, (30.0, 30.9)),
        [Window("kill", 10.0, 12.0, 10.0)],
    )["faults"]["kill"]
    latency = {when: found["median"] for when, found in told["latency_ms"].items()}
    assert latency == {"before": 100.0, "during": 400.0, "after": 200.0}
    assert told["latency_ms"]["during"]["requests"] == 2
    assert told["recovery_s"]["all"] == {"times": 1, "median": 1.3, "worst": 1.3}


def test_recovery_from_a_lost_broker_counts_from_its_return() -> None:
    told = figures(ledger_of((11.0, 12.9), (12.5, 12.8)), [Window("broker-kill", 10.0, 12.0, 12.0)])
    assert told["faults"]["broker-kill"]["recovery_s"]["all"]["median"] == 0.8


def test_a_fault_that_another_one_meets_is_not_alone() -> None:
    windows = [
        Window("kill", 10.0, 12.0, 10.0),
        Window("cut", 12.5, 13.0, 12.5),
        Window("kill", 20.0, 21.0, 20.0),
    ]
    told = figures(ledger_of((10.0, 15.0), (20.0, 20.5)), windows)["faults"]
    assert told["kill"]["recovery_s"]["all"] == {"times": 2, "median": 2.75, "worst": 5.0}
    assert told["kill"]["recovery_s"]["alone"] == {"times": 1, "median": 0.5, "worst": 0.5}
    assert told["cut"]["recovery_s"]["alone"]["times"] == 0


def test_what_breaks_the_promise_is_named() -> None:
    assert failed(CLEAN) == []
    for name in CLEAN:
        assert failed(CLEAN | {name: 1}) == [f"{name}: 1"]
    assert failed(CLEAN | {"ended": ["device-1 ended"]}) == ["device-1 ended"]
    assert failed(CLEAN | {"whole": False}) == ["the fleet did not become whole again"]
