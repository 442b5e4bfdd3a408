"""What a drill does to this process: end it as a power cut would, or freeze all of it."""

from __future__ import annotations

import os
import signal
import subprocess


def die() -> None:
    """End this process at once: nothing is closed, written or said."""
    os.kill(os.getpid(), signal.SIGKILL)


def freeze(seconds: float) -> None:
    """Stop every thread of this process for `seconds`; a child wakes it.

    Raises:
        OSError: if the child cannot be started; then nothing is stopped.
    """
    # A stopped process cannot wake itself. The child outlives whoever ends this process meanwhile.
    script = 'sleep "$1"; kill -CONT "$2"'
    command = ["sh", "-c", script, "sh", f"{seconds:.3f}", str(os.getpid())]
    waker = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    os.kill(os.getpid(), signal.SIGSTOP)
    waker.wait()
