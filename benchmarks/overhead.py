"""What does an agent cost? One agent on one core against a bare onnxruntime loop on that core.

`python -m benchmarks.overhead --json`. In turns in one run: the model in a bare session, and the
same picture as a request over MQTT to an agent, both on core 0; the broker and the client have
the other cores. `overhead` compares the latency at the client, with the JPEG decoded and the
answer made; `tensor_overhead` the same with the decoded tensor as the request.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from agent.adapters.fleet import ProcessFleet
from agent.adapters.local_broker import LocalBroker
from agent.adapters.media import decode_input
from agent.adapters.runtime import RuntimeOptions, WholeModel
from agent.client import Client
from agent.demo.models import find_model
from agent.demo.run import Demo
from benchmarks.speedup import quiet

WARM_UP = 3


def timed(client: Client, model: str, payload: bytes) -> float:
    """Send a request; return how long its answer took, in ms."""
    started = time.perf_counter()
    answer = client.answer(model, client.send(model, payload))
    if not answer.ok:
        raise SystemExit(f"the request failed: {answer.error}")
    return (time.perf_counter() - started) * 1e3


def bare(whole: WholeModel, image: np.ndarray[Any, Any], core: int) -> float:
    """Run the model in this process on `core`; return how long it took, in ms."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        started = time.perf_counter()
        whole.run([image])
        return (time.perf_counter() - started) * 1e3
    finally:
        os.sched_setaffinity(0, allowed)


def run(model: str, requests: int) -> dict[str, Any]:
    """Measure and return the figures, in milliseconds."""
    core = min(os.sched_getaffinity(0))
    chosen = find_model(model, None)
    with tempfile.TemporaryDirectory(prefix="halomq-overhead-") as name:
        folder = Path(name)
        with (
            LocalBroker.start(folder / "broker", allow_embedded=False) as broker,
            ProcessFleet(folder / "fleet", 1, broker=broker, cores=[core]) as fleet,
        ):
            demo = Demo(fleet, chosen, quiet)
            graph, packaged = demo.packaged.graph, demo.packaged
            spec = graph.tensors[graph.input]
            image = decode_input(
                demo.payload, packaged.manifest, spec.shape, spec.dtype, None
            ).whole()
            buffer = io.BytesIO()
            np.save(buffer, image)
            whole = WholeModel(chosen.model, RuntimeOptions(threads=1))
            times: dict[str, list[float]] = {"bare": [], "agent": [], "tensor": []}
            with Client(config=demo.config) as client:
                demo.wait_for_devices(client)
                demo.deploy(client)
                for number in range(WARM_UP + requests):
                    took = {
                        "bare": bare(whole, image, core),
                        "agent": timed(client, demo.name, demo.payload),
                        "tensor": timed(client, demo.name, buffer.getvalue()),
                    }
                    for kind, value in took.items():
                        if number >= WARM_UP:
                            times[kind].append(value)
    median = {kind: statistics.median(values) for kind, values in times.items()}
    return {
        "model": model,
        "overhead": round(median["agent"] / median["bare"] - 1, 4),
        "tensor_overhead": round(median["tensor"] / median["bare"] - 1, 4),
        "bare_ms": round(median["bare"], 2),
        "agent_ms": round(median["agent"], 2),
        "tensor_ms": round(median["tensor"], 2),
        "requests": requests,
    }


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="vgg16", help="vgg16, defects or an ONNX file")
    parser.add_argument("--requests", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    figures = run(arguments.model, arguments.requests)
    if arguments.json:
        print(json.dumps(figures, indent=2))
    else:
        for name, value in figures.items():
            print(f"{name:16} {value}")


if __name__ == "__main__":
    main()
