"""Timelines as files: valid, complete, and true to their spans."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from xml.etree import ElementTree as ET

import pytest

from agent.spans import Span
from agent.timeline import ENDINGS, Series, render
from agent.timeline.svg import tick_step

SVG = "{http://www.w3.org/2000/svg}"
NASTY = 'a<b>&"c'
PREDICTED = Series(
    "predicted",
    (
        Span("pi", "compute", 0.010, 0.060, "0: relu1"),
        Span("pi", "compute", 0.070, 0.090, "1: relu2"),
        Span("nano", "compute", 0.010, 0.080, "0: relu1"),
    ),
)
MEASURED = Series(
    "measured",
    (
        Span("pi", "decode", 0.001, 0.012, "request"),
        Span("pi", "compute", 0.012, 0.064, "0: relu1"),
        Span("pi", "compute", 0.075, 0.100, "1: relu2"),
        Span("pi", "send", 0.064, 0.070, NASTY, "nano", 4000),
        Span("pi", "send", 0.064, 0.080, "relu1", "other", 4000),
        Span("nano", "compute", 0.011, 0.082, "0: relu1"),
        Span("nano", "receive", 0.064, 0.070, NASTY, "pi", 4000),
    ),
)
BOTH = (PREDICTED, MEASURED)
TITLE = f"vgg16 on 2 devices {NASTY}"


def svg_of(*series: Series) -> ET.Element:
    return ET.fromstring(render(".svg", TITLE, series))  # noqa: S314 - our own


def boxes(drawn: ET.Element, activity: str) -> list[tuple[str, float, float, float]]:
    """Return (what it tells, left, right, top) of each box of an activity but the legend's."""
    found = []
    for box in drawn.iter(f"{SVG}rect"):
        told = box.find(f"{SVG}title")
        if told is not None and box.get("class", "").split()[0] == activity:
            x, y, width = (float(box.get(name, "")) for name in ("x", "y", "width"))
            found.append((told.text or "", x, x + width, y))
    return found


def test_the_picture_names_devices_series_activities_and_times() -> None:
    texts = [text.text for text in svg_of(*BOTH).iter(f"{SVG}text")]
    assert {"pi", "nano", "predicted", "measured", TITLE, "ms", "50"} <= set(texts)
    assert {"compute", "decode", "wait", "send", "receive"} <= set(texts)
    assert "predicted 90.0 ms, measured 100.0 ms" in texts


def test_every_span_is_a_box_to_scale_within_the_picture() -> None:
    drawn = svg_of(*BOTH)
    width = float(drawn.get("width", ""))
    computes = boxes(drawn, "compute")
    assert len(computes) == 6
    lengths = {told: right - left for told, left, right, _ in computes}
    scale = {
        round(length / float(re.search(r"\((.*) ms\)", told)[1]), 1)  # type: ignore[index]
        for told, length in lengths.items()
    }
    assert len(scale) == 1
    for activity in ("compute", "decode", "wait", "send", "receive"):
        assert all(0 < left < right <= width for _, left, right, _ in boxes(drawn, activity))


def test_work_and_waits_of_a_lane_do_not_overlap() -> None:
    drawn = svg_of(*BOTH)
    spans = [box for kind in ("compute", "decode", "wait") for box in boxes(drawn, kind)]
    lanes = {top: sorted(b for b in spans if b[3] == top) for _, _, _, top in spans}
    assert len(lanes) == 4
    for lane in lanes.values():
        ordered = sorted((left, right) for _, left, right, _ in lane)
        assert all(a[1] <= b[0] + 0.02 for a, b in pairwise(ordered))


def test_a_box_tells_its_figures() -> None:
    (told, *_), *_ = boxes(svg_of(*BOTH), "send")
    assert told == f"pi, measured: send {NASTY}\n64.00 to 70.00 ms (6.00 ms)\n4.0 kB to nano"
    (told, *_) = boxes(svg_of(*BOTH), "receive")[0]
    assert told.endswith("4.0 kB from pi")


def test_one_series_needs_no_names_of_series() -> None:
    texts = [text.text for text in svg_of(MEASURED).iter(f"{SVG}text")]
    assert "measured" not in texts
    assert "measured 100.0 ms" in texts


def test_a_picture_of_nothing_is_a_picture() -> None:
    assert boxes(svg_of(Series("measured", ())), "compute") == []


@pytest.mark.parametrize("extent", [0.01, 0.9, 1.0, 1.2, 7.0, 59.9, 60.0, 276.0, 4e5])
def test_ticks_are_round_and_few(extent: float) -> None:
    step = tick_step(extent)
    assert f"{step:e}"[0] in "125"
    assert set(f"{step:e}"[1:].partition("e")[0]) <= set(".0")
    assert 4 <= extent / step < 12


def test_the_page_holds_the_picture_and_each_devices_sums_and_asks_for_nothing() -> None:
    text = render(".html", TITLE, BOTH)
    tags = re.findall(r"<([a-z]+)", text)
    assert tags.count("svg") == 1
    assert tags.count("table") == 1
    assert not {"script", "link", "img"} & set(tags)
    assert re.findall(r"(?:href|src|url)\s*[=(]", text) == []
    assert "<td>pi<td>measured<td>77.0<td>11.0<td>12.0<td>8.0<td>0.0" in text
    assert NASTY not in text
    assert "prefers-color-scheme: dark" in text


def test_the_chrome_trace_has_every_span_on_its_devices_tracks() -> None:
    told = json.loads(render(".json", TITLE, BOTH))
    events = told["traceEvents"]
    names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    tracks = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert list(names.values()) == ["pi", "nano"]
    spans = [event for event in events if event["ph"] == "X"]
    computes = {
        (names[e["pid"]], tracks[e["pid"], e["tid"]], e["name"], e["ts"], e["dur"])
        for e in spans
        if e["cat"] == "compute"
    }
    assert ("pi", "predicted work", "0: relu1", 10_000, 50_000) in computes
    assert ("nano", "measured work", "0: relu1", 11_000, 71_000) in computes
    assert len(computes) == 6
    (sent,) = [e for e in spans if e["name"] == f"send {NASTY}"]
    assert sent["args"] == {"label": NASTY, "bytes": 4000, "peer": "nano"}
    assert told["displayTimeUnit"] == "ms"


def test_no_track_of_the_chrome_trace_has_spans_that_overlap() -> None:
    events = json.loads(render(".json", TITLE, BOTH))["traceEvents"]
    tracks: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for event in events:
        if event["ph"] == "X":
            span = (event["ts"], event["ts"] + event["dur"])
            tracks.setdefault((event["pid"], event["tid"]), []).append(span)
    # Two sends at a time have a track each.
    assert len(tracks) == 7
    for spans in tracks.values():
        assert all(left[1] <= right[0] + 1e-3 for left, right in pairwise(sorted(spans)))


def test_these_are_the_formats() -> None:
    assert set(ENDINGS) == {".svg", ".html", ".json"}
