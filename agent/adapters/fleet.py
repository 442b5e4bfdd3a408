"""A fleet of real processes on this machine: a broker, a coordinator and agents, on loopback."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Self

from agent.adapters.local_broker import LocalBroker, tied_to_this_process
from agent.errors import FleetError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

STOP_S = 10.0
START_S = 60.0
POLL_S = 0.1
QUIET_S = 2.0


class ProcessFleet:
    """Agents named device-1, device-2... and a coordinator, each a process with its own folder.

    A context manager: on leaving, it ends what it started (and the broker, if it started it).
    `settings` are HALOMQ_* variables for all processes, `own` those of single ones by name;
    `cores[i]` pins agent i to one core.
    """

    def __init__(
        self,
        folder: Path,
        devices: int,
        *,
        broker: LocalBroker | None = None,
        settings: Mapping[str, str] | None = None,
        own: Mapping[str, Mapping[str, str]] | None = None,
        cores: Sequence[int] | None = None,
    ) -> None:
        self._folder = folder
        self._owns_broker = broker is None
        self.broker = broker or LocalBroker.start(folder / "broker")
        self._settings = dict(settings or {})
        self.own = dict(own or {})
        self._cores = cores
        self.names = tuple(f"device-{number + 1}" for number in range(devices))
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        try:
            self.start("coordinator")
            for name in self.names:
                self.start(name)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, name: str) -> None:
        """Start the agent or coordinator `name` (again)."""
        role = "coordinator" if name == "coordinator" else "agent"
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("HALOMQ_")}
        environment = inherited | {
            "HALOMQ_BROKER_HOST": self.broker.host,
            "HALOMQ_BROKER_PORT": str(self.broker.port),
            "HALOMQ_DATA_DIR": str(self._folder / name),
            "HALOMQ_DEVICE": name,
            "HALOMQ_RUNTIME_THREADS": "1",
            **self._settings,
            **self.own.get(name, {}),
        }
        command = [*tied_to_this_process(), sys.executable, "-m", "agent", role]
        if self._cores is not None and role == "agent":
            core = self._cores[self.names.index(name) % len(self._cores)]
            command = ["taskset", "-c", str(core), *command]
        self._folder.mkdir(parents=True, exist_ok=True)
        with self.log(name).open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
            )

    def log(self, name: str) -> Path:
        """Return where a process writes its log."""
        return self._folder / f"{name}.log"

    def wait_online(self, count_online: Callable[[], int], wanted: int) -> None:
        """Wait until `count_online()` reaches `wanted`.

        Raises:
            FleetError: if a process ended, or it takes longer than a minute.
        """
        deadline = time.monotonic() + START_S
        while count_online() < wanted:
            self.check()
            if time.monotonic() > deadline:
                raise FleetError(f"not all devices came online; see the logs in {self._folder}")
            time.sleep(POLL_S)

    def wait_quiet(self) -> None:
        """Wait until no process stores weights any more, those for the time after a loss included.

        Raises:
            FleetError: if it takes longer than a minute.
        """
        deadline = time.monotonic() + START_S
        stored, since = -1, time.monotonic()
        while time.monotonic() - since < QUIET_S:
            now_stored = sum(1 for _ in self._folder.glob("*/blobs/*"))
            if now_stored != stored:
                stored, since = now_stored, time.monotonic()
            if time.monotonic() > deadline:
                raise FleetError(f"the agents still store weights; see the logs in {self._folder}")
            time.sleep(POLL_S)

    def check(self) -> None:
        """Check that every process still runs.

        Raises:
            FleetError: naming the one that ended and the last line of its log.
        """
        for name, process in self.processes.items():
            if process.poll() is not None:
                lines = self.log(name).read_text(errors="replace").strip().splitlines()
                said = lines[-1] if lines else "no word"
                raise FleetError(f"{name} ended with status {process.returncode}: {said}")

    def kill(self, name: str) -> None:
        """End a process at once, as a pulled plug would."""
        process = self.processes.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def stop(self) -> None:
        """End every process, politely first."""
        processes, self.processes = self.processes, {}
        for process in processes.values():
            process.terminate()
        for process in processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_S)
            if process.poll() is None:
                process.kill()
                process.wait()
        if self._owns_broker:
            self.broker.stop()
