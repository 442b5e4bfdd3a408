"""A timeline as a file: SVG, an HTML page, or the Trace Event Format of Chrome and Perfetto."""

from __future__ import annotations

import json
from html import escape
from typing import TYPE_CHECKING, Any

from agent.timeline.series import devices_of, with_waits
from agent.timeline.svg import draw

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from agent.spans import Activity, Span
    from agent.timeline.series import Series

_PAGE_WIDTH = 1600
_MICRO = 1e6
_TRACKS: tuple[tuple[str, tuple[Activity, ...]], ...] = (
    ("work", ("wait", "decode", "compute")),
    ("send", ("send",)),
    ("receive", ("receive",)),
)
_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark }}
body {{ margin: 1.5rem; font: 15px/1.5 system-ui, sans-serif; background: #ffffff; color: #1b1f24 }}
figure {{ margin: 0 0 1.5rem; overflow-x: auto }}
table {{ border-collapse: collapse }}
th, td {{ padding: 0.2rem 0.9rem; text-align: right; border-bottom: 1px solid #8c959f55 }}
th:nth-child(-n+2), td:nth-child(-n+2) {{ text-align: left; padding-left: 0 }}
p {{ max-width: 50rem }}
@media (prefers-color-scheme: dark) {{ body {{ background: #14181c; color: #e6e9ed }} }}
</style>
<figure>
{svg}</figure>
<table>
<tr><th>device<th>series<th>compute ms<th>decode ms<th>wait ms<th>sent kB<th>received kB</tr>
{rows}
</table>
<p>A send lasts until its receiver has it, where the receiver told. A device waits when it neither
decodes nor computes, from the request's arrival to its end. Point at a box for its figures.</p>
</html>
"""


def render(ending: str, title: str, series: Sequence[Series]) -> str:
    """Return a timeline in the format of an ending of `ENDINGS`; waits are added."""
    return ENDINGS[ending](title, [with_waits(one) for one in series])


def page(title: str, series: Sequence[Series]) -> str:
    """Return a timeline, and each device's sums, as an HTML page that needs nothing else."""
    rows = "\n".join(
        f"<tr><td>{escape(device)}<td>{escape(one.name)}"
        + "".join(
            f"<td>{one.seconds(device, activity) * 1e3:.1f}"
            for activity in ("compute", "decode", "wait")
        )
        + "".join(f"<td>{one.nbytes(device, way) / 1e3:.1f}" for way in ("send", "receive"))
        + "</tr>"
        for device in devices_of(series)
        for one in series
    )
    return _PAGE.format(title=escape(title), svg=draw(title, series, _PAGE_WIDTH), rows=rows)


def chrome_trace(title: str, series: Sequence[Series]) -> str:
    """Return a timeline as Trace Event Format JSON: a device is a process, its lanes are threads.

    Source: "Trace Event Format", the documentation of chrome://tracing; Perfetto reads it as well.
    """
    events: list[dict[str, Any]] = []
    for pid, device in enumerate(devices_of(series), start=1):
        events += [_named("process_name", pid, 0, name=device)]
        events += [_named("process_sort_index", pid, 0, sort_index=pid)]
        for tid, (track, spans) in enumerate(_tracks(series, device), start=1):
            events += [_named("thread_name", pid, tid, name=track)]
            events += [_named("thread_sort_index", pid, tid, sort_index=tid)]
            events += [_event(pid, tid, span) for span in spans]
    return json.dumps(
        {"traceEvents": events, "displayTimeUnit": "ms", "otherData": {"title": title}}
    )


def _tracks(series: Sequence[Series], device: str) -> Iterator[tuple[str, list[Span]]]:
    """Yield named tracks of spans that do not overlap, as viewers cannot show what does."""
    for one in series:
        for name, activities in _TRACKS:
            for number, spans in enumerate(_apart(one.of(device, *activities)), start=1):
                yield f"{one.name} {name}{f' {number}' if number > 1 else ''}", spans


def _apart(spans: Sequence[Span]) -> list[list[Span]]:
    tracks: list[list[Span]] = []
    for span in spans:
        free = next((track for track in tracks if track[-1].end_s <= span.start_s), None)
        if free is None:
            tracks.append([span])
        else:
            free.append(span)
    return tracks


def _event(pid: int, tid: int, span: Span) -> dict[str, Any]:
    told: dict[str, Any] = {"label": span.label}
    if span.nbytes:
        told |= {"bytes": span.nbytes, "peer": span.peer}
    return {
        "ph": "X",
        "pid": pid,
        "tid": tid,
        "cat": span.activity,
        "name": span.label if span.activity == "compute" else f"{span.activity} {span.label}",
        "ts": round(span.start_s * _MICRO, 3),
        "dur": round((span.end_s - span.start_s) * _MICRO, 3),
        "args": told,
    }


def _named(kind: str, pid: int, tid: int, **told: Any) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": told}


ENDINGS: dict[str, Callable[[str, Sequence[Series]], str]] = {
    ".svg": draw,
    ".html": page,
    ".json": chrome_trace,
}
"""How a timeline is written, by the ending of its file."""
