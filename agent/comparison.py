"""How two arrays compare: byte by byte, and by their largest difference (pure)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def equal(left: NDArray[Any], right: NDArray[Any]) -> bool:
    """Tell whether two arrays hold the same bytes."""
    return left.shape == right.shape and left.tobytes() == right.tobytes()


def relative_error(reference: NDArray[Any], other: NDArray[Any]) -> float:
    """Return the largest difference, relative to the largest absolute value of `reference`."""
    return relative(largest_difference(reference, other), reference)


def largest_difference(reference: NDArray[Any], other: NDArray[Any]) -> float:
    """Return the largest difference; infinity where one has no number and the other has."""
    if reference.shape != other.shape:
        return float("inf")
    exact, near = reference.astype(np.float64), other.astype(np.float64)
    # Equal infinities and NaN at the same place are no difference.
    same = (exact == near) | (np.isnan(exact) & np.isnan(near))
    with np.errstate(invalid="ignore"):
        difference = np.where(same, 0.0, np.abs(exact - near))
    largest = float(np.max(difference, initial=0.0))
    return float("inf") if np.isnan(largest) else largest


def relative(difference: float, reference: NDArray[Any]) -> float:
    """Return a difference relative to the largest absolute value of `reference`."""
    exact = np.abs(reference.astype(np.float64))
    scale = float(np.max(exact, initial=0.0, where=np.isfinite(exact)))
    return difference / scale if scale > 0 else difference
