"""What the rig measures: one device against the fleet, in turns, and the answers' exactness."""

from __future__ import annotations

import statistics
import sys
import time
from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psutil

from agent.adapters.local_broker import LocalBroker
from agent.client import Client
from agent.config import BrokerConfig, Config
from agent.errors import FleetError
from agent.verification import equal, relative_error
from agent.wire.tensors import message_array
from benchmarks.rig.fleet import RigFleet, Site, put_in_stock
from benchmarks.rig.network import LINKS, Network, check_possible
from benchmarks.rig.subject import Subject
from benchmarks.speedup import breakdown

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from agent.wire.messages import Answer, Pace, PlanHeader, Trace

WARM_UP = 2
TIMEOUT_S = 300.0
IDLE_LOAD = 0.1
SETTLE_S = 60.0
SETTLE_STEP_S = 0.5
MOST_LOAD = 0.85
MOST_LATE = 0.02


@dataclass(frozen=True)
class Setup:
    """What to measure: devices are `slowness[i]` times slower than this machine's one core."""

    model: str
    slowness: tuple[float, ...]
    rate: str = "1gbit"
    strategy: str = "dpfp"
    objective: str = "latency"
    halos: str = "lossless"
    in_flight: int = 1
    requests: int = 10


class OvercommittedError(FleetError):
    """The machine had too little time for the devices that it played: figures mean nothing."""

    exit_code = 3


class Load:
    """How busy the machine was while `measure` ran, in all."""

    def __init__(self) -> None:
        self._busy = self._total = 0.0

    @property
    def share(self) -> float:
        """Busy time over all time, of all cores."""
        return self._busy / self._total if self._total else 0.0

    def __enter__(self) -> None:
        self._before = psutil.cpu_times()

    def __exit__(self, *_: object) -> None:
        before, after = self._before, psutil.cpu_times()
        total = sum(after) - sum(before)
        self._total += total
        self._busy += total - (after.idle - before.idle) - (after.iowait - before.iowait)


@dataclass
class Side:
    """One fleet with the model deployed, and what was measured of it."""

    title: str
    fleet: RigFleet
    client: Client
    subject: Subject
    header: PlanHeader
    load: Load = field(default_factory=Load)
    latencies: list[float] = field(default_factory=list)
    traces: list[list[Trace]] = field(default_factory=list)
    per_s: float = 0.0

    def ask(self) -> tuple[float, list[Trace]]:
        """Send one request; return its latency in ms at the client, and the devices' traces."""
        name = self.subject.name
        with self.load:
            started = time.perf_counter()
            request = self.client.send(name, self.subject.payload, timeout_s=TIMEOUT_S, traces=True)
            answer = _checked(self.client.answer(name, request, TIMEOUT_S))
            elapsed = (time.perf_counter() - started) * 1e3
        if answer.epoch != self.header.epoch:
            self.header = next(h for h in self.client.plans() if h.model == name)
        return elapsed, self.client.traces(name, request, len(answer.devices))

    def pour(self, requests: int, in_flight: int) -> None:
        """Answer `requests` with `in_flight` of them under way; note how many it does a second."""
        name, payload = self.subject.name, self.subject.payload
        under_way: deque[str] = deque()
        with self.load:
            started = time.perf_counter()
            for _ in range(requests):
                if len(under_way) == in_flight:
                    _checked(self.client.answer(name, under_way.popleft(), TIMEOUT_S))
                under_way.append(self.client.send(name, payload, timeout_s=TIMEOUT_S))
            while under_way:
                _checked(self.client.answer(name, under_way.popleft(), TIMEOUT_S))
            self.per_s = requests / (time.perf_counter() - started)

    def exactness(self) -> tuple[bool, float]:
        """Compare raw answers with the whole model's: identical, and the largest difference."""
        subject = self.subject
        told = _checked(
            self.client.infer(subject.name, subject.payload, tensors=True, timeout_s=TIMEOUT_S)
        )
        outputs = {name: message_array(tensor) for name, tensor in (told.outputs or {}).items()}
        pairs = [(expected, outputs[name]) for name, expected in subject.expected().items()]
        return all(equal(a, b) for a, b in pairs), max(relative_error(a, b) for a, b in pairs)


def measure(setup: Setup, folder: Path) -> dict[str, Any]:
    """Build the rig in `folder`, measure, and take it down; times are in milliseconds.

    Raises:
        OvercommittedError: if the machine could not keep the devices' pace.
        HaloMQError: if the rig cannot be built, or a request fails.
    """
    check_possible()
    subject = Subject.find(
        setup.model, strategy=setup.strategy, objective=setup.objective, halos=setup.halos
    )
    put_in_stock(subject.packaged, folder)
    names = [f"device-{number + 1}" for number in range(len(setup.slowness))]
    with ExitStack() as stack:
        network = stack.enter_context(
            Network(LINKS[setup.rate], ["broker", "client", "coordinator", *names])
        )
        figures = network.measure(names[0], "broker")
        with network.places["broker"].inside():
            broker = stack.enter_context(
                LocalBroker.start(
                    folder / "broker", allow_embedded=False, host=network.address("broker")
                )
            )
        stack.enter_context(network.places["client"].inside())
        site = Site(folder, network, broker)
        slowness = dict(zip(names, setup.slowness, strict=True))
        fastest = min(names, key=slowness.__getitem__)
        fleets = {"one": {fastest: slowness[fastest]}, "many": slowness}
        settings = {"HALOMQ_REQUESTS_MAX_IN_FLIGHT": str(max(16, setup.in_flight))}
        sides = []
        for title, paced in fleets.items():
            fleet = stack.enter_context(RigFleet(site, title, paced, settings))
            sides.append(_serve(stack, fleet, subject, title))
        _settle()
        _compare(sides, setup)
        identical, error = sides[-1].exactness()
    refuse_overcommitted(*_overcommitment(sides))
    return {
        "emulated": True,
        "model": setup.model,
        **_report(sides, setup),
        "max_rel_error": error,
        "identical": identical,
        "link_up_mbit": round(figures.up_mbit, 1),
        "link_down_mbit": round(figures.down_mbit, 1),
        "link_round_trip_ms": round(figures.round_trip_ms, 3),
        "link_delay_ms": network.link.delay_ms if network.delayed else 0.0,
    }


def refuse_overcommitted(cpu_load: float, late_share: float) -> None:
    """Refuse figures of a machine that had no time to play its devices.

    Raises:
        OvercommittedError: saying how much was too much.
    """
    if cpu_load > MOST_LOAD or late_share > MOST_LATE:
        raise OvercommittedError(
            "this machine was overcommitted, so there are no figures: "
            f"load {cpu_load:.0%} (at most {MOST_LOAD:.0%}), "
            f"steps too late {late_share:.1%} (at most {MOST_LATE:.0%}); "
            "take a larger --slowness or fewer --devices"
        )


def _serve(stack: ExitStack, fleet: RigFleet, subject: Subject, title: str) -> Side:
    broker = fleet.broker
    config = Config(fleet=title, broker=BrokerConfig(host=broker.host, port=broker.port))
    client = stack.enter_context(Client(config=config))
    header = client.deploy(subject.packaged.package, subject.packaged.blobs)
    fleet.wait_quiet()
    header = client.measured_plan(header.model)
    fleet.wait_quiet()
    return Side(title, fleet, client, subject, header)


def _settle() -> None:
    """Wait until the machine is idle, for a while: coordinators plan for losses meanwhile."""
    deadline = time.monotonic() + SETTLE_S
    while psutil.cpu_percent(SETTLE_STEP_S) > IDLE_LOAD * 100:
        if time.monotonic() > deadline:
            sys.stderr.write("note: the machine does not become idle\n")
            return


def _compare(sides: Sequence[Side], setup: Setup) -> None:
    """Measure the sides in turns, so that a noisy machine slows both alike."""
    for side in sides:
        for number in range(WARM_UP):
            _, traces = side.ask()
            if number == WARM_UP - 1:
                side.traces.append(traces)
        side.load = Load()
    for _ in range(setup.requests):
        for side in sides:
            elapsed, traces = side.ask()
            side.latencies.append(elapsed)
            side.traces.append(traces)
    for side in sides:
        side.per_s = 1e3 / statistics.mean(side.latencies)
        if setup.in_flight > 1:
            side.pour(max(setup.requests, 2 * setup.in_flight), setup.in_flight)
            side.traces.append(side.ask()[1])


def _overcommitment(sides: Sequence[Side]) -> tuple[float, float]:
    load = max(side.load.share for side in sides)
    steps = late = 0
    for side in sides:
        for before, after in _paces(side).values():
            steps += after.steps - before.steps
            late += after.late - before.late
    return load, late / max(1, steps)


def _paces(side: Side) -> dict[str, tuple[Pace, Pace]]:
    """Return each device's pace at the first trace and at the last."""
    first: dict[str, Pace] = {}
    last: dict[str, Pace] = {}
    for trace in (trace for told in side.traces for trace in told):
        if trace.pace is not None:
            first.setdefault(trace.device, trace.pace)
            last[trace.device] = trace.pace
    return {device: (first[device], last[device]) for device in first}


def _report(sides: Sequence[Side], setup: Setup) -> dict[str, Any]:
    one, many = sides
    single, measured = (statistics.median(side.latencies) for side in sides)
    load, late = _overcommitment(sides)
    answered = len(many.latencies) + 1
    over = sum(after.over_ms - before.over_ms for before, after in _paces(many).values())
    traced = [told for told in many.traces[1 : len(many.latencies) + 1] if told]
    return {
        "devices": len(setup.slowness),
        "slowness": list(setup.slowness),
        "rate": setup.rate,
        "strategy": setup.strategy,
        "objective": setup.objective,
        "halos": setup.halos,
        "requests": setup.requests,
        "in_flight": setup.in_flight,
        "speedup": round(single / measured, 3),
        "single_ms": round(single, 2),
        "measured_ms": round(measured, 2),
        "fastest_ms": round(min(many.latencies), 2),
        "predicted_ms": round(many.header.predicted_ms, 2),
        "prediction_error": round(many.header.predicted_ms / measured - 1, 3),
        "single_predicted_ms": round(one.header.predicted_ms, 2),
        "throughput_ratio": round(many.per_s / one.per_s, 3),
        "requests_per_s": round(many.per_s, 3),
        "single_requests_per_s": round(one.per_s, 3),
        "devices_used": len(many.header.devices),
        "epoch": many.header.epoch,
        **breakdown(traced, many.header.devices[0], measured),
        "sent_kb": round(sum(t.bytes_sent for t in traced[-1]) / 1e3, 1),
        "cpu_load": round(load, 3),
        "late_share": round(late, 4),
        "overslept_ms": round(over / answered / len(many.header.devices), 2),
    }


def _checked(answer: Answer) -> Answer:
    if not answer.ok:
        raise FleetError(f"a request failed: {answer.error.text if answer.error else 'no reason'}")
    return answer
