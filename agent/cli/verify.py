"""`halomq verify`: cut a model, run every tile in this process, compare with the whole."""

from __future__ import annotations

from itertools import product
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agent.cli.options import Exact, HalosName, Json, make_halos, make_strategy, print_json
from agent.cli.plan import (
    MOST_DEVICES,
    make_form,
    undistributed_json,
    undistributed_lines,
)
from agent.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from agent.planner.plan import Form
    from agent.verification import Verdict
    from agent.wire.manifest import Strategy


def verify(
    model: Annotated[Path, typer.Argument(help="The ONNX file.")],
    devices: Annotated[str, typer.Option(help="How many devices; several: 2,4,8.")] = "4",
    layout: Annotated[
        str, typer.Option(help="How maps are shared: any, rows, columns, grid; several: rows,grid.")
    ] = "any",
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="Largest error allowed, relative to the largest output. "
            "[default: 1e-5; 2e-3 for float16, and for halos in float16]",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the random input.")] = 0,
    strategy: Annotated[
        str | None,
        typer.Option(
            help="How to split: single, modnn, deepthings, halp, dpfp-paper, dpfp; several: "
            "modnn,dpfp. [default: the manifest's, or dpfp]",
            show_default=False,
        ),
    ] = None,
    threads: Annotated[
        int, typer.Option(min=1, max=1024, help="Threads of an operator, on every device.")
    ] = 1,
    halos: HalosName = None,
    exact: Exact = False,
    as_json: Json = False,
) -> None:
    """Check that a model gives the same answer when it is split; needs no broker.

    Exit status 1 beyond the tolerance, 3 if the model cannot be served.

    Example: halomq verify models/defects.onnx --devices 2,4 --layout rows,grid
    """
    from agent.verification import Verification

    counts = _counts(devices)
    forms = [make_form(name) for name in layout.split(",")]
    named: list[Strategy | None] = [None]
    if strategy:
        named = [make_strategy(name) for name in strategy.split(",")]
    try:
        verification = Verification(
            model,
            seed=seed,
            exact=exact,
            halos=make_halos(halos) if halos else None,
            threads=threads,
        )
        verdicts = [
            verification.verify(count, form, strategy=chosen, locate=True)
            for count, form, chosen in product(counts, forms, named)
        ]
    except (ModelError, ConfigError) as error:
        if as_json:
            runs = [_refused(model.stem, c, f, str(error)) for c in counts for f in forms]
            print_json(_together(runs))
        raise
    if as_json:
        print_json(_together([_as_json(verdict, tolerance) for verdict in verdicts]))
    else:
        for verdict in verdicts:
            for line in _lines(verdict, tolerance):
                typer.echo(line)
        for line in undistributed_lines(verdicts[-1].undistributed):
            typer.echo(line)
    if not all(_right(verdict, tolerance) for verdict in verdicts):
        raise typer.Exit(1)


def _counts(devices: str) -> list[int]:
    """Return the numbers of devices that the user listed."""
    try:
        counts = [int(count) for count in devices.split(",")]
    except ValueError:
        counts = []
    if not counts or not all(1 <= count <= MOST_DEVICES for count in counts):
        raise ConfigError(
            f"--devices {devices}: give numbers from 1 to {MOST_DEVICES}, as in 4 or 2,4,8"
        )
    return counts


def _allowed(verdict: Verdict, tolerance: float | None) -> float:
    return verdict.bound if tolerance is None else tolerance


def _right(verdict: Verdict, tolerance: float | None) -> bool:
    return verdict.max_rel_error <= _allowed(verdict, tolerance)


def _lines(verdict: Verdict, tolerance: float | None) -> Iterator[str]:
    outcome = "identical" if verdict.identical else f"largest error {verdict.max_rel_error:.2g}"
    ways: list[str] = [verdict.layout] if verdict.layout != "any" else []
    ways += [verdict.strategy] if verdict.strategy != "dpfp" else []
    ways += ["halos in float16"] if verdict.halos == "half" else []
    layout = f" ({', '.join(ways)})" if ways else ""
    yield (
        f"{verdict.model}: {outcome} on {verdict.devices} devices{layout} in {verdict.blocks} "
        f"blocks, {verdict.distributed_share:.1%} of the arithmetic shared"
    )
    first = verdict.first_difference
    if first is not None:
        where = " .. ".join(dict.fromkeys((first.operators[0], first.operators[-1])))
        yield f"first difference: {where}, {first.max_rel_error:.2g} in '{first.tensor}'"
    if not _right(verdict, tolerance):
        yield f"more than the {_allowed(verdict, tolerance):.2g} that is allowed"
    if verdict.quantized and not verdict.identical:
        yield (
            "this model computes with integers of 8 bits: where a rounding differs, "
            "a value differs by a whole step"
        )


def _as_json(verdict: Verdict, tolerance: float | None) -> dict[str, object]:
    first = verdict.first_difference
    return {
        "model": verdict.model,
        "ok": _right(verdict, tolerance),
        "identical": verdict.identical,
        "max_rel_error": _finite(verdict.max_rel_error),
        "tolerance": _allowed(verdict, tolerance),
        "devices": verdict.devices,
        "layout": verdict.layout,
        "strategy": verdict.strategy,
        "halos": verdict.halos,
        "blocks": verdict.blocks,
        "distributed_share": verdict.distributed_share,
        "undistributed": undistributed_json(verdict.undistributed),
        "first_difference": None
        if first is None
        else {
            "operators": list(first.operators),
            "tensor": first.tensor,
            "max_rel_error": _finite(first.max_rel_error),
        },
        "refused": None,
    }


def _refused(model: str, devices: int, layout: Form, reason: str) -> dict[str, object]:
    return {
        "model": model,
        "ok": False,
        "identical": None,
        "max_rel_error": None,
        "tolerance": None,
        "devices": devices,
        "layout": layout,
        "strategy": None,
        "halos": None,
        "blocks": 0,
        "distributed_share": 0.0,
        "undistributed": [],
        "first_difference": None,
        "refused": reason,
    }


def _together(runs: Sequence[dict[str, object]]) -> dict[str, object]:
    """Return one run as it is; of several, what holds for all, and each in `runs`."""
    if len(runs) == 1:
        return runs[0]
    refused = next((run["refused"] for run in runs if run["refused"]), None)
    return {
        "model": runs[0]["model"],
        "ok": all(run["ok"] for run in runs),
        "identical": None if refused else all(run["identical"] for run in runs),
        "refused": refused,
        "runs": list(runs),
    }


def _finite(error: float) -> float | None:
    """Return an error as JSON has numbers: infinity, a difference of no number, has none."""
    return error if isfinite(error) else None
