"""Where the chaos happens: a fleet of real processes, each agent behind a proxy of its own."""

from __future__ import annotations

import signal
import time
from contextlib import ExitStack, nullcontext
from typing import TYPE_CHECKING, Any, Self

from agent.adapters.fleet import ProcessFleet
from agent.adapters.local_broker import LocalBroker
from agent.config import BrokerConfig, Config
from tests.chaos.machine import Cable, Disk
from tests.chaos.proxy import Proxy
from tests.field.support import NOMINAL, Field, resume_broker

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

LOOPBACK = "127.0.0.1"
RESTART_S = 0.5  # systemd/halomq-agent.service waits as well


class CabledFleet(ProcessFleet):
    """A fleet whose agents are at the far ends of `cables`, those that have one."""

    def __init__(self, cables: Mapping[str, Cable], *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._cables = cables

    def start(self, name: str) -> None:
        """Start the agent or coordinator `name` (again)."""
        cable = self._cables.get(name)
        with cable.place.inside() if cable else nullcontext():
            super().start(name)


class Site:
    """A broker, a coordinator and `devices` agents in `folder`; a context manager.

    It restarts what ends, as systemd does, unless a fault holds it down; `ended` tells what ended
    with no fault that explains it. Where this program is `alone` in its namespaces, each agent has
    a cable and a disk of its own.
    """

    def __init__(self, folder: Path, devices: int, *, alone: bool = False) -> None:
        self.folder = folder
        self.ended: list[str] = []
        self.held: set[str] = set()
        self.excused: set[str] = set()
        self._told_to_end: set[str] = set()
        self.killed_by_kernel = 0
        self.cables: dict[str, Cable] = {}
        self.disks: dict[str, Disk] = {}
        self._restart_at: dict[str, float] = {}
        self._stack = ExitStack()
        with ExitStack() as stack:
            self.broker = stack.enter_context(
                LocalBroker.start(folder / "broker", allow_embedded=False)
            )
            target = (self.broker.host, self.broker.port)
            names = [f"device-{number + 1}" for number in range(devices)]
            if alone:
                for number, name in enumerate(names, start=1):
                    self.cables[name] = stack.enter_context(Cable(number))
                    self.disks[name] = stack.enter_context(Disk(folder / name))
            self.proxies = {
                name: stack.enter_context(Proxy(self._host(name), target)) for name in names
            }
            self.fleet = CabledFleet(
                self.cables,
                folder,
                devices,
                broker=self.broker,
                settings=NOMINAL,
                own={
                    name: {
                        "HALOMQ_BROKER_HOST": proxy.host,
                        "HALOMQ_BROKER_PORT": str(proxy.port),
                    }
                    for name, proxy in self.proxies.items()
                },
            )
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        try:
            self._stack.enter_context(self.fleet)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        # What is stopped cannot end politely.
        for name in list(self.fleet.processes):
            self.send(name, signal.SIGCONT)
        self._stack.close()

    @property
    def names(self) -> tuple[str, ...]:
        """The agents."""
        return self.fleet.names

    @property
    def field(self) -> Field:
        """The fleet as the field tests see it."""
        broker = BrokerConfig(host=self.broker.host, port=self.broker.port)
        return Field(self.fleet, self.folder, Config(broker=broker))

    def _host(self, name: str) -> str:
        cable = self.cables.get(name)
        return LOOPBACK if cable is None else cable.address

    def send(self, name: str, what: signal.Signals) -> None:
        """Send a signal to a process, if it runs."""
        process = self.fleet.processes.get(name)
        if process is not None and process.poll() is None:
            process.send_signal(what)
            if what == signal.SIGTERM:
                self._told_to_end.add(name)

    def hold_down(self, name: str, what: signal.Signals) -> None:
        """End a process, and keep it from being restarted until `let_go`."""
        self.held.add(name)
        self.send(name, what)

    def let_go(self, name: str) -> None:
        """Have a process that was held down started."""
        self.held.discard(name)
        self.excused.add(name)

    def tend(self) -> None:
        """Restart what has ended; call it often."""
        now = time.monotonic()
        for name, process in list(self.fleet.processes.items()):
            if name in self.held or process.poll() is None:
                continue
            if name not in self._restart_at:
                left = process.returncode == 0 and name in self._told_to_end
                if left or name in self.excused:
                    self._restart_at[name] = now
                else:
                    last = self._last_words(name)
                    self.ended.append(f"{name} ended with status {process.returncode}: {last}")
                    self._restart_at[name] = now + RESTART_S
            if now >= self._restart_at[name]:
                del self._restart_at[name]
                self.excused.discard(name)
                self._told_to_end.discard(name)
                self.fleet.start(name)

    def end_broker(self, how: signal.Signals) -> None:
        """End the broker and wait until it has."""
        self.broker._process.send_signal(how)
        self.broker._process.wait()

    def start_broker(self, *, keeps_state: bool) -> None:
        """Start the broker again, with or without what it has saved."""
        if not keeps_state:
            (self.broker.log.parent / "mosquitto.db").unlink(missing_ok=True)
        resume_broker(self.broker)

    def _last_words(self, name: str) -> str:
        lines = self.fleet.log(name).read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "no word"
