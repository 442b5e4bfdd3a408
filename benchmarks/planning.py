"""How long does planning take? `python -m benchmarks.planning --json`.

Seconds of processor time for one plan with all its segments and programs, for 2, 4 and 8 equal
devices; the quickest of several runs, the model read beforehand.
"""

from __future__ import annotations

import argparse
import json
import time

from agent.demo.models import find_model
from agent.packaging import package_model
from agent.planner import Device, compile_plan

RUNS = 5
FLOPS_PER_S = 2e10


def run(model: str) -> dict[str, float | str]:
    """Measure and return the figures, in seconds and predicted milliseconds."""
    packaged = package_model(find_model(model, None).model)
    figures: dict[str, float | str] = {"model": model}
    for count in (2, 4, 8):
        devices = [Device(f"device-{number}", FLOPS_PER_S) for number in range(count)]
        times = []
        for _ in range(RUNS):
            started = time.process_time()
            plan = compile_plan(packaged.graph, devices, model_name=model)
            times.append(time.process_time() - started)
        figures[f"plan_{count}_s"] = round(min(times), 3)
        figures[f"predicted_{count}_ms"] = round(plan.predicted_s * 1e3, 1)
    return figures


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="vgg16", help="vgg16, defects or an ONNX file")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    figures = run(arguments.model)
    if arguments.json:
        print(json.dumps(figures, indent=2))
    else:
        for name, value in figures.items():
            print(f"{name:16} {value}")


if __name__ == "__main__":
    main()
