"""What a drill showed: its figures, and whether the site kept the promise. Pure."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from agent.drill.course import Case, Course
    from agent.drill.ledger import Ledger, Tally
    from agent.drill.run import Run


STOPPED = "the drill was stopped before it was over"


@dataclass(frozen=True, slots=True)
class Figures:
    """What one case showed.

    Latencies are in milliseconds (the middle one, and the longest), None where nothing was
    answered; times in seconds since the device failed, None where it never came to that. `tally`
    is of the requests from the asking for the fault until the fleet had served in peace again,
    `in_flight` how the request ended in which the device failed.
    """

    case: Case
    outcome: str
    reason: str
    tally: Tally
    before_ms: float | None
    during_ms: float | None
    longest_ms: float | None
    after_ms: float | None
    in_flight: str
    in_flight_ms: float | None
    replanned_s: float | None
    back_s: float | None

    @property
    def passed(self) -> bool:
        """Whether nothing was lost, wrong or duplicated, and the device came back if it failed."""
        return self.tally.clean and self.outcome in ("back", "missed", "skipped")


@dataclass(frozen=True, slots=True)
class Report:
    """The cases that were run (`runs`), and those that were not (`left`)."""

    course: Course
    ledger: Ledger
    runs: tuple[Run, ...]
    left: tuple[Case, ...]

    @property
    def totals(self) -> Tally:
        """All requests of the drill."""
        return self.ledger.tally()

    @property
    def figures(self) -> tuple[Figures, ...]:
        """The figures of each case, in order."""
        return tuple(_figures(run, self.ledger) for run in self.runs)

    @property
    def ok(self) -> bool:
        """Whether devices failed, came back, and nothing was lost, wrong or duplicated."""
        figures = self.figures
        met = any(found.outcome == "back" for found in figures)
        return met and self.totals.clean and all(found.passed for found in figures)

    def verdict(self) -> Iterator[str]:
        """Yield what the figures mean, in words."""
        totals, figures = self.totals, self.figures
        back = [found for found in figures if found.outcome == "back"]
        yield (
            f"{len(back)} of {len(figures) + len(self.left)} faults were met and overcome; "
            f"{totals.sent} requests: {totals.right} right ({totals.identical} identical), "
            f"{sum(totals.errors.values())} errors, {len(totals.lost)} lost, "
            f"{len(totals.duplicated)} answered twice, {len(totals.wrong)} wrong; "
            f"{len(totals.repeated)} had the same answer again"
        )
        for found in figures:
            if found.outcome != "back":
                yield f"{found.case}: {found.outcome}: {found.reason or STOPPED}"
        for name, cause in sorted(totals.wrong.items()):
            yield f"wrong: request {name}: {cause}"
        for title, names in (("lost", totals.lost), ("answered twice", totals.duplicated)):
            if names:
                yield f"{title}: requests {', '.join(sorted(names))}"
        if self.left:
            yield f"not run: {len(self.left)} faults"

    def as_json(self) -> dict[str, Any]:
        """Return the report for programs."""
        return {
            "ok": self.ok,
            "model": self.course.model,
            "devices": list(self.course.devices),
            "totals": _tally_json(self.totals),
            "drills": [_figures_json(found) for found in self.figures],
            "not_run": [
                {"fault": case.fault, "device": case.device, "point": str(case.at)}
                for case in self.left
            ],
            "verdict": list(self.verdict()),
        }


def _figures(run: Run, ledger: Ledger) -> Figures:
    entry = ledger.entry(run.request) if run.request in ledger else None
    judged = None if entry is None else entry.judgement
    failed = run.met_at is not None
    sent_at = run.asked_at if entry is None else entry.sent_at
    end = float("inf") if run.ended_at is None else run.ended_at
    back = end if run.back_at is None else run.back_at
    during = ledger.tally(sent_at, back).latencies_s if failed else ()
    in_flight = "-" if entry is None else "lost" if entry.lost else "open"
    if judged is not None:
        in_flight = judged.cause if judged.verdict == "error" else judged.verdict
    return Figures(
        case=run.case,
        outcome=run.outcome,
        reason=run.reason,
        tally=ledger.tally(run.asked_at, end),
        before_ms=_middle(ledger.tally(run.calm_from, run.asked_at).latencies_s),
        during_ms=_middle(during),
        longest_ms=max(during) * 1e3 if during else None,
        after_ms=_middle(ledger.tally(back, end).latencies_s) if failed else None,
        in_flight=in_flight,
        in_flight_ms=None if entry is None or entry.latency_s is None else entry.latency_s * 1e3,
        replanned_s=_since(run, run.replanned_at),
        back_s=_since(run, run.back_at),
    )


def _middle(latencies: Sequence[float]) -> float | None:
    return statistics.median(latencies) * 1e3 if latencies else None


def _since(run: Run, at: float | None) -> float | None:
    return None if at is None or run.met_at is None else at - run.met_at


def _tally_json(tally: Tally) -> dict[str, Any]:
    return {
        "sent": tally.sent,
        "right": tally.right,
        "identical": tally.identical,
        "errors": tally.errors,
        "lost": len(tally.lost),
        "duplicated": len(tally.duplicated),
        "repeated": len(tally.repeated),
        "wrong": len(tally.wrong),
        "open": tally.open,
    }


def _figures_json(found: Figures) -> dict[str, Any]:
    figures = {
        name: None if value is None else round(value, 3)
        for name, value in (
            ("before_ms", found.before_ms),
            ("during_ms", found.during_ms),
            ("longest_ms", found.longest_ms),
            ("after_ms", found.after_ms),
            ("in_flight_ms", found.in_flight_ms),
            ("replanned_s", found.replanned_s),
            ("back_s", found.back_s),
        )
    }
    case = found.case
    return {
        "round": case.turn,
        "fault": case.fault,
        "device": case.device,
        "point": str(case.at),
        "outcome": found.outcome,
        "reason": found.reason,
        "passed": found.passed,
        **_tally_json(found.tally),
        "in_flight": found.in_flight,
        **figures,
    }
