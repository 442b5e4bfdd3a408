"""The coordinator that an agent keeps: started, started again where it ends, and stopped."""

from __future__ import annotations

import multiprocessing
from typing import Any, ClassVar

import pytest

from agent.config import Config
from agent.errors import ConfigError
from agent.service import standby
from agent.service.standby import FIRST_RETRY_S, LAST_RETRY_S, StandbyProcess


class Process:
    """A process that ends when it is told to."""

    started: ClassVar[list[Process]] = []

    def __init__(self, **_: Any) -> None:
        self.alive = False
        self.exitcode = 1

    def start(self) -> None:
        self.alive = True
        Process.started.append(self)

    def is_alive(self) -> bool:
        return self.alive

    def terminate(self) -> None:
        self.alive = False

    def join(self, timeout: float | None = None) -> None:
        del timeout


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Process]:
    """The processes that were started so far."""

    class Context:
        Process = Process

    Process.started = []
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: Context)
    return Process.started


def test_it_is_started_once(started: list[Process]) -> None:
    kept = StandbyProcess(Config())
    kept.keep(10.0)
    kept.keep(20.0)
    assert len(started) == 1
    kept.stop()
    assert not started[0].alive


def test_one_that_ends_is_started_again_ever_more_rarely(started: list[Process]) -> None:
    kept, now, waits = StandbyProcess(Config()), 0.0, []
    kept.keep(now)
    for count in range(1, 10):
        started[-1].alive = False
        ended = now
        while len(started) == count:
            kept.keep(now)
            now += 0.5
        waits.append(now - 0.5 - ended)
    assert waits[:3] == [FIRST_RETRY_S, 2 * FIRST_RETRY_S, 4 * FIRST_RETRY_S]
    assert waits[-1] == LAST_RETRY_S


def test_without_the_planner_the_agent_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(standby, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="planner"):
        StandbyProcess(Config())
