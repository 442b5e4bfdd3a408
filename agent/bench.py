"""Compares strategies on a fleet as it is: the same requests to each, in turns.

The model is deployed once for each strategy, under a name of its own; weights are content-addressed
and travel once. What was deployed is removed again, whatever happens.
"""

from __future__ import annotations

import io
import statistics
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from agent.comparison import equal, relative_error
from agent.errors import FleetError, HaloMQError
from agent.packaging import renamed
from agent.verification import seeded_input
from agent.wire.manifest import PICTURE_RANK
from agent.wire.tensors import message_array

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from numpy.typing import NDArray

    from agent.client import Client
    from agent.packaging import PackagedModel
    from agent.planner import Graph
    from agent.wire.manifest import Manifest, Strategy
    from agent.wire.messages import Answer, PlanHeader

BASELINE: Strategy = "single"
WARM_UP = 3
TIMEOUT_S = 60.0
# Where several requests are in flight, a turn is so many times as long as those.
_TURN = 4
_NAME_LENGTH = 64


@dataclass(slots=True)
class Contender:
    """One strategy on the fleet: its plan, its outputs for the request, and what was measured.

    `latencies_s` are those of all its requests, `busy_s` is the time that its turns took. `failure`
    is why it is out of the race.
    """

    strategy: Strategy
    name: str
    header: PlanHeader | None = None
    outputs: dict[str, NDArray[Any]] = field(default_factory=dict)
    latencies_s: list[float] = field(default_factory=list)
    busy_s: float = 0.0
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class Figures:
    """What came out for one strategy; `speedup` and `throughput_ratio` are against one device.

    Errors are relative to the largest output of the single device's answer.
    """

    strategy: Strategy
    devices: tuple[str, ...] = ()
    median_ms: float = 0.0
    p95_ms: float = 0.0
    throughput_per_s: float = 0.0
    predicted_ms: float = 0.0
    speedup: float = 0.0
    throughput_ratio: float = 0.0
    identical: bool = False
    max_rel_error: float = 0.0
    failure: str | None = None


class Bench:
    """A model on a fleet under several strategies; a context manager that removes it again.

    Args:
        client: connected to the fleet.
        packaged: the model.
        strategies: which; a single device is always one of them.
        report: is told what is done, and which share of that is.
    """

    def __init__(
        self,
        client: Client,
        packaged: PackagedModel,
        strategies: Sequence[Strategy],
        report: Callable[[str, float], None],
    ) -> None:
        self._client, self._packaged, self._report = client, packaged, report
        title = packaged.package.name
        self._contenders = []
        for strategy in dict.fromkeys((BASELINE, *strategies)):
            ending = f"-bench-{strategy}"
            name = title[: _NAME_LENGTH - len(ending)] + ending
            self._contenders.append(Contender(strategy, name))
        self._asked: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for name in self._asked:
            self._report(f"removing {name}", 1.0)
            # It may never have come to be served; the rest is to be removed all the same.
            with suppress(HaloMQError):
                self._client.remove(name)

    def run(self, payload: bytes, requests: int, in_flight: int) -> list[Figures]:
        """Deploy, measure and compare.

        Args:
            payload: the request.
            requests: how many of it each strategy gets.
            in_flight: how many at a time.

        Raises:
            FleetError: if a single device cannot serve the model.
            HaloMQError: if the fleet cannot be reached.
        """
        for contender in self._contenders:
            self._guarded(contender, lambda found: self._deploy(found, payload))
            self._check_baseline()
        turn = 1 if in_flight == 1 else _TURN * in_flight
        turns = -(-requests // turn)
        for number in range(turns):
            self._report("sending requests", number / turns)
            for contender in self._racing():
                self._guarded(contender, lambda found: self._turn(found, payload, turn, in_flight))
        self._check_baseline()
        baseline = self._contenders[0]
        return [_figures(contender, baseline) for contender in self._contenders]

    def _racing(self) -> list[Contender]:
        return [contender for contender in self._contenders if contender.failure is None]

    def _guarded(self, contender: Contender, act: Callable[[Contender], None]) -> None:
        """Have a strategy that fails leave the race, and the others go on."""
        try:
            act(contender)
        except FleetError as error:
            contender.failure = str(error)

    def _check_baseline(self) -> None:
        failure = self._contenders[0].failure
        if failure is not None:
            raise FleetError(f"there is nothing to compare with: one device alone fails: {failure}")

    def _deploy(self, contender: Contender, payload: bytes) -> None:
        named = renamed(self._packaged, contender.name, contender.strategy)
        self._report(f"deploying {contender.strategy}", 0.0)
        self._asked.append(contender.name)
        contender.header = self._client.deploy(named.package, named.blobs, self._report)
        for _ in range(WARM_UP):
            told = self._client.infer(contender.name, payload, tensors=True, timeout_s=TIMEOUT_S)
            outputs = _checked(told).outputs or {}
            contender.outputs = {name: message_array(tensor) for name, tensor in outputs.items()}

    def _turn(self, contender: Contender, payload: bytes, requests: int, in_flight: int) -> None:
        """Send requests, `in_flight` of them unanswered at any time."""
        began = time.perf_counter()
        waiting: deque[tuple[str, float]] = deque()
        for number in range(requests + in_flight):
            if number >= in_flight:
                self._answered(contender, *waiting.popleft())
            if number < requests:
                sent_at = time.perf_counter()
                name = self._client.send(contender.name, payload, timeout_s=TIMEOUT_S)
                waiting.append((name, sent_at))
        contender.busy_s += time.perf_counter() - began

    def _answered(self, contender: Contender, name: str, sent_at: float) -> None:
        _checked(self._client.answer(contender.name, name, TIMEOUT_S))
        contender.latencies_s.append(time.perf_counter() - sent_at)


def _checked(told: Answer) -> Answer:
    if told.ok:
        return told
    raise FleetError(f"{told.error.code}: {told.error.text}" if told.error else "no reason given")


def _figures(contender: Contender, baseline: Contender) -> Figures:
    if contender.failure is not None or contender.header is None:
        return Figures(contender.strategy, failure=contender.failure)
    median, alone = (statistics.median(c.latencies_s) for c in (contender, baseline))
    rate, slow = (len(c.latencies_s) / c.busy_s for c in (contender, baseline))
    pairs = [(baseline.outputs[name], contender.outputs[name]) for name in baseline.outputs]
    return Figures(
        strategy=contender.strategy,
        devices=contender.header.devices,
        median_ms=median * 1e3,
        p95_ms=float(np.quantile(contender.latencies_s, 0.95)) * 1e3,
        throughput_per_s=rate,
        predicted_ms=contender.header.predicted_ms,
        speedup=alone / median,
        throughput_ratio=rate / slow,
        identical=all(equal(a, b) for a, b in pairs),
        max_rel_error=max(relative_error(a, b) for a, b in pairs),
    )


def sample_request(graph: Graph, manifest: Manifest, seed: int = 0) -> bytes:
    """Return a seeded random request for a model, as a .npy file.

    A picture of the model's size where it takes pictures, else a tensor.
    """
    shape, dtype = graph.shape(graph.input), graph.tensors[graph.input].dtype
    picture = len(shape) == PICTURE_RANK and shape[0] == 1
    if picture:
        rows, columns = shape[2:] if manifest.input.layout == "nchw" else shape[1:3]
        channels = shape[1 if manifest.input.layout == "nchw" else 3]
        picture = channels == manifest.input.channels
    if picture:
        pixels = (rows, columns) if channels == 1 else (rows, columns, channels)
        array = seeded_input(pixels, "uint8", seed)
    else:
        array = seeded_input(shape, dtype, seed)
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
