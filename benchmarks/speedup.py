"""Is it faster? Agents pinned to a core each against one agent on one core, in the same run.

`python -m benchmarks.speedup --model vgg16 --devices 2 --json`. Both fleets share one broker and
are measured in turns, request by request, so that a noisy machine slows both alike. What is lost
against the ideal (single_ms / devices) is named: compute_ms is the slowest device's computing,
head_ms the part of it behind the last spatial block, exchange_ms what the answering device waited
for others, wait_ms the rest (decoding, message handling, the client's own way to the broker).
core_slowdown is what the machine itself takes: how much longer bare onnxruntime needs for the whole
model on one core while it runs on the others too; no split can pass devices / core_slowdown here.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.adapters.fleet import ProcessFleet
from agent.adapters.local_broker import LocalBroker
from agent.adapters.media import decode_input
from agent.adapters.runtime import RuntimeOptions, WholeModel
from agent.client import Client
from agent.config import BrokerConfig, Config
from agent.demo.models import DemoModel, find_model
from agent.demo.run import Demo
from agent.packaging import package_model

if TYPE_CHECKING:
    from agent.wire.messages import Trace

WARM_UP = 5
BARE_RUNS = 7
SPATIAL_RANK = 4


class Side:
    """One of the two fleets, with a client and the model deployed."""

    def __init__(self, demo: Demo, client: Client, cores: int) -> None:
        self._demo = demo
        self._client = client
        self.header = demo.deploy(client)
        if len(self.header.devices) != cores:
            sys.stderr.write(f"note: the planner chose {len(self.header.devices)} devices\n")

    def measure(self) -> tuple[float, list[Trace]]:
        """Send one request; return its latency in ms at the client, and the devices' traces."""
        name, payload = self._demo.name, self._demo.payload
        started = time.perf_counter()
        request = self._client.send(name, payload, traces=True)
        answer = self._client.answer(name, request)
        elapsed = (time.perf_counter() - started) * 1e3
        if not answer.ok:
            raise SystemExit(f"the request failed: {answer.error}")
        return elapsed, self._client.traces(name, request, len(self.header.devices))


def quiet(_text: str, _fraction: float) -> None:
    """Report nothing."""


def head_of(trace: Trace) -> float:
    """Return what a device computed on tensors that are no maps any more, in ms."""
    return sum(s.end_ms - s.start_ms for s in trace.steps if len(s.region) < SPATIAL_RANK)


def run(model: str, devices: int, requests: int) -> dict[str, Any]:
    """Measure and return the figures, in milliseconds."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < devices:
        raise SystemExit(
            f"{devices} pinned agents need {devices} cores; this machine lends {len(cores)}"
        )
    chosen = find_model(model, None)
    with tempfile.TemporaryDirectory(prefix="halomq-speedup-") as name:
        folder = Path(name)
        with ExitStack() as stack:
            broker = stack.enter_context(LocalBroker.start(folder / "broker", allow_embedded=False))
            ready = []
            for title, count in (("one", 1), ("many", devices)):
                # One fleet after the other: they share cores, and measure them when they start.
                members = stack.enter_context(fleet(folder, broker, title, count, cores))
                client = stack.enter_context(Client(config=config(broker, title)))
                demo = Demo(members, chosen, quiet)
                demo.wait_for_devices(client)
                ready.append((demo, client, count))
            sides = [Side(*entry) for entry in ready]
            figures = compare(sides, model, devices, requests)
    slowdown = core_slowdown(chosen, cores[:devices])
    return figures | {
        "core_slowdown": round(slowdown, 3),
        "speedup_bound": round(devices / slowdown, 3),
    }


def fleet(
    folder: Path, broker: LocalBroker, title: str, devices: int, cores: list[int]
) -> ProcessFleet:
    """Return a fleet named `title` whose i-th agent is pinned to the i-th core."""
    settings = {"HALOMQ_FLEET": title}
    return ProcessFleet(folder / title, devices, broker=broker, settings=settings, cores=cores)


def config(broker: LocalBroker, title: str) -> Config:
    """Return the settings of a client of fleet `title`."""
    return Config(fleet=title, broker=BrokerConfig(host=broker.host, port=broker.port))


def compare(sides: list[Side], model: str, devices: int, requests: int) -> dict[str, Any]:
    """Measure both sides in turns."""
    times: list[list[float]] = [[], []]
    traces: list[list[Trace]] = []
    for number in range(WARM_UP + requests):
        for side, collected in zip(sides, times, strict=True):
            elapsed, told = side.measure()
            if number >= WARM_UP:
                collected.append(elapsed)
                if side is sides[1]:
                    traces.append(told)
    single, many = (statistics.median(collected) for collected in times)
    return {
        "model": model,
        "devices": devices,
        "speedup": round(single / many, 3),
        "single_ms": round(single, 2),
        "distributed_ms": round(many, 2),
        "ideal_ms": round(single / devices, 2),
        **breakdown(traces, sides[1].header.devices[0], many),
        "predicted_ms": round(sides[1].header.predicted_ms, 2),
        "requests": requests,
        "devices_used": len(sides[1].header.devices),
    }


def breakdown(traces: list[list[Trace]], answering: str, latency_ms: float) -> dict[str, float]:
    """Return where the time of requests goes, from each one's traces."""
    compute = statistics.median(max(t.compute_ms for t in told) for told in traces)
    head = statistics.median(max(head_of(t) for t in told) for told in traces)
    waited = statistics.median(t.wait_ms for told in traces for t in told if t.device == answering)
    return {
        "compute_ms": round(compute, 2),
        "head_ms": round(head, 2),
        "exchange_ms": round(waited, 2),
        "wait_ms": round(max(0.0, latency_ms - compute - waited), 2),
    }


def core_slowdown(chosen: DemoModel, cores: list[int]) -> float:
    """Return how much longer the whole model takes on one of `cores` while all of them run it."""
    packaged = package_model(chosen.model)
    spec = packaged.graph.tensors[packaged.graph.input]
    payload = chosen.picture.read_bytes()
    image = decode_input(payload, packaged.manifest, spec.shape, spec.dtype, None).whole()
    models = {core: WholeModel(chosen.model, RuntimeOptions(threads=1)) for core in cores}

    def work(core: int) -> float:
        os.sched_setaffinity(0, {core})  # of this thread alone
        times = []
        for _ in range(WARM_UP + BARE_RUNS):
            started = time.perf_counter()
            models[core].run([image])
            times.append(time.perf_counter() - started)
        return statistics.median(times[WARM_UP:])

    with ThreadPoolExecutor(len(cores)) as pool:
        alone = pool.submit(work, cores[0]).result()
        together = list(pool.map(work, cores))
    return statistics.mean(together) / alone


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="vgg16", help="vgg16, defects or an ONNX file")
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--requests", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    figures = run(arguments.model, arguments.devices, arguments.requests)
    if arguments.json:
        print(json.dumps(figures, indent=2))
    else:
        for name, value in figures.items():
            print(f"{name:16} {value}")


if __name__ == "__main__":
    main()
