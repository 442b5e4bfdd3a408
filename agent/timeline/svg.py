"""A timeline as an SVG picture: time from left to right, devices from top to bottom.

A device has, for each series, a lane of what it computes and below it thin lanes of what it sends
and receives. The colours are those of Okabe and Ito, which colour-blind people tell apart; lanes
tell activities apart as well.
"""

from __future__ import annotations

from html import escape
from math import floor, log10
from typing import TYPE_CHECKING, NamedTuple

from agent.timeline.series import devices_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.spans import Activity, Span
    from agent.timeline.series import Series

WIDTH = 1200
_RIGHT, _TOP, _BOTTOM = 24, 108, 22
_LANE, _THIN, _BETWEEN, _APART = 24, 7, 10, 20
_LETTER, _WIDE_LETTER = 6.3, 7.6  # widths, at 11 pixels and of device names
_SERIES_NAME = 84  # width
_LONGEST_NAME = 30  # letters
_MOST_TICKS = 12
_NARROWEST = 1.5  # pixels
_LANES: tuple[tuple[float, tuple[Activity, ...]], ...] = (
    (_LANE, ("wait", "decode", "compute")),
    (_THIN, ("send",)),
    (_THIN, ("receive",)),
)
_LEGEND: tuple[Activity, ...] = ("compute", "decode", "wait", "send", "receive")
_STYLE = """
text { font: 12px system-ui, "DejaVu Sans", sans-serif; fill: #1b1f24 }
.title { font-size: 17px; font-weight: 600 } .device { font-weight: 600 }
.faint { fill: #57606a; font-size: 11px } .in { fill: #ffffff; font-size: 11px }
.paper { fill: #ffffff } .grid { stroke: #d9dee3; stroke-width: 1 } .rule { stroke: #8c959f }
.compute { fill: #0072b2 } .decode { fill: #e69f00 } .wait { fill: #e3e7eb }
.send { fill: #d55e00 } .receive { fill: #009e73 } .edge { stroke: #ffffff; stroke-width: 0.8 }
@media (prefers-color-scheme: dark) {
text { fill: #e6e9ed } .faint { fill: #9aa4ae } .in { fill: #0d1117 } .paper { fill: #14181c }
.grid { stroke: #2b3138 } .rule { stroke: #6a737d } .wait { fill: #2b3138 }
.compute { fill: #56b4e9 } .send { fill: #f0803c } .receive { fill: #1fc79a }
.edge { stroke: #14181c }
}
"""


class _Scale(NamedTuple):
    """Where time is: it starts at x `left`, a second is `per_s` wide; all in pixels."""

    left: float
    per_s: float

    def x(self, seconds: float) -> float:
        return self.left + seconds * self.per_s


def draw(title: str, series: Sequence[Series], width: int = WIDTH) -> str:
    """Return the series of one request, drawn one below the other for each device, as SVG."""
    end_s = max((one.end_s for one in series), default=0.0) or 1e-3
    devices = devices_of(series)
    names = min(_LONGEST_NAME, max(map(len, devices), default=0)) * _WIDE_LETTER
    left = 28 + names + (_SERIES_NAME if len(series) > 1 else 0)
    scale = _Scale(left, (width - left - _RIGHT) / end_s)
    body: list[str] = []
    y: float = _TOP
    for device in devices:
        body.append(_text(16, y + 16, _fitting(device), "device"))
        for one in series:
            if len(series) > 1:
                body.append(_text(left - 8, y + 16, one.name, "faint", "end"))
            body += _lanes(one, device, y, scale)
            y += _height(one) + _BETWEEN
        y += _APART - _BETWEEN
    height = y - _APART + _BETWEEN + _BOTTOM
    ends = ", ".join(f"{one.name} {one.end_s * 1e3:.1f} ms" for one in series)
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height:.0f}" '
        f'viewBox="0 0 {width} {height:.0f}" role="img">'
    )
    return "\n".join(
        [
            opening,
            f"<title>{escape(title)}</title>",
            f"<style>{_STYLE}</style>",
            f'<rect class="paper" width="{width}" height="{height:.0f}"/>',
            _text(16, 28, title, "title"),
            _text(16, 50, ends),
            *_legend(width),
            *_axis(end_s, scale, height - _BOTTOM),
            *body,
            "</svg>",
            "",
        ]
    )


def _height(one: Series) -> float:
    return sum(height + 1 for height, activities in _LANES if _has(one, activities))


def _has(one: Series, activities: Sequence[Activity]) -> bool:
    return any(span.activity in activities for span in one.spans)


def _lanes(one: Series, device: str, y: float, scale: _Scale) -> list[str]:
    lines = []
    for height, activities in _LANES:
        if not _has(one, activities):
            continue
        for span in one.of(device, *activities):
            lines.append(_box(one, span, y, height, scale))
            if height == _LANE and span.activity != "wait":
                lines += _label(span, y, scale)
        y += height + 1
    return lines


def _box(one: Series, span: Span, y: float, height: float, scale: _Scale) -> str:
    x, width = scale.x(span.start_s), (span.end_s - span.start_s) * scale.per_s
    kind = f"{span.activity} edge" if width > 2 * _NARROWEST else span.activity
    return (
        f'<rect class="{kind}" x="{x:.2f}" y="{y:.1f}" width="{max(_NARROWEST, width):.2f}" '
        f'height="{height}"><title>{escape(_told(one, span))}</title></rect>'
    )


def _told(one: Series, span: Span) -> str:
    length = (span.end_s - span.start_s) * 1e3
    lines = [
        f"{span.device}, {one.name}: {span.activity} {span.label}",
        f"{span.start_s * 1e3:.2f} to {span.end_s * 1e3:.2f} ms ({length:.2f} ms)",
    ]
    if span.nbytes:
        way = "to" if span.activity == "send" else "from"
        peer = f" {way} {span.peer}" if span.peer else ""
        lines.append(f"{span.nbytes / 1e3:.1f} kB{peer}")
    return "\n".join(lines)


def _label(span: Span, y: float, scale: _Scale) -> list[str]:
    """Write a label, or what of it is before its colon, where the box has room."""
    width = (span.end_s - span.start_s) * scale.per_s
    for text in (span.label, span.label.partition(":")[0]):
        if len(text) * _LETTER + 6 <= width:
            return [_text(scale.x((span.start_s + span.end_s) / 2), y + 16, text, "in", "middle")]
    return []


def _legend(width: int) -> list[str]:
    lines, x = [], width - _RIGHT - 92.0 * len(_LEGEND)
    for activity in _LEGEND:
        lines.append(f'<rect class="{activity}" x="{x:.0f}" y="40" width="14" height="12"/>')
        lines.append(_text(x + 20, 50, activity))
        x += 92
    return lines


def _axis(end_s: float, scale: _Scale, bottom: float) -> list[str]:
    step = tick_step(end_s * 1e3)
    lines = []
    for number in range(floor(end_s * 1e3 / step) + 1):
        x = scale.x(number * step / 1e3)
        lines.append(f'<path class="grid" d="M{x:.1f} {_TOP - 14} V{bottom + 4:.0f}"/>')
        tick = f"{number * step:g}"
        lines += [_text(x, y, tick, "faint", "middle") for y in (_TOP - 20, bottom + 18)]
    top = f'<path class="rule" d="M{scale.left:.1f} {_TOP - 14} H{scale.x(end_s):.1f}"/>'
    return [*lines, top, _text(scale.left - 14, _TOP - 20, "ms", "faint", "end")]


def tick_step(extent: float) -> float:
    """Return 1, 2 or 5 times a power of ten that puts at most a dozen ticks on an axis."""
    power: float = 10.0 ** floor(log10(extent / _MOST_TICKS))
    return next(step * power for step in (1, 2, 5, 10) if extent / (step * power) < _MOST_TICKS)


def _fitting(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "") -> str:
    attributes = "".join(
        f' {name}="{value}"' for name, value in (("class", kind), ("text-anchor", anchor)) if value
    )
    return f'<text x="{x:.1f}" y="{y:.1f}"{attributes}>{escape(text)}</text>'
