"""`halomq verify`: cut a model, run every tile in this process, compare with the whole."""

from __future__ import annotations

from math import inf
from pathlib import Path
from typing import Annotated

import typer

from agent.cli.options import Json, print_json
from agent.cli.plan import Devices
from agent.errors import ConfigError, ModelError


def verify(
    model: Annotated[Path, typer.Argument(help="The ONNX file.")],
    devices: Devices = 4,
    tolerance: Annotated[
        float, typer.Option(help="Largest error allowed, relative to the largest output.")
    ] = 1e-5,
    seed: Annotated[int, typer.Option(help="Seed of the random input.")] = 0,
    as_json: Json = False,
) -> None:
    """Check that a model gives the same answer when it is split; needs no broker.

    Exit status 1 beyond the tolerance, 3 if the model cannot be served.

    Example: halomq verify models/defects.onnx --devices 4
    """
    from agent.verification import verify_model

    try:
        verdict = verify_model(model, devices, seed=seed)
    except (ModelError, ConfigError) as error:
        if as_json:
            print_json(
                {
                    "model": model.stem,
                    "ok": False,
                    "identical": None,
                    "max_rel_error": None,
                    "devices": devices,
                    "blocks": 0,
                    "distributed_share": 0.0,
                    "undistributed": [],
                    "refused": str(error),
                }
            )
        raise
    right = verdict.max_rel_error <= tolerance
    if as_json:
        print_json(
            {
                "model": verdict.model,
                "ok": right,
                "identical": verdict.identical,
                "max_rel_error": verdict.max_rel_error if verdict.max_rel_error < inf else None,
                "devices": verdict.devices,
                "blocks": verdict.blocks,
                "distributed_share": verdict.distributed_share,
                "undistributed": list(verdict.undistributed),
                "refused": None,
            }
        )
    else:
        outcome = "identical" if verdict.identical else f"largest error {verdict.max_rel_error:.2g}"
        typer.echo(
            f"{verdict.model}: {outcome} on {verdict.devices} devices in {verdict.blocks} blocks, "
            f"{verdict.distributed_share:.1%} of the arithmetic shared"
        )
        for note in verdict.undistributed:
            typer.echo(f"not shared: {note}")
    if not right:
        raise typer.Exit(1)
