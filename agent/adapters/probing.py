"""Runs the probes of a model: how long a segment takes, and its layer's kernels alone.

onnxruntime itself tells how long each kernel ran. Before each run the weights are pushed out of the
processor's caches, because between two runs of a layer the rest of the model passes through them.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from agent.adapters.runtime import ProfiledSegment
from agent.errors import InputError
from agent.wire.calibration import Timing

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from agent.adapters.runtime import RuntimeOptions
    from agent.wire.calibration import ArraySpec, Probe

MAX_RUNS = 5
RUNS_S = 0.25
_REORDERS = frozenset({"ReorderInput", "ReorderOutput"})
_CACHE_BYTES = (8 << 20, 64 << 20)
_SEED = 1


class Prober:
    """Runs probes with `options`; belongs to one thread."""

    def __init__(self, options: RuntimeOptions, clock: Callable[[], float]) -> None:
        self._options = options
        self._clock = clock
        self._random = np.random.default_rng(_SEED)

    def run(self, probe: Probe) -> Timing:
        """Load a probe's segment, run it a few times and return the quickest run.

        Raises:
            ModelError: if onnxruntime refuses the graph.
            InputError: if it cannot be run.
        """
        weights = {spec.name: self._made_up(spec) for spec in probe.weights}
        inputs = [self._made_up(spec) for spec in probe.inputs]
        others = np.zeros(_passing_bytes(), np.uint8)
        with TemporaryDirectory(prefix="halomq-probe-") as folder:
            segment = ProfiledSegment(probe.graph, weights, self._options, Path(folder))
            segment.run(inputs)
            until = self._clock() + RUNS_S
            times: list[float] = []
            while len(times) < MAX_RUNS and (not times or self._clock() < until):
                others += 1
                inputs = [array.copy() for array in inputs]
                started = self._clock()
                segment.run(inputs)
                times.append(self._clock() - started)
            kernels = _kernel_seconds(segment.end_profiling(), set(probe.borders))
        run_s = median(times)
        return Timing(run_s, min(run_s, median(kernels[1:] or [run_s])))

    def _made_up(self, spec: ArraySpec) -> NDArray[Any]:
        """Return values that are ordinary: no denormals, no zeros, small integers."""
        dtype = np.dtype(spec.dtype)
        if dtype.kind == "f":
            return self._random.uniform(0.25, 1.0, spec.shape).astype(dtype)
        if dtype.kind == "b":
            return np.ones(spec.shape, dtype)
        return self._random.integers(1, 4, spec.shape).astype(dtype)


def _passing_bytes() -> int:
    """Return what has to pass through the caches so that nothing stays in them."""
    least, most = _CACHE_BYTES
    try:
        last_level = os.sysconf("SC_LEVEL3_CACHE_SIZE")
    except (OSError, ValueError):
        last_level = 0
    return max(least, min(most, 2 * last_level))


def _kernel_seconds(profile: Path, borders: set[str]) -> list[float]:
    """Return for each run the seconds of nodes other than `borders` and changes of layout.

    Those are in their kernels, and between kernels: onnxruntime takes a while to pass from one to
    the next, which counts for each node alike.

    Raises:
        InputError: if onnxruntime wrote something else than it does today.
    """
    try:
        events = json.loads(profile.read_bytes())
        runs: list[float] = []
        own: list[float] = []
        others: list[float] = []
        for event in sorted(events, key=lambda event: int(event["ts"]) + int(event["dur"])):
            if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
                name = event["name"].removesuffix("_kernel_time").removesuffix("_nchwc")
                around = event["args"]["op_name"] in _REORDERS or name in borders
                (others if around else own).append(int(event["dur"]) / 1e6)
            elif event["name"] == "SequentialExecutor::Execute":
                between = int(event["dur"]) / 1e6 - sum(own) - sum(others)
                share = len(own) / max(1, len(own) + len(others))
                runs.append(sum(own) + share * max(0.0, between))
                own, others = [], []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"onnxruntime's profile cannot be read: {error}") from error
    return runs
