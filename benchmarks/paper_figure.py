"""The figures of `benchmarks.paper` as one SVG picture."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from math import log2
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_WIDTH, _HEIGHT, _MARGIN, _LEFT, _TOP = 240, 190, 56, 50, 84
_COLOURS = {"single": "#7f7f7f", "modnn": "#e07b39", "dpfp-paper": "#4878a8"}
_NAMES = {"single": "single device", "modnn": "MoDNN", "dpfp-paper": "DPFP"}
# Speed-ups are drawn on a logarithmic axis from 1/64 to 16.
_LEAST, _MOST = -6, 4
_SPEEDUPS = [
    (1 / 64, "1/64x"),
    (1 / 16, "1/16x"),
    (1 / 4, "1/4x"),
    (1, "1x"),
    (4, "4x"),
    (16, "16x"),
]


@dataclass(frozen=True)
class _Panel:
    """A coordinate system: where it is, and how values become pixels (shares of its sides)."""

    column: int
    row: int
    title: str
    xs: Sequence[float]
    share: Callable[[float], float]

    @property
    def left(self) -> int:
        return _LEFT + self.column * (_WIDTH + _MARGIN)

    @property
    def top(self) -> int:
        return _TOP + self.row * (_HEIGHT + _MARGIN + 10)

    def x(self, value: float) -> float:
        first, last = min(self.xs), max(self.xs)
        return self.left + _WIDTH * (value - first) / ((last - first) or 1)

    def y(self, value: float) -> float:
        return self.top + _HEIGHT * (1 - min(max(self.share(value), 0.0), 1.0))

    def frame(self, x_label: str, marks: Sequence[tuple[float, str]]) -> Iterator[str]:
        """Yield the frame, its title, and the values that are marked on its axes."""
        yield (
            f'<rect x="{self.left}" y="{self.top}" width="{_WIDTH}" height="{_HEIGHT}" '
            'fill="none" stroke="#bbbbbb"/>'
        )
        yield _text(self.left, self.top - 8, self.title, size=13)
        middle = self.left + _WIDTH / 2
        yield _text(middle, self.top + _HEIGHT + 30, x_label, anchor="middle")
        for value in (min(self.xs), max(self.xs)):
            yield _text(self.x(value), self.top + _HEIGHT + 15, f"{value:g}", anchor="middle")
        for value, label in marks:
            yield _text(self.left - 5, self.y(value) + 4, label, anchor="end")

    def level(self, value: float, label: str) -> Iterator[str]:
        """Yield a dashed line at a value."""
        y = self.y(value)
        yield (
            f'<line x1="{self.left}" x2="{self.left + _WIDTH}" y1="{y:.1f}" y2="{y:.1f}" '
            'stroke="#b5586f" stroke-dasharray="4 3"/>'
        )
        yield _text(self.left + _WIDTH - 4, y + 11, label, size=10, anchor="end")

    def line(self, name: str, values: Sequence[float]) -> str:
        """Return one strategy's values, one for each of `xs`."""
        points = " ".join(
            f"{self.x(x):.1f},{self.y(value):.1f}" for x, value in zip(self.xs, values, strict=True)
        )
        title = f"<title>{escape(_NAMES[name])}</title>"
        return (
            f'<polyline points="{points}" fill="none" stroke="{_COLOURS[name]}" '
            f'stroke-width="2">{title}</polyline>'
        )


def draw(figures: dict[str, Any]) -> str:
    """Return speed-ups over the number of servers, and reliability over the deadline, as SVG."""
    scenarios = figures["scenarios"]
    platforms = list(dict.fromkeys(scenario["platform"] for scenario in scenarios))
    rates = list(dict.fromkeys(scenario["gbit_per_s"] for scenario in scenarios))
    body: list[str] = []
    for row, platform in enumerate(platforms):
        for column, rate in enumerate(rates):
            chosen = [s for s in scenarios if s["platform"] == platform and s["gbit_per_s"] == rate]
            body += _speedups(column, row, chosen, figures["readings"])
    for column, platform in enumerate(platforms):
        body += _reliability(column, len(platforms), platform, figures)
    columns, rows = max(len(rates), len(platforms)), len(platforms) + 1
    width = _LEFT + columns * (_WIDTH + _MARGIN)
    height = _TOP + rows * (_HEIGHT + _MARGIN + 10)
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif">'
    )
    title = "VGG-16 by the cost model of arXiv 2207.11293: speed-up over a single device"
    return "\n".join(
        [
            opening,
            f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
            _text(_LEFT, 26, title, size=16),
            *_legend(),
            *body,
            "</svg>",
            "",
        ]
    )


def _speedups(
    column: int, row: int, scenarios: Sequence[dict[str, Any]], readings: dict[str, float]
) -> Iterator[str]:
    title = f"{scenarios[0]['platform']}, {scenarios[0]['gbit_per_s']:g} Gbit/s"
    servers = [scenario["servers"] for scenario in scenarios]
    panel = _Panel(
        column, row, title, servers, lambda value: (log2(value) - _LEAST) / (_MOST - _LEAST)
    )
    yield from panel.frame("edge servers", _SPEEDUPS)
    for name, speedup in readings.items():
        yield from panel.level(speedup, name)
    for strategy in _COLOURS:
        speedups = [s["ms"]["single"] / s["ms"][strategy] for s in scenarios]
        yield panel.line(strategy, speedups)


def _reliability(column: int, row: int, platform: str, figures: dict[str, Any]) -> Iterator[str]:
    panel = _Panel(
        column, row, f"{platform}: reliability", figures["deadlines_ms"], lambda value: value
    )
    yield from panel.frame("deadline, ms", [(n / 4, f"{n / 4:.0%}") for n in range(5)])
    for strategy, shares in figures["reliability"][platform].items():
        yield panel.line(strategy, shares)


def _legend() -> Iterator[str]:
    for number, (strategy, colour) in enumerate(_COLOURS.items()):
        x = _LEFT + number * 150
        yield f'<rect x="{x}" y="40" width="18" height="4" fill="{colour}"/>'
        yield _text(x + 24, 46, _NAMES[strategy])


def _text(x: float, y: float, text: str, *, size: int = 12, anchor: str = "start") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" '
        f'fill="#222222">{escape(text)}</text>'
    )
