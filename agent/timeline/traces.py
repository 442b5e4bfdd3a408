"""The traces of a finished request as series: what was predicted, and what was measured.

Each device counts time from the request's arrival at that device, and arrivals differ where links
are slow. Pieces that went both ways between two devices tell by how much, as in NTP: what one way
seems to take longer than the other is the difference of their clocks.
"""

from __future__ import annotations

from collections import deque
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from agent.geometry import contains
from agent.spans import Span
from agent.timeline.series import Series, devices_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agent.wire.messages import Trace, TransferTrace

_MS = 1e-3


class _Delivery(NamedTuple):
    """A piece that was sent and arrived, each in the milliseconds of its own device."""

    sender: str
    receiver: str
    sent: TransferTrace
    received: TransferTrace


def series_of(traces: Sequence[Trace]) -> tuple[Series, ...]:
    """Return what was predicted, where the plan tells it, and what was measured.

    `traces` are those of one request, the answering device's first. Times count from the
    request's first arrival.
    """
    measured = Series("measured", _measured(traces))
    predicted = Series("predicted", _predicted(traces))
    return (predicted, measured) if _is_possible(predicted) else (measured,)


def _predicted(traces: Sequence[Trace]) -> tuple[Span, ...]:
    return tuple(
        Span(
            trace.device,
            "compute",
            step.predicted_start_ms * _MS,
            (step.predicted_start_ms + step.predicted_ms) * _MS,
            f"{step.block}: {step.tensor}",
        )
        for trace in traces
        for step in trace.steps
        if step.predicted_ms > 0
    )


def _is_possible(predicted: Series) -> bool:
    # Plans that predict no starts have all steps of a device start together.
    return bool(predicted.spans) and all(
        left.end_s <= right.start_s + _MS
        for device in devices_of([predicted])
        for left, right in pairwise(predicted.of(device, "compute"))
    )


def _measured(traces: Sequence[Trace]) -> tuple[Span, ...]:
    deliveries = _deliveries(traces)
    offsets = _offsets(traces, deliveries)
    spans = [span for trace in traces for span in _work(trace, offsets[trace.device])]
    return (*spans, *_transfers(traces, deliveries, offsets))


def _work(trace: Trace, offset: float) -> list[Span]:
    """Return decoding, steps and the answer's making; `offset` in ms."""
    found = []
    if trace.decode_ms:
        found.append(("decode", trace.decode_start_ms, trace.decode_ms, "request"))
    for step in trace.steps:
        length = step.end_ms - step.start_ms
        found.append(("compute", step.start_ms, length, f"{step.block}: {step.tensor}"))
    if trace.answer_ms:
        found.append(("compute", trace.total_ms, trace.answer_ms, "answer"))
    return [
        Span(
            trace.device,
            "decode" if activity == "decode" else "compute",
            (start + offset) * _MS,
            (start + length + offset) * _MS,
            label,
        )
        for activity, start, length, label in found
    ]


def _transfers(
    traces: Sequence[Trace], deliveries: Sequence[_Delivery], offsets: Mapping[str, float]
) -> list[Span]:
    """Return sends until they arrived, and receives since they were sent, where both are told."""
    arrivals: dict[int, float] = {}
    departures: dict[int, tuple[str, float]] = {}
    for sender, receiver, sent, received in deliveries:
        arrived = received.end_ms + offsets[receiver]
        arrivals[id(sent)] = max(arrived, arrivals.get(id(sent), arrived))
        departures[id(received)] = (sender, sent.start_ms + offsets[sender])
    spans = []
    for trace in traces:
        device, offset = trace.device, offsets[trace.device]
        for told in trace.sends:
            start, end = told.start_ms + offset, arrivals.get(id(told), told.end_ms + offset)
            at = (start * _MS, max(start, end) * _MS)
            spans.append(Span(device, "send", *at, told.tensor, told.peer, told.nbytes))
        for told in trace.receives:
            end = told.end_ms + offset
            peer, start = departures.get(id(told), ("", told.start_ms + offset))
            at = (min(start, end) * _MS, end * _MS)
            spans.append(Span(device, "receive", *at, told.tensor, peer, told.nbytes))
    return spans


def _deliveries(traces: Sequence[Trace]) -> list[_Delivery]:
    sends: dict[tuple[str, str], list[tuple[str, TransferTrace]]] = {}
    for trace in traces:
        for sent in trace.sends:
            sends.setdefault((sent.peer, sent.tensor), []).append((trace.device, sent))
    found = []
    for trace in traces:
        for received in trace.receives:
            for sender, sent in sends.get((trace.device, received.tensor), []):
                alike = len(sent.region) == len(received.region)
                if alike and contains(sent.region, received.region):
                    found.append(_Delivery(sender, trace.device, sent, received))
                    break
    return found


def _offsets(traces: Sequence[Trace], deliveries: Sequence[_Delivery]) -> dict[str, float]:
    """Return what to add to a device's milliseconds, so that all count from the first arrival."""
    shortest: dict[tuple[str, str], float] = {}
    for sender, receiver, sent, received in deliveries:
        took = received.end_ms - sent.start_ms
        shortest[sender, receiver] = min(took, shortest.get((sender, receiver), took))
    offsets: dict[str, float] = {}
    for trace in traces:
        offsets.setdefault(trace.device, 0.0)
        reached = deque([trace.device])
        while reached:
            known = reached.popleft()
            for other in {device for pair in shortest if known in pair for device in pair}:
                if other not in offsets:
                    offsets[other] = offsets[known] + _difference(shortest, known, other)
                    reached.append(other)
    earliest = min(offsets.values(), default=0.0)
    return {device: offset - earliest for device, offset in offsets.items()}


def _difference(shortest: Mapping[tuple[str, str], float], known: str, other: str) -> float:
    """Return how much later the request arrived at `other` than at `known`, in ms."""
    there, back = shortest.get((known, other)), shortest.get((other, known))
    if there is not None and back is not None:
        return (back - there) / 2
    # One way alone tells no more than that nothing arrives before it was sent.
    if there is not None:
        return max(0.0, -there)
    return min(0.0, back or 0.0)
