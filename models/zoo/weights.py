"""Seeded random weights and how strong the activations are that they make.

The same bytes come out on every machine: PCG64's raw integers are the only randomness, and what is
computed with transcendental functions is rounded before it reaches a weight.
"""

from __future__ import annotations

import math
from hashlib import sha256
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Moments = tuple[float, float]  # mean and variance

_CHUNK = 1 << 22  # weights at a time, so that the wide integers of a huge Gemm need little memory
_QUANTILES = tuple(NormalDist().inv_cdf((index + 0.5) / 100) for index in range(100))


class Weights:
    """Draws tensors, each from a random stream of its own."""

    def __init__(self, name: str) -> None:
        self._seed = int.from_bytes(sha256(name.encode()).digest()[:8], "big")
        self._stream = 0

    def filters(self, count: int, fan_in: int, deviation: float, centred: float) -> Floats:
        """Draw filters with elements of this standard deviation.

        Args:
            count: how many filters.
            fan_in: elements of one filter.
            deviation: of the elements, before they are centred.
            centred: by which share of its mean each filter is lowered.

        Returns:
            The filters, [count, fan_in].
        """
        bits = self._bits()
        bound = rounded(deviation * math.sqrt(3))
        drawn = np.empty((count, fan_in), np.float32)
        at_once = max(1, _CHUNK // fan_in)
        for start in range(0, count, at_once):
            rows = drawn[start : start + at_once]
            levels = _levels(bits, rows.size).reshape(rows.shape)
            if centred:
                # In integers, whose sum does not depend on the order of its terms.
                share = round(centred * 16)
                levels -= levels.sum(axis=1, keepdims=True) * share // (16 * fan_in)
            rows[:] = levels * (bound / (1 << 23))
        return drawn

    def between(self, low: float, high: float, count: int) -> Floats:
        """Draw numbers evenly between two bounds."""
        low, high = rounded(low), rounded(high)
        unit = (_levels(self._bits(), count) + (1 << 23)) / (1 << 24)
        return (low + (high - low) * unit).astype(np.float32)

    def _bits(self) -> np.random.PCG64:
        self._stream += 1
        return np.random.PCG64([self._seed, self._stream])


def _levels(bits: np.random.PCG64, count: int) -> NDArray[np.int64]:
    """Return 24 bit integers around zero: float32 holds them exactly."""
    raw = bits.random_raw(-(-count // 2)).astype("<u8").view("<u4")[:count]
    return (raw >> 8).astype(np.int64) - (1 << 23)


def rounded(number: float) -> float:
    """Return a number with three digits, which no machine's last bit can change."""
    return float(f"{number:.3g}")


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


FUNCTIONS: Mapping[str, Callable[[float], float]] = {
    "relu": lambda x: max(x, 0.0),
    "relu6": lambda x: min(max(x, 0.0), 6.0),
    "leaky": lambda x: max(x, 0.1 * x),
    "sigmoid": _sigmoid,
    "hardsigmoid": lambda x: min(max(x / 6 + 0.5, 0.0), 1.0),
    "silu": lambda x: x * _sigmoid(x),
    "hardswish": lambda x: x * min(max(x / 6 + 0.5, 0.0), 1.0),
    "gelu": lambda x: x * NormalDist().cdf(x),
    "tanh": math.tanh,
}


def through(kind: str, moments: Moments) -> Moments:
    """Return the mean and variance that an activation leaves of a normal distribution."""
    mean, var = moments
    deviation = math.sqrt(var)
    values = [FUNCTIONS[kind](mean + deviation * quantile) for quantile in _QUANTILES]
    middle = sum(values) / len(values)
    return middle, sum((value - middle) ** 2 for value in values) / len(values)
