"""Compares random models, whole and split in random ways, for as long as one likes.

    python -m tests.planner.soak --examples 5000 [--first 0] [--keep DIRECTORY]

prints how far it is and the largest error so far. An example is its number: one that fails is
printed with its layouts, its model is kept as DIRECTORY/NUMBER.onnx (by default in the system's
directory for temporary files), and `--first NUMBER --examples 1` runs it again.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, NamedTuple
from unittest.mock import patch

import numpy as np
from onnx import TensorProto

from agent.adapters.runtime import run_whole
from agent.planner import check, compile_plan, model_file
from agent.planner.dpfp import Search
from agent.planner.lowering import lower
from tests.planner.oracle import OPTIONS, Fleet, devices, load, relative_error
from tests.planner.strategies import sketch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from agent.planner import Device, Graph
    from agent.planner.layout import Shape
    from tests.planner.oracle import Array

TOLERANCE = 1e-5
_RATES = (1.0, 1.0, 1.5, 3.0)
# The scales of a Resize are as many, less one.
_FEW_BYTES = 17


class Outcome(NamedTuple):
    """How one example went: its largest error, and how it was split."""

    error: float
    split: str


def run(number: int, path: Path) -> Outcome:
    """Draw example `number`, write its model to `path`, and compare it whole and split.

    Raises:
        Exception: whatever is wrong, except with the answers.
    """
    random = Random(number)
    builder, outputs = sketch(random)
    builder.save(path, *outputs)
    fleet = devices(*(random.choice(_RATES) for _ in range(random.randint(1, 6))))
    with small_weights(random.choice([_FEW_BYTES, _FEW_BYTES, 4096])):
        model, graph = load(path)
    cuts, layouts = _draw_split(random, graph, fleet)
    plan = compile_plan(graph, fleet, model_name="m", cuts=cuts, layouts=layouts)
    check(plan.programs)
    value = np.random.default_rng(number).standard_normal(graph.shape(graph.input))
    expected = run_whole(path, [value.astype(np.float32)], OPTIONS)
    found = Fleet(plan, model).run(value.astype(np.float32))
    assert [a.shape for a in found] == [a.shape for a in expected]
    assert all(np.isfinite(array).all() for array in expected)
    error = max(relative_error(a, b) for a, b in zip(found, expected, strict=True))
    return Outcome(error, f"cuts {cuts}, layouts {' '.join(map(str, layouts))}")


@contextmanager
def small_weights(nbytes: int) -> Iterator[None]:
    """Have even small kernels travel as weights; shapes and indices stay in the graph."""
    embedded = model_file._embedded_array

    def but_integers(tensor: TensorProto) -> Array | None:
        return None if tensor.data_type == TensorProto.INT64 else embedded(tensor)

    with (
        patch.object(model_file, "LARGE_BYTES", nbytes),
        patch.object(model_file, "_embedded_array", but_integers),
    ):
        yield


def _draw_split(
    random: Random, graph: Graph, fleet: Sequence[Device]
) -> tuple[list[int], list[Shape]]:
    """Draw cuts, and for each block one of the layouts that fit."""
    search = Search(lower(graph, len(fleet)), fleet)
    layers = len(search.layers)
    share = random.choice([0.0, 0.3, 0.6, 1.0])
    cuts = [cut for cut in range(1, layers) if random.random() < share]
    layouts = []
    for stop in (*cuts, layers):
        names = [name for name in search.live[stop] if name != graph.input]
        fitting = [
            shape
            for number, shape in enumerate(search.layouts.shapes)
            if all(search.layouts.fits(name, number) for name in names)
        ]
        wide = [shape for shape in fitting if shape.tiles > 1]
        layouts.append(random.choice(wide if wide and random.random() < 0.9 else fitting))
    return cuts, layouts


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit status tells whether something failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args(arguments)
    options.keep.mkdir(parents=True, exist_ok=True)
    began, worst, failed = time.monotonic(), 0.0, 0
    for done, number in enumerate(range(options.first, options.first + options.examples), 1):
        path = options.keep / f"{number}.onnx"
        try:
            error, split = run(number, path)
        except Exception as wrong:  # noqa: BLE001 - the run goes on
            error, split = float("inf"), f"{type(wrong).__name__}: {str(wrong)[:300]}"
        if error <= TOLERANCE:
            worst = max(worst, error)
            path.unlink()
        else:
            failed += 1
            _say(f"example {number} ({path}): error {error:.3g}; {split}")
        if done % 100 == 0 or done == options.examples:
            seconds = time.monotonic() - began
            _say(f"{done} examples in {seconds:.0f} s, {failed} failed, else at most {worst:.2g}")
    return 1 if failed else 0


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
