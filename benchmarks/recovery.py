"""What does a loss cost a request in flight? One of four agents is killed, or frozen, at work.

`python -m benchmarks.recovery --fault kill --runs 10 --json`: real agents and a Mosquitto of their
own on this machine's loopback. In each run a request is sent, a device is struck at a point between
the request's start and its usual end (another one each run, another point), and the answer is
waited for: `delay_ms` is from the fault to the answer. Only answers that were made without the
device count. `three_ms` is what requests take on the three that are left, in the same runs once
nothing else is going on; `ratio` is delay / three. The device is then started anew.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.adapters.fleet import ProcessFleet
from agent.adapters.local_broker import LocalBroker
from agent.client import Client
from agent.demo.models import DemoModel, find_model
from agent.demo.run import Demo
from agent.errors import FleetError
from benchmarks.speedup import quiet

if TYPE_CHECKING:
    from collections.abc import Iterator

DEVICES = 4
WARM_UP = 3
NORMAL = 5
PATIENCE_S = 90.0
# Of a request's usual time: when the fault strikes.
EARLIEST, LATEST = 0.1, 0.7
# A request that is answered before the fault takes effect tells nothing.
ATTEMPTS = 4


class Field:
    """Four agents, the model on them, and a client."""

    def __init__(self, fleet: ProcessFleet, demo: Demo, client: Client) -> None:
        self._fleet = fleet
        self._demo = demo
        self._client = client

    def settle(self, devices: set[str]) -> None:
        """Wait until `devices` serve the model and all is ready for a loss.

        Raises:
            FleetError: if that is not so within `PATIENCE_S`.
        """
        deadline = time.monotonic() + PATIENCE_S
        while not self._is_settled(devices):
            self._fleet.check()
            if time.monotonic() > deadline:
                raise FleetError(f"no plan of {sorted(devices)} within {PATIENCE_S:g} s")

    def _is_settled(self, devices: set[str]) -> bool:
        shown = [
            model
            for status in self._client.devices(1.0)
            if status.state == "online"
            for model in status.models
            if model.name == self._demo.name
        ]
        return [(m.state, set(m.devices), set(m.covered)) for m in shown] == [
            ("serving", devices, devices)
        ]

    def latency(self) -> float:
        """Return the median latency of requests now, in seconds."""
        taken = []
        for _ in range(WARM_UP + NORMAL):
            started = time.perf_counter()
            self._checked(self._client.send(self._demo.name, self._demo.payload))
            taken.append(time.perf_counter() - started)
        return statistics.median(taken[WARM_UP:])

    def strike(self, victim: str, fault: str, at_s: float) -> tuple[float, tuple[str, ...]]:
        """Strike a device `at_s` after a request was sent; return the delay and who answered."""
        name = self._client.send(self._demo.name, self._demo.payload)
        self._client.flush()
        time.sleep(at_s)
        with self._struck(victim, fault):
            began = time.perf_counter()
            devices = self._checked(name)
            return time.perf_counter() - began, devices

    def _checked(self, name: str) -> tuple[str, ...]:
        answer = self._client.answer(self._demo.name, name)
        if not answer.ok:
            raise FleetError(f"a request failed: {answer.error}")
        return answer.devices

    @contextmanager
    def _struck(self, victim: str, fault: str) -> Iterator[None]:
        if fault == "kill":
            self._fleet.kill(victim)
            yield
            return
        process = self._fleet.processes.pop(victim)
        process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            process.kill()
            process.wait()

    def restart(self, victim: str) -> None:
        """Start a device again."""
        self._fleet.start(victim)


def measure(field: Field, names: tuple[str, ...], fault: str, runs: int) -> dict[str, Any]:
    """Strike `runs` times and return the figures."""
    delays: list[float] = []
    three: list[float] = []
    for number in range(runs):
        victim = names[number % len(names)]
        share = EARLIEST + (LATEST - EARLIEST) * (number * 0.618 % 1.0)
        for attempt in range(ATTEMPTS):
            field.settle(set(names))
            usual = field.latency()
            delay, devices = field.strike(victim, fault, usual * share / (attempt + 1))
            if victim not in devices:
                break
            field.restart(victim)
        else:
            raise FleetError(f"a request was always answered before {victim} was missed")
        field.settle(set(names) - {victim})
        delays.append(delay)
        three.append(field.latency())
        sys.stderr.write(
            f"{victim} at {share:.0%} of {usual * 1e3:.0f} ms: {delay * 1e3:.0f} ms,"
            f" three take {three[-1] * 1e3:.0f} ms\n"
        )
        field.restart(victim)
    normal, median = statistics.median(three), statistics.median(delays)
    ratios = [delay / usual for delay, usual in zip(delays, three, strict=True)]
    return {
        "fault": fault,
        "runs": runs,
        "median_ms": round(median * 1e3, 1),
        "worst_ms": round(max(delays) * 1e3, 1),
        "three_ms": round(normal * 1e3, 1),
        "median_ratio": round(statistics.median(ratios), 2),
        "worst_ratio": round(max(ratios), 2),
        "target_ms": round(1.5 * normal * 1e3 + 100, 1) if fault == "kill" else 1000.0,
        "delays_ms": [round(delay * 1e3, 1) for delay in delays],
    }


def run(model: DemoModel, fault: str, runs: int) -> dict[str, Any]:
    """Start a fleet, measure, and end it."""
    with tempfile.TemporaryDirectory(prefix="halomq-recovery-") as name:
        folder = Path(name)
        with (
            LocalBroker.start(folder / "broker", allow_embedded=False) as broker,
            ProcessFleet(folder / "fleet", DEVICES, broker=broker) as fleet,
        ):
            demo = Demo(fleet, model, quiet)
            with Client(config=demo.config) as client:
                demo.wait_for_devices(client)
                demo.deploy(client)
                return measure(Field(fleet, demo, client), fleet.names, fault, runs)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fault", choices=("kill", "freeze"), default="kill")
    parser.add_argument("--model", default="vgg16", help="vgg16, defects or an ONNX file")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    figures = run(find_model(arguments.model, None), arguments.fault, arguments.runs)
    if arguments.json:
        print(json.dumps(figures, indent=2))
    else:
        for name, value in figures.items():
            print(f"{name:16} {value}")


if __name__ == "__main__":
    main()
