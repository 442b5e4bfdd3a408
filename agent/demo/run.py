"""What the demo does, step by step; each step reports its progress and returns what it saw."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agent.adapters.media import DecodedInput, decode_input
from agent.adapters.runtime import RuntimeOptions, WholeModel
from agent.answers import answer as make_answer
from agent.config import BrokerConfig, Config
from agent.errors import FleetError
from agent.packaging import package_model
from agent.verification import equal, relative_error
from agent.wire.tensors import message_array

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from agent.adapters.fleet import ProcessFleet
    from agent.client import Client
    from agent.demo.models import DemoModel
    from agent.packaging import PackagedModel
    from agent.wire.messages import Answer, PlanHeader, Trace

WARM_UP = 2
REPEATS = 5
KILL_ATTEMPTS = 3
KILL_AT = 0.3
RECOVERY_S = 120.0
PREPARED_S = 15.0


@dataclass(frozen=True)
class Reference:
    """What one device alone computes, with onnxruntime, and how long it takes."""

    outputs: dict[str, NDArray[Any]]
    answer: dict[str, Any]
    single_ms: float


@dataclass(frozen=True)
class Served:
    """How the fleet served one request: the same one, several times."""

    header: PlanHeader
    answer: dict[str, Any]
    latency_ms: float
    identical: bool
    max_rel_error: float
    traces: tuple[Trace, ...]


@dataclass(frozen=True)
class Recovery:
    """How a request ended whose device was killed: time from the kill to the answer."""

    killed: str
    recovery_ms: float
    identical: bool
    max_rel_error: float
    devices: tuple[str, ...]


class Demo:
    """One model on one fleet."""

    def __init__(
        self, fleet: ProcessFleet, chosen: DemoModel, report: Callable[[str, float], None]
    ) -> None:
        self._fleet = fleet
        self._chosen = chosen
        self._report = report
        self.payload = chosen.picture.read_bytes()
        self.config = Config(broker=BrokerConfig(host=fleet.broker.host, port=fleet.broker.port))
        report(f"reading {chosen.model.name}", 0.0)
        self.packaged: PackagedModel = package_model(chosen.model)

    @property
    def name(self) -> str:
        """The name under which the model is served."""
        return self.packaged.package.name

    def wait_for_devices(self, client: Client) -> None:
        """Wait until every agent has advertised its capacity."""
        wanted = len(self._fleet.names)

        def online() -> int:
            ready = [s for s in client.devices(1.0) if s.state == "online"]
            agents = sum(status.capacity is not None for status in ready)
            self._report(f"{agents} of {wanted} agents online", agents / wanted)
            coordinators = sum(status.role == "coordinator" for status in ready)
            return agents + coordinators

        self._fleet.wait_online(online, wanted + 1)

    def reference(self) -> Reference:
        """Run the whole model here, on one thread, as one device alone would."""
        self._report("running it on a single device", 0.0)
        graph = self.packaged.graph
        spec = graph.tensors[graph.input]
        image: DecodedInput = decode_input(
            self.payload, self.packaged.manifest, spec.shape, spec.dtype, None
        )
        whole = WholeModel(self._chosen.model, RuntimeOptions(threads=1))
        array = image.whole()
        times = []
        for number in range(WARM_UP + REPEATS):
            started = time.perf_counter()
            results = whole.run([array])
            times.append(time.perf_counter() - started)
            self._report("running it on a single device", (number + 1) / (WARM_UP + REPEATS))
        outputs = dict(zip(graph.outputs, results, strict=True))
        answer = make_answer(outputs, self.packaged.manifest, image.frame, image.shape)
        return Reference(outputs, answer, statistics.median(times[WARM_UP:]) * 1e3)

    def deploy(self, client: Client) -> PlanHeader:
        """Have the coordinator serve the model, by the plan that follows measuring it."""
        self._report("deploying", 0.0)
        header = client.deploy(self.packaged.package, self.packaged.blobs, self._report)
        self._report("bringing what a loss would need", 1.0)
        self._fleet.wait_quiet()
        self._report("measuring its layers on each device", 1.0)
        header = client.measured_plan(header.model)
        self._fleet.wait_quiet()
        return header

    def serve(self, client: Client, header: PlanHeader, reference: Reference) -> Served:
        """Send the picture several times: JSON answers for their time, tensors to compare."""
        latencies = []
        for number in range(WARM_UP + REPEATS):
            started = time.perf_counter()
            name = client.send(self.name, self.payload, timeout_s=60.0, traces=True)
            told = _checked(client.answer(self.name, name, 60.0))
            latencies.append((time.perf_counter() - started) * 1e3)
            self._report("sending requests", (number + 1) / (WARM_UP + REPEATS))
        traces = client.traces(self.name, name, len(header.devices))
        raw = _checked(client.infer(self.name, self.payload, tensors=True, timeout_s=60.0))
        identical, error = _compare(reference, raw)
        return Served(
            header=header,
            answer=told.result or {},
            latency_ms=statistics.median(latencies[WARM_UP:]),
            identical=identical,
            max_rel_error=error,
            traces=tuple(sorted(traces, key=lambda t: header.devices.index(t.device))),
        )

    def survive(self, client: Client, served: Served, reference: Reference) -> Recovery:
        """Kill a device while it works on a request; wait for the request's answer.

        Raises:
            FleetError: if the request fails, or always ended before the kill took effect.
        """
        used = served.header.devices
        victims = list(used[1:] or used)
        for attempt in range(min(KILL_ATTEMPTS, len(victims))):
            victim = victims[attempt]
            self._report(f"making the others ready for the loss of {victim}", 0.0)
            client.wait_prepared(self.name, victim, PREPARED_S)
            self._report(f"killing {victim} in flight", attempt / KILL_ATTEMPTS)
            name = client.send(self.name, self.payload, tensors=True, timeout_s=RECOVERY_S)
            client.flush()
            time.sleep(served.latency_ms / 1e3 * KILL_AT / (attempt + 1))
            self._fleet.kill(victim)
            killed_at = time.perf_counter()
            told = _checked(client.answer(self.name, name, RECOVERY_S))
            recovery_ms = (time.perf_counter() - killed_at) * 1e3
            identical, error = _compare(reference, told)
            if victim not in told.devices:
                return Recovery(victim, recovery_ms, identical, error, told.devices)
            client.next_plan(self.name, told.epoch, RECOVERY_S)
        raise FleetError("the request was always answered before the killed device was missed")


def _compare(reference: Reference, told: Answer) -> tuple[bool, float]:
    outputs = {name: message_array(tensor) for name, tensor in (told.outputs or {}).items()}
    pairs = [(reference.outputs[name], outputs[name]) for name in reference.outputs]
    return all(equal(a, b) for a, b in pairs), max(relative_error(a, b) for a, b in pairs)


def _checked(told: Answer) -> Answer:
    if told.ok:
        return told
    reason = f"{told.error.code}: {told.error.text}" if told.error else "no reason given"
    raise FleetError(f"the fleet answered with an error, {reason}")
