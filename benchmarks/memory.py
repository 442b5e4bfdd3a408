"""How much memory an agent takes: idle, and while it serves its share of a model.

`python -m benchmarks.memory --json`. The share is that of VGG-16's convolutional part on four
devices; resident megabytes of the largest agent. `anonymous_mb` leaves out what is mapped from
files and can be dropped by the kernel at any time. `ready_mb` is with what the loss of any one
device would need.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import onnx
import psutil

from agent.adapters.fleet import ProcessFleet
from agent.client import Client
from agent.demo.models import DemoModel, find_model
from agent.demo.run import Demo
from benchmarks.speedup import quiet

REQUESTS = 20
SETTLE_S = 2.0


def convolutional_part(vgg16: Path, folder: Path) -> Path:
    """Write VGG-16 up to its last pool into `folder`; its weights are linked, not copied."""
    model = onnx.load(vgg16, load_external_data=False)
    keep = next(n for n, node in enumerate(model.graph.node) if node.op_type == "Flatten")
    del model.graph.node[keep:]
    used = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    last = model.graph.node[-1].output[0]
    del model.graph.output[:]
    shape = [1, 512, 7, 7]
    model.graph.output.append(onnx.helper.make_tensor_value_info(last, 1, shape))
    target = folder / "vgg16-conv.onnx"
    onnx.save(model, target)
    data = kept[0].external_data[0].value
    (folder / data).hardlink_to((vgg16.parent / data).resolve())
    return target


def largest(fleet: ProcessFleet) -> tuple[float, float]:
    """Return the most resident, and the most anonymous, megabytes of the fleet's agents."""
    resident, anonymous = [], []
    for name in fleet.names:
        maps = psutil.Process(fleet.processes[name].pid).memory_full_info()
        resident.append(maps.rss / 2**20)
        smaps = Path(f"/proc/{fleet.processes[name].pid}/smaps_rollup").read_text()
        anonymous.append(
            next(int(x.split()[1]) for x in smaps.splitlines() if x.startswith("Anonymous:")) / 1024
        )
    return round(max(resident), 1), round(max(anonymous), 1)


def run(devices: int) -> dict[str, float]:
    """Measure and return the figures, in MB of 2**20 bytes."""
    vgg16 = find_model("vgg16", None)
    with tempfile.TemporaryDirectory(dir=vgg16.model.parent.parent) as name:
        folder = Path(name)
        chosen = DemoModel(convolutional_part(vgg16.model, folder), vgg16.picture)
        with ProcessFleet(folder / "fleet", devices) as fleet:
            demo = Demo(fleet, chosen, quiet)
            with Client(config=demo.config) as client:
                demo.wait_for_devices(client)
                time.sleep(SETTLE_S)
                idle, idle_anonymous = largest(fleet)
                packaged = demo.packaged
                header = client.deploy(packaged.package, packaged.blobs)
                # Without a coordinator nobody asks for what a loss needs.
                fleet.kill("coordinator")
                for _ in range(REQUESTS):
                    client.infer(demo.name, demo.payload, tensors=True)
                time.sleep(SETTLE_S)
                serving, serving_anonymous = largest(fleet)
                fleet.start("coordinator")
                header = client.measured_plan(demo.name)
                prepared = [client.wait_prepared(demo.name, device) for device in header.devices]
                time.sleep(SETTLE_S)
                ready, ready_anonymous = largest(fleet)
    return {
        "devices": devices,
        "idle_mb": idle,
        "idle_anonymous_mb": idle_anonymous,
        "serving_mb": serving,
        "serving_anonymous_mb": serving_anonymous,
        "losses_prepared_for": sum(prepared),
        "ready_mb": ready,
        "ready_anonymous_mb": ready_anonymous,
    }


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    figures = run(arguments.devices)
    if arguments.json:
        print(json.dumps(figures, indent=2))
    else:
        for key, value in figures.items():
            print(f"{key:22} {value}")


if __name__ == "__main__":
    main()
