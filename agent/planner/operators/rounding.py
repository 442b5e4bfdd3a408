"""Which tiles are rounded as the whole is, to the bit, where a graph is to keep every bit.

onnxruntime computes a convolution outside its blocked layout, and a product of a weight that it
does not know when it loads a graph, as a matrix product of M rows, N columns and K inputs. It adds
128 inputs in one go; more where a thread has 64 columns or fewer. Of several threads each gets a
multiple of 16 columns and the last one the rest, which can be few of many. One row or one column
alone is another kernel, as is a window as wide as what it reads. What is no more than 128 inputs
deep is always added in one go.

That is so in mlas/lib/sgemm.cpp and convolve.cpp, and was measured on x86 with 1, 2 and 4 threads
(docs/exactness.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from agent.planner.blocked import fills_blocks

if TYPE_CHECKING:
    from collections.abc import Callable

    Ints = np.ndarray[Any, np.dtype[np.int64]]
    Bools = np.ndarray[Any, np.dtype[np.bool_]]
    Keeps = Callable[[Ints, Ints], Bools]

_AT_ONCE = 128
_FEW = 64
# Columns that a thread is given are a multiple of this.
_ALIGNED = 16
# With more threads one of them may be left with a single row.
_THREADS = 8


def windows(depth: int, threads: int) -> Keeps:
    """Return the rule of a convolution of `depth` inputs an element; its columns are pixels."""

    def keeps(computed: Ints, _read: Ints) -> Bools:
        return (computed[:, -1] > 1) & _enough(computed[:, 2:].prod(axis=1), depth, threads)

    return keeps


def transposed_windows(depth: int, threads: int) -> Keeps:
    """Return the rule of a ConvTranspose of `depth` channels; columns are its input's pixels."""

    def keeps(_computed: Ints, read: Ints) -> Bools:
        return (read[:, -1] > 1) & _enough(read[:, 2:].prod(axis=1), depth, threads)

    return keeps


def products(depth: int, threads: int) -> Keeps:
    """Return the rule of a matrix product whose weight is no constant for onnxruntime."""

    def keeps(computed: Ints, _read: Ints) -> Bools:
        return (computed[:, -2] > 1) & _enough(computed[:, -1], depth, threads)

    return keeps


def shared_pools(channels: int) -> Keeps:
    """Return the rule of a global pooling, which has a kernel of its own for blocks of channels."""

    def keeps(computed: Ints, _read: Ints) -> Bools:
        return np.asarray(fills_blocks(computed[:, 1]) == fills_blocks(channels))

    return keeps


def _enough(columns: Ints, depth: int, threads: int) -> Bools:
    """Tell where a tile's columns are so many that its sums are added as the whole's are."""
    if depth <= _AT_ONCE and threads <= _THREADS:
        return np.asarray(columns > 1)
    # The last thread has this many less than the others' share at worst.
    return np.asarray(columns > threads * (_FEW + _ALIGNED * (threads - 1)))
