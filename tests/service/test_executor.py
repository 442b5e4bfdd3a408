"""The executor: jobs in order on one thread, and what they return is posted."""

from __future__ import annotations

import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING

import pytest

from agent.service.executor import Executor

if TYPE_CHECKING:
    from collections.abc import Iterator

WAIT_S = 30.0


class Bench:
    """An executor whose clock and mailbox the test holds."""

    def __init__(self) -> None:
        self.posted: SimpleQueue[object] = SimpleQueue()
        self.now = 0.0
        self.executor = Executor("bench", self.posted.put, lambda: self.now)

    def submit(self, job: object) -> None:
        assert callable(job)
        self.executor.submit(job, lambda error: f"failed: {error}")

    def next(self) -> object:
        return self.posted.get(timeout=WAIT_S)


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.executor.stop()


def test_what_jobs_return_is_posted_in_order(bench: Bench) -> None:
    for number in range(20):
        bench.submit(lambda number=number: number)
    assert [bench.next() for _ in range(20)] == list(range(20))


def test_jobs_run_on_the_executors_thread(bench: Bench) -> None:
    bench.submit(threading.current_thread)
    thread = bench.next()
    assert isinstance(thread, threading.Thread)
    assert thread.name == "bench"
    assert thread.daemon


def test_an_error_is_posted_as_its_requester_wants_and_the_thread_goes_on(bench: Bench) -> None:
    def broken() -> object:
        raise MemoryError("no more")

    bench.submit(broken)
    bench.submit(lambda: "next")
    assert [bench.next(), bench.next()] == ["failed: no more", "next"]


def test_a_job_without_a_result_posts_nothing(bench: Bench) -> None:
    bench.submit(lambda: None)
    bench.submit(lambda: "next")
    assert bench.next() == "next"
    assert bench.posted.empty()


def test_it_tells_how_long_the_job_under_way_runs(bench: Bench) -> None:
    started, go_on = threading.Event(), threading.Event()

    def job() -> str:
        started.set()
        go_on.wait(WAIT_S)
        return "done"

    assert bench.executor.busy_for() == 0.0
    bench.now = 10.0
    bench.submit(job)
    assert started.wait(WAIT_S)
    bench.now = 12.5
    assert bench.executor.busy_for() == 2.5
    go_on.set()
    assert bench.next() == "done"
    assert bench.executor.busy_for() == 0.0


def test_stop_ends_the_thread_after_what_was_submitted() -> None:
    bench = Bench()
    bench.submit(lambda: "last")
    bench.executor.stop()
    assert bench.next() == "last"
    bench.submit(lambda: "too late")
    assert not any(thread.name == "bench" for thread in threading.enumerate())
    assert bench.posted.empty()
