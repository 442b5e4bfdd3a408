"""What the answers of all tasks share: scores from logits, boxes in the picture, rounding.

Numbers in answers are rounded, so that devices whose outputs differ by rounding give the same text.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from agent.wire.manifest import Manifest

DIGITS = 5

Frame = tuple[float, float, float, float]
"""Where the model's input lies in the picture: (x0, y0, x1, y1) as fractions of the picture."""

WHOLE: Frame = (0.0, 0.0, 1.0, 1.0)

# Beyond so many labels, those of which nothing was found are not listed with a zero.
_LISTED_LABELS = 1000


def activated(values: NDArray[Any], manifest: Manifest) -> NDArray[Any]:
    """Return class scores, classes on axis 0, with the function applied that the manifest names."""
    if manifest.output.softmax:
        return softmax(values)
    return sigmoid(values) if manifest.output.sigmoid else values


def softmax(values: NDArray[Any]) -> NDArray[np.float64]:
    """Return the softmax over axis 0, in float64."""
    exact = values.astype(np.float64)
    with np.errstate(invalid="ignore"):  # infinite logits give NaN, which becomes None
        powers: NDArray[np.float64] = np.exp(exact - exact.max(axis=0))
        return np.asarray(powers / powers.sum(axis=0), np.float64)


def sigmoid(values: NDArray[Any]) -> NDArray[np.float64]:
    """Return the logistic function of each value, in float64."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * values.astype(np.float64))))


def in_picture(
    boxes: NDArray[np.float64], frame: Frame, digits: int = DIGITS
) -> NDArray[np.float64]:
    """Return boxes [..., 4] in fractions of the model's input as those of the picture.

    They are clipped to the picture and rounded.
    """
    left, top, right, bottom = frame
    start = np.array([left, top, left, top])
    scale = np.array([right - left, bottom - top, right - left, bottom - top])
    return rounded(np.clip(start + boxes * scale, 0.0, 1.0), digits)


def rounded(values: NDArray[np.float64], digits: int) -> NDArray[np.float64]:
    """Return values rounded to so many decimals, but upwards from a little below the middle.

    Whole pixels and cells are binary fractions of the picture, and often lie in the very middle
    (90 / 128 = 0.703125): there the smallest difference between devices would show.
    """
    power = 10.0**digits
    # The last zero turns -0.0 into 0.0.
    return np.asarray(np.floor(values * power + 0.51) / power + 0.0)


def finite(value: Any) -> float | None:
    """Return a float rounded to a few significant digits, or None for what JSON cannot say."""
    number = float(value)
    return float(f"{number:.{DIGITS}g}") if math.isfinite(number) else None


def zeros(manifest: Manifest) -> dict[str, int]:
    """Return a count of 0 for each label but the background's, so that programs find them all."""
    if len(manifest.labels) > _LISTED_LABELS:
        return {}
    return {label: 0 for index, label in enumerate(manifest.labels) if index != manifest.background}
