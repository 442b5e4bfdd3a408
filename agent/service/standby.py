"""The coordinator that an agent keeps: in a process of its own, for planning is long work."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from importlib.util import find_spec
from typing import TYPE_CHECKING

from agent.adapters.logs import log, start_logging
from agent.errors import ConfigError, HaloMQError

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.process import BaseProcess

    from agent.config import Config

FIRST_RETRY_S = 2.0
LAST_RETRY_S = 60.0
STOP_S = 5.0


class StandbyProcess:
    """Keeps a coordinator running beside the agent of `config`; it ends with this process.

    Raises:
        ConfigError: if the planner is not installed.
    """

    def __init__(self, config: Config) -> None:
        if find_spec("onnx") is None:
            raise ConfigError(
                "coordinator.standby needs the planner: pip install 'halomq[planner]'"
            )
        self._config = config
        self._process: BaseProcess | None = None
        self._start_at = 0.0
        self._retry_s = FIRST_RETRY_S

    def keep(self, now: float) -> None:
        """Start the coordinator if it does not run: at once, then with growing delays."""
        if self._process is not None and self._process.is_alive():
            return
        if self._process is not None:
            log("error", f"the coordinator ended with status {self._process.exitcode}")
            self._process = None
            self._start_at = now + self._retry_s
            self._retry_s = min(2 * self._retry_s, LAST_RETRY_S)
        if now < self._start_at:
            return
        # Spawned: a fork would take along locks that this process's threads hold.
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=_coordinate, args=(self._config,), daemon=True)
        self._process.start()

    def stop(self) -> None:
        """Have the coordinator leave."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        process.join(STOP_S)
        if process.is_alive():
            process.kill()
            process.join()


def _coordinate(config: Config) -> None:
    from agent.service.coordinator import CoordinatorService  # noqa: PLC0415 - it imports onnx

    name = f"standby-{config.device}"
    start_logging(config.log_level, name)
    try:
        service = CoordinatorService(name, config.data_dir / "standby", config, {})
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: service.leave())
        threading.Thread(target=_follow_parent, args=(service.leave,), daemon=True).start()
        service.run()
    except HaloMQError as error:
        log("error", str(error))
        raise SystemExit(error.exit_code) from None


def _follow_parent(leave: Callable[[], None]) -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        leave()
