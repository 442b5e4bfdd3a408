"""Waits, sums, and what series are made of the traces of a request."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.spans import Span
from agent.timeline import Series, series_of, with_waits
from agent.timeline.series import SHORTEST_WAIT_S
from agent.wire.messages import StepTrace, Trace, TransferTrace

if TYPE_CHECKING:
    from agent.geometry import Region

ROWS: Region = ((0, 4), (0, 8))


def compute(device: str, start: float, end: float, label: str = "0: t") -> Span:
    return Span(device, "compute", start, end, label)


def trace(device: str, *, sends: object = (), receives: object = (), **fields: object) -> Trace:
    plain = {
        "request": "r",
        "epoch": 1,
        "steps": (),
        "decode_ms": 0.0,
        "compute_ms": 0.0,
        "wait_ms": 0.0,
        "total_ms": 100.0,
        "bytes_sent": 0,
        "bytes_received": 0,
    }
    return Trace(device=device, sends=sends, receives=receives, **{**plain, **fields})  # type: ignore[arg-type]


def step(start: float, end: float, predicted: tuple[float, float] = (0.0, 0.0)) -> StepTrace:
    return StepTrace(3, "relu", ROWS, start, end, predicted[1] - predicted[0], predicted[0])


def transfer(at: float, peer: str = "", region: Region = ROWS, tensor: str = "t") -> TransferTrace:
    return TransferTrace(tensor, region, at, at, 64, peer)


def of(series: Series, device: str, *activities: str) -> list[tuple[float, float]]:
    spans = series.of(device, *activities)  # type: ignore[arg-type]
    return [(round(s.start_s * 1e3, 6), round(s.end_s * 1e3, 6)) for s in spans]


def test_a_device_waits_where_it_neither_decodes_nor_computes() -> None:
    spans = (
        Span("a", "decode", 0.25, 0.5, "request"),
        compute("a", 0.5, 1.0),
        compute("a", 2.0, 3.0, "1: u"),
        Span("a", "send", 1.0, 1.5, "t", "b", 8),
        compute("b", 0.0, 4.0),
    )
    series = with_waits(Series("measured", spans))
    assert of(series, "a", "wait") == [(0, 250), (1000, 2000), (3000, 4000)]
    assert [s.label for s in series.of("a", "wait")] == ["for request", "for 1: u", "the end"]
    assert of(series, "b", "wait") == []
    assert with_waits(series) == series


@given(st.lists(st.tuples(st.floats(0, 9), st.floats(0, 3)), min_size=1, max_size=8))
def test_work_and_waits_fill_the_time_of_the_request(drawn: list[tuple[float, float]]) -> None:
    series = with_waits(Series("s", tuple(compute("a", at, at + took) for at, took in drawn)))
    busy, waits = series.seconds("a", "compute"), series.seconds("a", "wait")
    assert busy + waits == pytest.approx(series.end_s, abs=SHORTEST_WAIT_S * (len(drawn) + 1))
    ordered = series.of("a", "wait")
    assert all(left.end_s <= right.start_s for left, right in pairwise(ordered))
    assert all(
        wait.end_s <= span.start_s or span.end_s <= wait.start_s
        for wait in ordered
        for span in series.of("a", "compute")
    )


def test_what_overlaps_is_summed_once() -> None:
    spans = (compute("a", 0, 3), compute("a", 1, 2), compute("a", 2, 4))
    assert Series("s", spans).seconds("a", "compute") == 4


def test_a_trace_becomes_decoding_computing_and_the_answer() -> None:
    told = trace("a", steps=(step(4, 9),), decode_ms=2.0, decode_start_ms=1.0, answer_ms=5.0)
    (series,) = series_of([told])
    assert series.name == "measured"
    assert of(series, "a", "decode") == [(1, 3)]
    assert [s.label for s in series.of("a", "compute")] == ["3: relu", "answer"]
    assert of(series, "a", "compute") == [(4, 9), (100, 105)]


def test_a_send_lasts_until_all_of_it_arrived_and_names_the_other() -> None:
    halves: list[Region] = [((0, 2), (0, 8)), ((2, 4), (0, 8))]
    a = trace("a", sends=(transfer(10, "b"), transfer(30, "c")))
    b = trace("b", receives=(transfer(12, region=halves[0]), transfer(15, region=halves[1])))
    (series,) = series_of([a, b])
    # What c received, c did not tell.
    assert of(series, "a", "send") == [(10, 15), (30, 30)]
    assert of(series, "b", "receive") == [(10, 12), (10, 15)]
    assert {s.peer for s in series.of("b", "receive")} == {"a"}
    assert series.nbytes("a", "send") == 128


def test_clocks_are_aligned_by_what_went_both_ways() -> None:
    # The request reached b 40 ms after a; each piece travels 3 ms.
    a = trace("a", sends=(transfer(50, "b"),), receives=(transfer(83, tensor="u"),))
    b = trace("b", sends=(transfer(40, "a", tensor="u"),), receives=(transfer(13),))
    (series,) = series_of([a, b])
    assert of(series, "a", "send") == of(series, "b", "receive") == [(50, 53)]
    assert of(series, "b", "send") == of(series, "a", "receive") == [(80, 83)]


def test_the_first_arrival_is_the_origin_also_where_another_device_answers() -> None:
    a = trace("a", steps=(step(0, 1),), receives=(transfer(3, tensor="u"),))
    b = trace("b", steps=(step(0, 9),), sends=(transfer(10, "a", tensor="u"),))
    (series,) = series_of([a, b])
    # Nothing arrives before it was sent: b had the request 7 ms earlier, or more.
    assert of(series, "b", "compute") == [(0, 9)]
    assert of(series, "a", "compute") == [(7, 8)]


def test_the_prediction_is_shown_beside_what_was_measured() -> None:
    told = trace("a", steps=(step(4, 9, (3, 7)), step(10, 19, (8, 17))))
    predicted, measured = series_of([told])
    assert (predicted.name, measured.name) == ("predicted", "measured")
    assert of(predicted, "a", "compute") == [(3, 7), (8, 17)]


def test_plans_that_predict_no_starts_are_not_shown_as_if_they_did() -> None:
    told = trace("a", steps=(step(4, 9, (0, 4)), step(10, 19, (0, 9))))
    assert [series.name for series in series_of([told])] == ["measured"]
