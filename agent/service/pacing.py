"""Pacing: this device plays a slower one, so that a fleet of slow devices fits on one machine.

A segment takes its solo-measured time x slowness, other work of the executor its processor time x
slowness; what is left of that after the real work is slept. A step that took longer than that is
late: whoever measures must not believe figures with many of them.
"""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from agent.wire.messages import Pace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    import numpy as np

    from agent.adapters.runtime import Runnable
    from agent.wire.messages import Capacity

# The quickest of so many: whatever else runs meanwhile only adds.
SOLO_ROUNDS = 6
SOLO_PROBE_S = 0.25
# What timers, and waiting for the interpreter, may add.
LATE_S = 1e-3
LATE_SHARE = 0.02
# Quicker steps than this have too little time to spare to let others go first.
BRIEF_S = 2e-3


class Pacer:
    """Paces the work of one device to `slowness` times its duration; 1 does nothing at all.

    Processes of one machine that share the file `lock` load and measure one at a time. `clock` and
    `sleep` go in seconds, `cpu_clock` tells the calling thread's processor time.
    """

    def __init__(
        self,
        slowness: float = 1.0,
        lock: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
        cpu_clock: Callable[[], float] = time.thread_time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.slowness = slowness
        self._lock = lock
        self._clock = clock
        self._cpu_clock = cpu_clock
        self._sleep = sleep
        self._unmeasured: list[PacedSegment] = []
        self._steps = self._late = 0
        self._over_s = 0.0

    @property
    def pace(self) -> Pace | None:
        """What was paced since the start, and how much of it was late; None without pacing."""
        if self.slowness == 1:
            return None
        return Pace(self._steps, self._late, round(self._over_s * 1e3, 3))

    @property
    def probing(self) -> dict[str, float]:
        """How to measure this device's capacity: shortly where nothing else runs meanwhile."""
        return {} if self.slowness == 1 or self._lock is None else {"probe_s": SOLO_PROBE_S}

    def slowed(self, capacity: Capacity) -> Capacity:
        """Return what the slow device can do where this one has `capacity`."""
        return replace(
            capacity,
            flops_per_s=capacity.flops_per_s / self.slowness,
            memory_bytes_per_s=capacity.memory_bytes_per_s / self.slowness,
            packing_bytes_per_s=capacity.packing_bytes_per_s / self.slowness,
        )

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other paced processes from loading and measuring; measure what was loaded inside."""
        if self.slowness == 1 or self._lock is None:
            yield
            self._measure()
            return
        with self._lock.open("a", encoding="ascii") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
            self._measure()

    @contextmanager
    def work(self) -> Iterator[None]:
        """Pace what is done inside by this thread's processor time."""
        started, used = self._clock(), self._cpu_clock()
        yield
        self._wait(started, self._cpu_clock() - used)

    def segment(self, segment: Runnable) -> Runnable:
        """Return `segment` as it runs on the slow device; to be called inside of `alone`."""
        if self.slowness == 1:
            return segment
        paced = PacedSegment(segment, self)
        self._unmeasured.append(paced)
        return paced

    def run(
        self, segment: Runnable, solo_s: float, inputs: Sequence[np.ndarray[Any, Any]]
    ) -> list[np.ndarray[Any, Any]]:
        """Run a segment that takes `solo_s` on a quiet machine."""
        started = self._clock()
        try:
            # Computing can wait, messages cannot: each real device has a core for them. Without
            # this they would wait for the end of another device's time slice.
            _schedule(os.SCHED_FIFO if solo_s < BRIEF_S else os.SCHED_IDLE)
            outputs = segment.run(inputs)
            _schedule(os.SCHED_FIFO)
            over = self._wait(started, solo_s)
        finally:
            _schedule(os.SCHED_OTHER)
        self._steps += 1
        self._late += over > LATE_S + LATE_SHARE * solo_s * self.slowness
        return outputs

    def _measure(self) -> None:
        # In rounds, so that a noisy moment does not meet all runs of one segment.
        segments, self._unmeasured = self._unmeasured, []
        for _ in range(SOLO_ROUNDS):
            for segment in segments:
                segment.measure(self._clock)

    def _wait(self, started: float, quick_s: float) -> float:
        """Wait until the slow device is done; return by how much that was missed."""
        if self.slowness == 1:
            return 0.0
        due = started + quick_s * self.slowness
        if (left := due - self._clock()) > 0:
            self._sleep(left)
        over = self._clock() - due
        self._over_s += over
        return over


class PacedSegment:
    """A segment that takes the quickest time it was measured with x slowness."""

    def __init__(self, segment: Runnable, pacer: Pacer) -> None:
        self._segment = segment
        self._pacer = pacer
        self._solo_s = float("inf")

    def measure(self, clock: Callable[[], float]) -> None:
        """Run it once, as quickly as this machine can."""
        inputs = self._segment.example()
        started = clock()
        self._segment.run(inputs)
        self._solo_s = min(self._solo_s, clock() - started)

    def example(self) -> list[np.ndarray[Any, Any]]:
        """Return inputs of the right shapes and types."""
        return self._segment.example()

    def run(self, inputs: Sequence[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        """Compute the outputs, no sooner than the slow device would."""
        return self._pacer.run(self._segment, self._solo_s, inputs)


def _schedule(policy: int) -> None:
    """Change how this thread is scheduled, where this user may."""
    with suppress(PermissionError):
        os.sched_setscheduler(0, policy, os.sched_param(1 if policy == os.SCHED_FIFO else 0))
