"""What a meter notes, as the bounded trace that is published of it."""

from __future__ import annotations

from itertools import pairwise

from agent.wire.messages import MAX_TRANSFERS
from agent.worker.meter import Transfer, transfer_traces
from tests.builders import chain

ROWS = 10_000
PROGRAM = chain([{"a": (0, ROWS)}, {"a": (0, ROWS)}], ROWS, "a")["a"]


def row(number: int, tensor: int = 1, peer: str = "b") -> Transfer:
    return Transfer(tensor, ((number, number + 1),), 10 + number, 10.5 + number, 8, peer)


def test_few_transfers_are_told_one_by_one() -> None:
    told = transfer_traces([row(n) for n in range(MAX_TRANSFERS)], PROGRAM, 10)
    assert [t.region for t in told] == [((n, n + 1),) for n in range(MAX_TRANSFERS)]
    assert all(left.start_ms + 1000 == right.start_ms for left, right in pairwise(told))
    assert (told[0].tensor, told[0].start_ms, told[0].end_ms) == ("t1", 0.0, 500.0)


def test_many_transfers_are_told_together_by_tensor_and_peer() -> None:
    count = MAX_TRANSFERS
    notes = [row(n) for n in range(count)] + [row(7, peer="c"), row(8, 2), row(9, 2)]
    told = {(t.tensor, t.peer): t for t in transfer_traces(notes, PROGRAM, 10)}
    assert told.keys() == {("t1", "b"), ("t1", "c"), ("t2", "b")}
    most = told["t1", "b"]
    assert (most.region, most.nbytes) == (((0, count),), 8 * count)
    assert (most.start_ms, most.end_ms) == (0.0, (count - 0.5) * 1000)
    assert told["t1", "c"].region == ((7, 8),)


def test_a_trace_never_has_more_than_it_may() -> None:
    notes = [row(n, peer=f"d{n}") for n in range(MAX_TRANSFERS + 3)]
    assert len(transfer_traces(notes, PROGRAM, 10)) == MAX_TRANSFERS
