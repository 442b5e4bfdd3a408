"""Compares random models, whole and split in random ways, for as long as one likes.

    python -m tests.planner.soak --examples 5000 [--first 0] [--keep DIRECTORY] [--exact|--integers]

has hypothesis draw them in batches of 100, each from its own number, and prints how far it is and
the largest error so far. What fails is made as small as it can be: it is printed with its layouts,
its model is kept as DIRECTORY/BATCH.onnx (by default in the system's directory for temporary
files), and `--first BATCH --examples 100` finds it again.

With --exact models are split as `halomq verify --exact` does; with --integers they are quantized
first, at random signed or not and with operators left out. Both run with 1, 2 or 4 threads, and
every byte must be the same.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from unittest.mock import patch

import numpy as np
from hypothesis import HealthCheck, Phase, assume, given, seed, settings
from hypothesis.strategies import randoms

from agent.adapters.runtime import RuntimeOptions, WholeModel, run_whole
from agent.errors import InputError
from agent.planner import check, compile_plan, model_file
from agent.planner.dpfp import Search
from agent.planner.layers import layers_of
from agent.planner.lowering import lower, lowered_for
from models.zoo.converted import quantized
from tests.planner.oracle import OPTIONS, Fleet, devices, load, relative_error
from tests.planner.strategies import sketch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from random import Random

    from agent.planner import Device, Graph
    from agent.planner.layout import Shape
    from agent.planner.plan import Form
    from tests.planner.oracle import Array
    from tests.planner.sketch import Sketch

Kind = Literal["any", "exact", "integers"]

TOLERANCE = 1e-5
_BATCH = 100
_RATES = (1.0, 1.0, 1.5, 3.0)
# The scales of a Resize are as many, less one.
_FEW_BYTES = 17
_FORMS: tuple[Form, ...] = ("rows", "columns", "grid", "any")
_KINDS: tuple[Literal["u8", "s8"], ...] = ("u8", "s8")
_FORMATS: tuple[Literal["qdq", "qoperator"], ...] = ("qdq", "qdq", "qoperator")
# Zero points of each filter.
_QUANTIZED_SINCE = 13


class Outcome(NamedTuple):
    """How one example went: its largest error, and how it was split."""

    error: float
    split: str


class WrongAnswerError(AssertionError):
    """The devices together gave another answer than one device."""


def exploring(examples: int, **changed: Any) -> settings:
    """Return the settings with which hypothesis draws this many examples, and shrinks one."""
    return settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        **changed,
    )


def run(random: Random, path: Path, kind: Kind = "any") -> Outcome:
    """Draw an example, write its model to `path`, and compare it whole and split.

    Args:
        random: what it is drawn from.
        path: where its model is written.
        kind: "exact" to split it without other roundings, "integers" to quantize it.

    Raises:
        UnsatisfiedAssumption: if onnxruntime cannot run the whole model either.
        WrongAnswerError: if the error is beyond the tolerance.
        Exception: whatever else is wrong.
    """
    builder, outputs = sketch(random)
    builder.save(path, *outputs)
    if kind != "any":
        return _run_exactly(random, builder, path, quantize=kind == "integers")
    fleet = devices(*(random.choice(_RATES) for _ in range(random.randint(1, 6))))
    # At times even small kernels travel as weights.
    with patch.object(model_file, "LARGE_BYTES", random.choice([_FEW_BYTES, _FEW_BYTES, 4096])):
        model, graph = load(path)
    cuts, layouts = _draw_split(random, graph, fleet)
    plan = compile_plan(graph, fleet, model_name="m", cuts=cuts, layouts=layouts)
    split = f"cuts {cuts}, layouts {' '.join(map(str, layouts))}"
    return compare(builder, outputs, path, Fleet(plan, model), split)


def _run_exactly(random: Random, builder: Sketch, path: Path, *, quantize: bool) -> Outcome:
    """Compare a drawn model byte by byte."""
    if quantize:
        _quantize(random, builder, path)
    threads = random.choice([1, 1, 2, 4])
    rates = [random.choice(_RATES) for _ in range(random.randint(2, 6))]
    fleet = [replace(device, threads=threads) for device in devices(*rates)]
    model, graph = load(path)
    layers = len(layers_of(lowered_for(graph, fleet, exact=True)))
    share = random.choice([0.0, 0.3, 0.6, 1.0])
    cuts = [cut for cut in range(1, layers) if random.random() < share]
    form = random.choice(_FORMS)
    plan = compile_plan(
        graph, fleet, model_name="m", cuts=cuts, layouts=len(fleet), form=form, exact=not quantize
    )
    check(plan.programs)
    options = RuntimeOptions(threads=threads)
    value = builder.rng.standard_normal(builder.shape("x")).astype(np.float32)
    try:
        expected = run_whole(path, [value], options)
    except InputError:
        assume(False)
    found = Fleet(plan, model, options).run(value)
    split = f"{threads} threads, cuts {cuts}, layouts {' '.join(map(str, plan.layouts))}"
    for one, other in zip(found, expected, strict=True):
        if one.tobytes() != other.tobytes():
            raise WrongAnswerError(f"error {relative_error(one, other):.3g}; {split}")
    return Outcome(0.0, split)


def _quantize(random: Random, builder: Sketch, path: Path) -> None:
    """Make a drawn model one of 8 bits, if onnxruntime's quantizer takes it."""
    assume(builder.opset >= _QUANTIZED_SINCE)
    names = [node.name for node in builder.nodes]
    left_out = random.sample(names, int(random.choice([0.0, 0.2, 0.4]) * len(names)))
    kind = random.choice(_KINDS)
    plain = path.with_suffix(".float.onnx")
    path.replace(plain)
    try:
        quantized(
            plain,
            path,
            random.choice(_FORMATS),
            activations=kind,
            per_channel=random.random() < 0.5,
            left_out=left_out,
            float_outputs=random.choice([(), (), ("Conv", "ConvTranspose", "Gemm", "MatMul")]),
        )
        WholeModel(path, OPTIONS)
    except Exception:  # noqa: BLE001 - what the quantizer raises has no common base
        assume(False)
    finally:
        plain.unlink()


def compare(
    builder: Sketch, outputs: Sequence[str], path: Path, fleet: Fleet, split: str
) -> Outcome:
    """Compare a drawn model whole and as a fleet runs it; raises what `run` does."""
    check(fleet.plan.programs)
    shape = builder.shape("x")
    value = builder.rng.standard_normal(shape).astype(np.float32)
    try:
        expected = run_whole(path, [value], OPTIONS)
    except InputError:
        # It takes a cubic Resize between two Transpositions for one of channels.
        assume(False)
    found = fleet.run(value)
    assert [a.shape for a in found] == [a.shape for a in expected]
    assert all(np.isfinite(array).all() for array in expected)
    error = error_of(builder, dict(zip(outputs, zip(found, expected, strict=True), strict=True)))
    if error > TOLERANCE:
        raise WrongAnswerError(f"error {error:.3g}; {split}")
    return Outcome(error, split)


def error_of(builder: Sketch, answers: Mapping[str, tuple[Array, Array]]) -> float:
    """Return the largest error; a class may be another one only if that scores as high."""
    errors = []
    chosen = {node.output[0]: node for node in builder.nodes if node.op_type == "ArgMax"}
    for name, (found, expected) in answers.items():
        if name in chosen:
            scores = answers[chosen[name].input[0]][1]
            picked, best = (_scores_of(classes, scores) for classes in (found, expected))
            errors.append(float((best - picked).max()) / (float(np.abs(scores).max()) or 1.0))
        else:
            errors.append(relative_error(found, expected))
    return max(errors)


def _scores_of(classes: Array, scores: Array) -> Array:
    """Return the scores of the classes, one for each pixel."""
    return np.take_along_axis(scores, classes.reshape(1, 1, *scores.shape[2:]), axis=1)


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
    exactly = parser.add_mutually_exclusive_group()
    exactly.add_argument("--exact", dest="kind", action="store_const", const="exact")
    exactly.add_argument("--integers", dest="kind", action="store_const", const="integers")
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args(arguments)
    options.keep.mkdir(parents=True, exist_ok=True)
    began, worst, failed, done = time.monotonic(), 0.0, 0, 0
    while done < options.examples:
        batch, count = options.first + done // _BATCH, min(_BATCH, options.examples - done)
        path = options.keep / f"{batch}.onnx"
        try:
            worst = max(worst, explore(batch, count, path, options.kind or "any"))
            path.unlink(missing_ok=True)
        except Exception as wrong:  # noqa: BLE001 - the run goes on
            failed += 1
            _say(f"batch {batch} ({path}): {type(wrong).__name__}: {str(wrong)[:300]}")
        done += count
        seconds = time.monotonic() - began
        _say(f"{done} examples in {seconds:.0f} s, {failed} failed, else at most {worst:.2g}")
    return 1 if failed else 0


def explore(number: int, count: int, path: Path, kind: Kind = "any") -> float:
    """Run a batch of examples and return the largest error.

    Raises:
        Exception: what is wrong with the smallest example that fails, whose model is at `path`.
    """
    errors = [0.0]

    @seed(number)
    @exploring(count)
    @given(random=randoms(use_true_random=False))
    def example(random: Random) -> None:
        errors.append(run(random, path, kind).error)

    example()
    return max(errors)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
