"""How many times as long as predicted a model's steps take on this device, smoothed.

Rules: each request counts once, whatever it held of steps; the first ones of a plan do not count,
because caches and clocks are cold; a single slow request moves the ratio by little.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log

COLD_REQUESTS = 2
FEWEST_REQUESTS = 6
WEIGHT = 0.2
# A ratio that has moved this far since it was told is told at once.
MUCH = 1.2
LARGEST = 16.0


@dataclass(slots=True)
class _Drift:
    plan: str
    requests: int = 0
    logarithm: float = 0.0
    told: float = 1.0

    def take(self, ratio: float) -> None:
        self.requests += 1
        counted = self.requests - COLD_REQUESTS
        if counted > 0:
            # Equal weights until there are enough for the smoothing's own.
            weight = max(WEIGHT, 1.0 / counted)
            value = log(min(LARGEST, max(1.0 / LARGEST, ratio)))
            self.logarithm += weight * (value - self.logarithm)


class Drifts:
    """The drift of each model, under the plan that serves it."""

    def __init__(self) -> None:
        self._drifts: dict[str, _Drift] = {}

    def note(self, model: str, plan: str, measured_s: float, predicted_s: float) -> bool:
        """Take what a request's steps took; return whether the ratio moved much since told."""
        if measured_s <= 0.0 or predicted_s <= 0.0:
            return False
        drift = self._drifts.get(model)
        if drift is None or drift.plan != plan:
            drift = self._drifts[model] = _Drift(plan)
        drift.take(measured_s / predicted_s)
        if drift.requests < FEWEST_REQUESTS or abs(drift.logarithm - log(drift.told)) < log(MUCH):
            return False
        drift.told = exp(drift.logarithm)
        return True

    def ratios(self, plans: dict[str, str]) -> dict[str, float]:
        """Return the ratio of each model in `plans` (model to digest) that is known well."""
        return {
            model: round(exp(drift.logarithm), 3)
            for model, drift in self._drifts.items()
            if plans.get(model) == drift.plan and drift.requests >= FEWEST_REQUESTS
        }
