"""The figures of a run: counts, and latency and recovery for each kind of fault."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tests.chaos.director import Strike
    from tests.chaos.ledger import Entry, Ledger

AROUND_S = 4.0
ALONE_S = 3.0
WORST = 0.99
MUST_BE_ZERO = ("lost", "wrong", "duplicated")


@dataclass(frozen=True)
class Window:
    """A strike: its kind and times in seconds; `back` is when service may return."""

    kind: str
    began: float
    ended: float
    back: float


def window_of(strike: Strike) -> Window:
    """Return the times of a strike that is over."""
    if strike.ended is None:
        raise AssertionError("a strike was not undone")
    back = strike.ended if strike.fault.returns else strike.began
    return Window(strike.fault.kind, strike.began, strike.ended, back)


def figures(ledger: Ledger, windows: Sequence[Window]) -> dict[str, Any]:
    """Return all figures; times in milliseconds but for `recovery_s`.

    `latency` is of right answers: of requests that were sent in the 4 s before a fault; that were
    in flight when it began, or sent until it ended; that were sent in the 4 s after it.
    `recovery_s` is from the beginning of a fault (of a broker's: from its return) to the first
    right answer to a request sent since; `alone` counts only faults with no other one around then.
    """
    kinds = sorted({window.kind for window in windows})
    return ledger.counts() | {
        "latency_ms": _latency(ledger.entries.values()),
        "faults": {
            kind: _of_kind(ledger, [w for w in windows if w.kind == kind], windows)
            for kind in kinds
        },
    }


def failed(told: dict[str, Any]) -> list[str]:
    """Return what of the figures breaks the promise."""
    broken = [f"{name}: {told[name]}" for name in MUST_BE_ZERO if told[name]]
    broken += told.get("ended", [])
    return [*broken, *([] if told.get("whole", True) else ["the fleet did not become whole again"])]


def tables(told: dict[str, Any]) -> Iterable[Table]:
    """Yield figures for people."""
    counts = Table("sent", "exact", "errors", *MUST_BE_ZERO, "delivered again", "repeated")
    errors = ", ".join(f"{code} {count}" for code, count in told["errors"].items()) or "0"
    names = (*MUST_BE_ZERO, "delivered_again", "repeated")
    counts.add_row(
        str(told["sent"]), str(told["exact"]), errors, *(str(told[name]) for name in names)
    )
    yield counts
    kinds = Table(
        *("fault", "times", "before", "during", "worst", "after", "recovery", "worst", "alone"),
        caption="latency in ms, recovery in s; medians, but for `worst`",
    )
    for kind, found in told["faults"].items():
        latency, recovery = found["latency_ms"], found["recovery_s"]
        during = latency["during"]
        shown = [latency["before"]["median"], during["median"], during["worst"]]
        shown += [latency["after"]["median"], recovery["all"]["median"]]
        shown += [recovery["all"]["worst"], recovery["alone"]["median"]]
        figures_shown = ("-" if figure is None else f"{figure:.4g}" for figure in shown)
        kinds.add_row(kind, str(found["times"]), *figures_shown)
    yield kinds


def _of_kind(ledger: Ledger, windows: Sequence[Window], every: Sequence[Window]) -> dict[str, Any]:
    entries = list(ledger.entries.values())
    before = [e for e in entries for w in windows if w.began - AROUND_S <= e.sent < w.began]
    before = [e for e in before if all(not _is_during(e, w) for w in windows)]
    during = [e for e in entries if any(_is_during(e, w) for w in windows)]
    after = [e for e in entries if any(w.ended < e.sent <= w.ended + AROUND_S for w in windows)]
    return {
        "times": len(windows),
        "latency_ms": {
            "before": _latency(before),
            "during": _latency(during),
            "after": _latency(after),
        },
        "recovery_s": {
            "all": _recoveries(entries, windows),
            "alone": _recoveries(entries, [w for w in windows if _is_alone(w, every)]),
        },
    }


def _recoveries(entries: Sequence[Entry], windows: Sequence[Window]) -> dict[str, Any]:
    found = [r for w in windows if (r := _recovery(entries, w)) is not None]
    return {
        "times": len(windows),
        "median": round(statistics.median(found), 3) if found else None,
        "worst": round(max(found), 3) if found else None,
    }


def _is_alone(window: Window, every: Sequence[Window]) -> bool:
    around = (window.back - ALONE_S, window.back + ALONE_S)
    return not any(
        other is not window and other.began <= around[1] and other.ended >= around[0]
        for other in every
    )


def _is_during(entry: Entry, window: Window) -> bool:
    answered = entry.answered
    return entry.sent <= window.ended and (answered is None or answered >= window.began)


def _recovery(entries: Iterable[Entry], window: Window) -> float | None:
    since = [e for e in entries if e.sent >= window.back and e.is_exact]
    return min((e.answered - window.back for e in since if e.answered is not None), default=None)


def _latency(entries: Iterable[Entry]) -> dict[str, float | int | None]:
    found = sorted(e.latency_s * 1e3 for e in entries if e.is_exact and e.latency_s is not None)
    if not found:
        return {"requests": 0, "median": None, "p99": None, "worst": None}
    return {
        "requests": len(found),
        "median": round(statistics.median(found), 1),
        "p99": round(found[int(WORST * (len(found) - 1))], 1),
        "worst": round(found[-1], 1),
    }
