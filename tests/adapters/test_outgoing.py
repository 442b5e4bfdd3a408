"""What waits for a connection is bounded, and is forgotten once it is sent or lost."""

from __future__ import annotations

from agent.adapters.outgoing import MAX_BYTES, MAX_UNSURE, SMALL_BYTES, Outgoing


def test_bytes_are_bounded_but_small_messages_go_through() -> None:
    outgoing = Outgoing()
    half = MAX_BYTES // 2
    outgoing.add(1, half, 1)
    assert outgoing.refusal(half, 1) is None
    assert outgoing.refusal(half + 1, 1) == "32 MiB wait already"
    outgoing.add(2, half, 1)
    assert outgoing.refusal(SMALL_BYTES + 1, 1) is not None
    assert outgoing.refusal(SMALL_BYTES, 1) is None
    outgoing.done(1)
    assert outgoing.refusal(half, 1) is None


def test_messages_that_may_be_lost_are_bounded_in_number() -> None:
    outgoing = Outgoing()
    for number in range(MAX_UNSURE):
        assert outgoing.refusal(10, 0) is None
        outgoing.add(number, 10, 0)
    assert outgoing.refusal(10, 0) is not None
    assert outgoing.refusal(10, 1) is None
    outgoing.done(0)
    assert outgoing.refusal(10, 0) is None


def test_a_broken_connection_loses_what_may_be_lost() -> None:
    outgoing = Outgoing()
    outgoing.add(1, 100, 1)
    outgoing.add(2, 10, 0)
    outgoing.broken()
    assert outgoing.nbytes == 100
    outgoing.clear()
    assert outgoing.nbytes == 0


def test_a_number_that_paho_uses_again_counts_once() -> None:
    outgoing = Outgoing()
    outgoing.add(1, 100, 0)
    outgoing.add(1, 10, 1)
    assert outgoing.nbytes == 10
