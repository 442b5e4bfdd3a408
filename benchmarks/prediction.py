"""How well is a request's time predicted? Nominal rates against what the devices have measured.

`python -m benchmarks.prediction --models vgg16,resnet50,mobilenet_v2,yolo --devices 1,2 --json`.
Agents are pinned to a core each. Every model is served twice: planned with nominal rates, and with
the times of its layers that the agents measured while idle. A step's error is its predicted time
against the median of its measured ones; a request's is the plan's against the median time from the
decoded picture to the outputs on the answering device.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.adapters.fleet import ProcessFleet
from agent.adapters.local_broker import LocalBroker
from agent.client import Client
from agent.config import BrokerConfig, Config
from agent.demo.models import DemoModel, find_model
from agent.demo.run import Demo
from models.zoo import ZOO, build

if TYPE_CHECKING:
    from agent.wire.messages import PlanHeader, Trace

WARM_UP = 5


def quiet(_text: str, _fraction: float) -> None:
    """Report nothing."""


def error(predicted: float, measured: float) -> float:
    """Return how far a prediction is off, in percent of what was measured."""
    return 100.0 * abs(predicted - measured) / measured


def model_of(name: str, folder: Path) -> DemoModel:
    """Return a model of the zoo (built now), or one that the demo knows."""
    return find_model(str(build(name, folder)) if name in ZOO else name, None)


def measure(
    name: str, devices: int, requests: int, broker: LocalBroker, folder: Path, *, nominal: bool
) -> dict[str, Any]:
    """Serve a model on pinned agents and compare predictions with what was measured."""
    title = f"{name}-{devices}-{'nominal' if nominal else 'measured'}".replace("_", "-")
    cores = sorted(os.sched_getaffinity(0))
    settings = {"HALOMQ_FLEET": title, "HALOMQ_PLANNING_CALIBRATION_S": "0" if nominal else "30"}
    place = folder / title
    with ExitStack() as stack:
        fleet = ProcessFleet(place, devices, broker=broker, settings=settings, cores=cores)
        members = stack.enter_context(fleet)
        config = Config(fleet=title, broker=BrokerConfig(host=broker.host, port=broker.port))
        client = stack.enter_context(Client(config=config))
        demo = Demo(members, model_of(name, folder), quiet)
        demo.wait_for_devices(client)
        header = client.deploy(demo.packaged.package, demo.packaged.blobs)
        if not nominal:
            header = client.measured_plan(header.model)
        members.wait_quiet()
        traces = []
        for _ in range(WARM_UP + requests):
            request = client.send(demo.name, demo.payload, traces=True)
            answer = client.answer(demo.name, request)
            if not answer.ok:
                raise SystemExit(f"the request failed: {answer.error}")
            traces.append(client.traces(demo.name, request, len(header.devices)))
        return figures(header, traces[WARM_UP:])


def figures(header: PlanHeader, traces: list[list[Trace]]) -> dict[str, Any]:
    """Return the errors of a plan's steps and of the whole."""
    steps: dict[tuple[str, int], list[tuple[float, float]]] = {}
    whole = []
    for told in traces:
        for trace in told:
            for number, step in enumerate(sorted(trace.steps, key=lambda s: (s.block, s.region))):
                times = (step.predicted_ms, step.end_ms - step.start_ms)
                steps.setdefault((trace.device, number), []).append(times)
            if trace.device == header.devices[0]:
                decoded = trace.decode_start_ms + trace.decode_ms
                whole.append(trace.total_ms - decoded)
    medians = [
        (times[0][0], statistics.median(measured for _, measured in times))
        for times in steps.values()
    ]
    predicted, measured = (sum(column) for column in zip(*medians, strict=True))
    # A step of some microseconds is as good as none; what counts are those that take the time.
    share = [(error(p, m), m) for p, m in medians if m > 0]
    total = statistics.median(whole)
    return {
        "steps": len(medians),
        "devices_used": len(header.devices),
        "step_error_percent": round(_weighted_median(share), 1),
        "compute_error_percent": round(error(predicted, measured), 1),
        "predicted_ms": round(header.predicted_ms, 2),
        "measured_ms": round(total, 2),
        "error_percent": round(error(header.predicted_ms, total), 1),
    }


def _weighted_median(errors: list[tuple[float, float]]) -> float:
    """Return the error that half of the time has no more than."""
    half, run = sum(weight for _, weight in errors) / 2, 0.0
    for value, weight in sorted(errors):
        run += weight
        if run >= half:
            return value
    return 0.0


def run(models: list[str], devices: list[int], requests: int) -> list[dict[str, Any]]:
    """Measure every model on every number of devices, before and after calibration."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="halomq-prediction-") as name, ExitStack() as stack:
        folder = Path(name)
        broker = stack.enter_context(LocalBroker.start(folder / "broker", allow_embedded=False))
        for model in models:
            for count in devices:
                for nominal in (True, False):
                    found = measure(model, count, requests, broker, folder, nominal=nominal)
                    planned = "nominal" if nominal else "measured"
                    rows.append({"model": model, "devices": count, "planned": planned, **found})
    return rows


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="vgg16,resnet50,mobilenet_v2,yolo")
    parser.add_argument("--devices", default="1,2")
    parser.add_argument("--requests", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    counts = [int(text) for text in arguments.devices.split(",")]
    rows = run(arguments.models.split(","), counts, arguments.requests)
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    print("  ".join(rows[0]))
    for row in rows:
        print("  ".join(f"{value!s:>{len(key)}}" for key, value in row.items()))


if __name__ == "__main__":
    main()
