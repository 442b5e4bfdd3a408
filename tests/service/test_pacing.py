"""Pacing: work lasts what a slower device would need, and what could not is counted."""

from __future__ import annotations

import fcntl
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from agent.service.pacing import SOLO_ROUNDS, Pacer
from agent.wire.messages import Capacity, Pace

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray


class Machine:
    """A clock that work and sleeping move; `slept` keeps how long each sleep was."""

    def __init__(self) -> None:
        self.now = self.cpu = 0.0
        self.slept: list[float] = []

    def work(self, wall: float, cpu: float) -> None:
        self.now += wall
        self.cpu += cpu

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def pacer(self, slowness: float) -> Pacer:
        return Pacer(slowness, None, lambda: self.now, lambda: self.cpu, self.sleep)


class Work:
    """A segment that takes `times` in turn, the last one for ever."""

    def __init__(self, machine: Machine, *times: float) -> None:
        self._machine = machine
        self._times = list(times)

    def example(self) -> list[NDArray[Any]]:
        return [np.zeros(3)]

    def run(self, inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        taken = self._times.pop(0) if len(self._times) > 1 else self._times[0]
        self._machine.work(taken, taken)
        return [array + 1 for array in inputs]


def test_a_segment_takes_its_quickest_solo_time_times_slowness() -> None:
    machine = Machine()
    pacer = machine.pacer(5)
    with pacer.alone():
        paced = pacer.segment(Work(machine, 9.0, 2.5, 2.0, 3.0, 4.0))
    started = machine.now
    (output,) = paced.run([np.zeros(2)])
    assert output.tolist() == [1, 1]
    assert machine.now - started == pytest.approx(10.0)
    assert machine.slept == [pytest.approx(6.0)]
    assert pacer.pace == Pace(1, 0, 0.0)


def test_other_work_takes_its_processor_time_times_slowness() -> None:
    machine = Machine()
    with machine.pacer(4).work():
        machine.work(wall=3.0, cpu=1.0)
    assert machine.now == pytest.approx(4.0)


def test_work_that_was_slower_than_its_pace_is_late() -> None:
    machine = Machine()
    pacer = machine.pacer(2)
    with pacer.alone():
        paced = pacer.segment(Work(machine, *[1.0] * SOLO_ROUNDS, 1.5, 2.25))
    paced.run([])
    paced.run([])
    assert machine.slept == [pytest.approx(0.5)]
    assert pacer.pace == Pace(2, 1, 250.0)


def test_without_slowness_nothing_is_measured_slept_or_told() -> None:
    machine = Machine()
    pacer = machine.pacer(1)
    segment = Work(machine, 1.0)
    assert pacer.segment(segment) is segment
    with pacer.work():
        machine.work(wall=2.0, cpu=2.0)
    assert machine.now == 2.0
    assert not machine.slept
    assert pacer.pace is None


def test_a_slow_device_advertises_what_it_plays() -> None:
    capacity = Capacity("cpu", 4, 1, 1 << 30, ("CPU",), 100e9, 10e9, 0.001, 1e8)
    slowed = Machine().pacer(10).slowed(capacity)
    assert (slowed.flops_per_s, slowed.memory_bytes_per_s) == (10e9, 1e9)
    assert (slowed.link_bytes_per_s, slowed.memory_bytes) == (1e8, 1 << 30)


def test_processes_with_one_lock_measure_one_at_a_time(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with lock.open("a", encoding="ascii") as other:
        with Pacer(2, lock).alone(), pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
