"""Faults on a process of its own: it dies like one that is killed, it freezes and wakes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable

WAIT_S = 30.0
# Its thread counts for as long as it runs.
FREEZING = """
import threading, time
from agent.adapters.faults import freeze
ticks = []
def tick():
    while True:
        ticks.append(time.monotonic())
        time.sleep(0.01)
threading.Thread(target=tick, daemon=True).start()
freeze(1.0)
time.sleep(0.1)
print(max(b - a for a, b in zip(ticks, ticks[1:], strict=False)))
"""


def wait_for(met: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_frozen_process_stands_still_and_wakes_by_itself() -> None:
    command = [sys.executable, "-c", FREEZING]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        frozen = psutil.Process(process.pid)
        wait_for(lambda: frozen.status() == psutil.STATUS_STOPPED)
        out, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0
    # Its other thread stood still all the while, and its waker is gone, too.
    assert float(out) > 0.9


def test_a_process_that_dies_says_nothing() -> None:
    code = "import atexit; from agent.adapters.faults import die; atexit.register(print, 'end')"
    run = subprocess.run(
        [sys.executable, "-c", f"{code}; die()"], capture_output=True, timeout=WAIT_S, check=False
    )
    assert run.returncode == -signal.SIGKILL
    assert run.stdout + run.stderr == b""
