"""A series: the spans of all devices for one request, as they were predicted or measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from agent.spans import Span

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from agent.spans import Activity

# A device does one of these at a time; sends and receives happen meanwhile.
WORK: tuple[Activity, ...] = ("decode", "compute")
# Between two jobs of an executor there is always a moment; less than this is no wait, in seconds.
SHORTEST_WAIT_S = 20e-6


class Series(NamedTuple):
    """Named spans of one request; it ends with the last of them."""

    name: str
    spans: tuple[Span, ...]

    @property
    def end_s(self) -> float:
        """When the request ends."""
        return max((span.end_s for span in self.spans), default=0.0)

    def of(self, device: str, *activities: Activity) -> list[Span]:
        """Return a device's spans of some activities, in order of their start."""
        found = (s for s in self.spans if s.device == device and s.activity in activities)
        return sorted(found, key=lambda span: (span.start_s, span.end_s))

    def seconds(self, device: str, *activities: Activity) -> float:
        """Return how long a device is about some activities, each second counted once."""
        total = until = 0.0
        for span in self.of(device, *activities):
            total += max(0.0, span.end_s - max(until, span.start_s))
            until = max(until, span.end_s)
        return total

    def nbytes(self, device: str, activity: Activity) -> int:
        """Return how many bytes a device sends or receives."""
        return sum(span.nbytes for span in self.of(device, activity))


def devices_of(series: Iterable[Series]) -> list[str]:
    """Return the devices of some series, in the order in which they are first named."""
    return list(dict.fromkeys(span.device for one in series for span in one.spans))


def with_waits(series: Series) -> Series:
    """Return the series with a wait wherever a device neither decodes nor computes.

    That is from the request's arrival to its end; waits that are there already are replaced.
    """
    rest = tuple(span for span in series.spans if span.activity != "wait")
    plain = Series(series.name, rest)
    waits = [
        wait
        for device in devices_of([plain])
        for wait in _gaps(device, plain.of(device, *WORK), plain.end_s)
    ]
    return Series(series.name, (*rest, *waits))


def _gaps(device: str, busy: Sequence[Span], end_s: float) -> list[Span]:
    waits, at = [], 0.0
    for start, stop, label in [*((s.start_s, s.end_s, s.label) for s in busy), (end_s, end_s, "")]:
        if start - at > SHORTEST_WAIT_S:
            waits.append(Span(device, "wait", at, start, f"for {label}" if label else "the end"))
        at = max(at, stop)
    return waits
