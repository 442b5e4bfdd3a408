"""What becomes of published CNNs? Every model of the zoo, VGG-16 and the defects model, planned.

`python -m benchmarks.coverage --models resnet50,yolo --markdown`. For each model at its published
size: its operators and arithmetic; the share of it that four devices do together; whether their
answer is the single device's (`halomq verify`, one thread); the predicted speed-up on 2, 4 and 8
devices of a Raspberry Pi 4's class on gigabit Ethernet; and what planning for 8 costs: seconds of
processor time without reading the model, the longest that one segment took to be built, and the
largest growth of the process's resident memory.

Each model is measured in a process of its own, which gives its memory back. The zoo's models are
built once, into HaloMQ's cache.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from math import isfinite
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Self
from unittest.mock import patch

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from agent.demo.models import cache_folder, find_model
from agent.packaging import package_model
from agent.planner import Device, Plan, compile_plan, program
from agent.planner.segments import build_segment
from agent.verification import verify_model
from models import zoo

if TYPE_CHECKING:
    from collections.abc import Sequence

COUNTS = (2, 4, 8)
VERIFIED = 4
LIMIT_S = 1800.0
OTHERS = ("vgg16", "defects")
_PEAK, _NOW = "VmHWM:", "VmRSS:"


def pi4(number: int) -> Device:
    """Return a device like a Raspberry Pi 4, on gigabit Ethernet."""
    return Device(
        f"device-{number + 1}",
        flops_per_s=1e10,
        memory_bytes_per_s=2e9,
        link_bytes_per_s=117e6,
        link_latency_s=0.0005,
    )


def find(name: str, folder: Path, *, small: bool = False) -> Path:
    """Return a model's file; one of the zoo is built into `folder` if it is older than its recipe.

    Raises:
        ConfigError: if there is no such model.
    """
    if name not in zoo.ZOO:
        return find_model(name, None).model
    path = folder / f"{name}.onnx"
    sources = Path(zoo.__file__).parent.glob("*.py")
    if not path.exists() or path.stat().st_mtime < max(s.stat().st_mtime for s in sources):
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder) as scratch:
            zoo.build(name, Path(scratch), small=small).rename(path)
    return path


def measure(path: Path) -> dict[str, Any]:
    """Plan and verify one model in this process."""
    graph = package_model(path).graph
    with Planning() as planning:
        plans = {8: compile_plan(graph, [pi4(n) for n in range(8)], model_name=path.stem)}
    for count in (1, *COUNTS[:-1]):
        plans[count] = compile_plan(graph, [pi4(n) for n in range(count)], model_name=path.stem)
    verdict = verify_model(path, VERIFIED)
    return {
        "operators": sorted({node.op for node in graph.nodes}),
        "gflops": round(sum(block.flops for block in plans[1].blocks) / 1e9, 3),
        "distributed_share": round(plans[VERIFIED].distributed_share, 4),
        "identical": verdict.identical,
        "max_rel_error": verdict.max_rel_error if isfinite(verdict.max_rel_error) else None,
        "single_ms": round(plans[1].predicted_s * 1e3, 2),
        "speedup": {str(n): round(_speedup(plans, n), 2) for n in COUNTS},
        "layouts_8": sorted({str(layout) for layout in plans[8].layouts}),
        "plan_8_s": round(planning.seconds, 3),
        "segment_8_ms": round(planning.longest_segment * 1e3, 2),
        "plan_8_mb": round(planning.grown / 2**20, 1),
    }


def _speedup(plans: dict[int, Plan], count: int) -> float:
    return plans[1].predicted_s / plans[count].predicted_s


class Planning:
    """What planning costs inside a `with`: time, memory, and the longest segment."""

    def __init__(self) -> None:
        self.seconds = self.longest_segment = 0.0
        self.grown = 0
        self._patch = patch.object(program, "build_segment", self._build)

    def __enter__(self) -> Self:
        """Begin: forget the largest memory so far."""
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        self._before = _memory(_NOW)
        self._patch.start()
        self._started = time.process_time()
        return self

    def __exit__(self, *_error: object) -> None:
        """End."""
        self.seconds = time.process_time() - self._started
        self._patch.stop()
        self.grown = _memory(_PEAK) - self._before

    def _build(self, *arguments: Any, **named: Any) -> Any:
        started = time.process_time()
        segment = build_segment(*arguments, **named)
        self.longest_segment = max(self.longest_segment, time.process_time() - started)
        return segment


def _memory(key: str) -> int:
    """Return a figure of this process's resident memory, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def measure_apart(name: str, folder: Path, *, small: bool = False) -> dict[str, Any]:
    """Measure a model in a process of its own; the reason, as `error`, where that fails."""
    path = find(name, folder, small=small)
    command = [sys.executable, "-m", "benchmarks.coverage", "--measure", str(path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=LIMIT_S)
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or [f"exit status {error.returncode}"])[-1]
        return {"model": name, "error": reason}
    except subprocess.TimeoutExpired:
        return {"model": name, "error": f"not done after {LIMIT_S:.0f} s"}
    return {"model": name, **json.loads(done.stdout)}


def run(names: Sequence[str], folder: Path, *, small: bool = False) -> list[dict[str, Any]]:
    """Measure models one after the other, with progress on stderr."""
    rows = []
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=len(names))
        for name in names:
            progress.update(task, description=name)
            rows.append(measure_apart(name, folder, small=small))
            progress.console.print(" ".join(_cells(rows[-1])), markup=False, highlight=False)
            progress.advance(task)
    return rows


_TITLES = (
    "model", "operators", "GFLOPs", "shared by 4", "exact on 4", "2 devices", "4 devices",
    "8 devices", "planning for 8", "longest segment", "memory",
)  # fmt: skip


def _cells(row: dict[str, Any]) -> list[str]:
    if "error" in row:
        return [row["model"], row["error"], *[""] * (len(_TITLES) - 2)]
    error = row["max_rel_error"]
    exact = "identical" if row["identical"] else "differs" if error is None else f"{error:.1e}"
    return [
        row["model"],
        str(len(row["operators"])),
        f"{row['gflops']:.2f}",
        f"{row['distributed_share']:.1%}",
        exact,
        *(f"{row['speedup'][str(count)]:.2f}×" for count in COUNTS),  # noqa: RUF001 - as it is read
        f"{row['plan_8_s']:.2f} s",
        f"{row['segment_8_ms']:.0f} ms",
        f"{row['plan_8_mb']:.0f} MB",
    ]


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as a table for the README."""
    ruler = ["---", *["---:"] * (len(_TITLES) - 1)]
    lines = [_TITLES, ruler, *map(_cells, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", help="names, as in resnet50,yolo; all if not given")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--small", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure)))
        return
    names = arguments.models.split(",") if arguments.models else [*zoo.ZOO, *OTHERS]
    folder = arguments.folder or cache_folder() / "zoo"
    rows = run(names, folder, small=arguments.small)
    if arguments.json:
        print(json.dumps(rows, indent=2))
    elif arguments.markdown:
        print(markdown(rows))


if __name__ == "__main__":
    main()
