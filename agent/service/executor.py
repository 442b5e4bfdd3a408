"""Threads that do what would hold a loop up: one job after another, each in order."""

from __future__ import annotations

import os
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Executor:
    """A thread that runs jobs and posts what they return (or what `on_error` makes of an error)."""

    def __init__(
        self, name: str, post: Callable[[object], None], clock: Callable[[], float]
    ) -> None:
        self._post = post
        self._clock = clock
        self._jobs: SimpleQueue[
            tuple[Callable[[], object], Callable[[Exception], object]] | None
        ] = SimpleQueue()
        self._busy_since: float | None = None
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], object], on_error: Callable[[Exception], object]) -> None:
        """Queue a job; its result, or `on_error(exception)`, is posted."""
        self._jobs.put((job, on_error))

    @property
    def waiting(self) -> int:
        """How many jobs have not begun."""
        return self._jobs.qsize()

    def busy_for(self) -> float:
        """Return how long the job under way has been running, in seconds; 0 when idle."""
        since = self._busy_since
        return 0.0 if since is None else self._clock() - since

    def stop(self) -> None:
        """End the thread after the job under way."""
        self._jobs.put(None)
        self._thread.join(timeout=5.0)

    def _work(self) -> None:
        if hasattr(os, "SCHED_BATCH"):
            # So that it never takes the processor from a loop that is sending what others wait for;
            # threads that onnxruntime starts inherit it.
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        while (entry := self._jobs.get()) is not None:
            job, on_error = entry
            self._busy_since = self._clock()
            try:
                outcome = job()
            except Exception as error:  # noqa: BLE001 - a job's error is its requester's event
                outcome = on_error(error)
            self._busy_since = None
            if outcome is not None:
                self._post(outcome)
