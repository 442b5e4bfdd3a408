"""`halomq deploy` and `halomq remove`: what the fleet serves."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agent.cli.options import (
    Exact,
    HalosName,
    Json,
    ObjectiveName,
    StrategyName,
    configured,
    make_halos,
    make_objective,
    make_strategy,
    print_json,
)
from agent.config import Config

if TYPE_CHECKING:
    from agent.wire.messages import PlanHeader


@configured
def deploy(
    model: Annotated[Path, typer.Argument(help="The ONNX file; its manifest is beside it.")],
    name: Annotated[str | None, typer.Option(help="Name to serve it under.")] = None,
    objective: ObjectiveName = None,
    strategy: StrategyName = None,
    halos: HalosName = None,
    exact: Exact = False,
    as_json: Json = False,
    *,
    config: Config,
) -> None:
    """Have the fleet serve a model; returns once it does.

    Example: halomq deploy models/defects.onnx --host broker.local
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from agent.client import Client
    from agent.packaging import package_model

    console = Console(file=sys.stderr)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(f"reading {model.name}", total=1.0)
        packaged = package_model(
            model,
            name,
            exact=exact,
            objective=make_objective(objective) if objective else None,
            strategy=make_strategy(strategy) if strategy else None,
            halos=make_halos(halos) if halos else None,
        )
        with Client(config=config) as client:
            header = client.deploy(
                packaged.package,
                packaged.blobs,
                lambda text, share: progress.update(task, description=text, completed=share),
            )
    told = summary(header)
    if as_json:
        print_json(told)
    else:
        typer.echo(
            f"{header.model} is served by {', '.join(header.devices)} "
            f"(epoch {header.epoch}, predicted {header.predicted_ms:.1f} ms)"
        )


def summary(header: PlanHeader) -> dict[str, object]:
    """Return a plan as the commands print it in JSON."""
    return {
        "model": header.model,
        "epoch": header.epoch,
        "devices": list(header.devices),
        "coordinator": header.coordinator,
        "predicted_ms": round(header.predicted_ms, 3),
    }


@configured
def remove(
    name: Annotated[str, typer.Argument(help="The model's name.")],
    as_json: Json = False,
    *,
    config: Config,
) -> None:
    """Stop serving a model and forget it.

    Example: halomq remove defects
    """
    from agent.client import Client

    with Client(config=config) as client:
        client.remove(name)
    if as_json:
        print_json({"removed": name})
    else:
        typer.echo(f"{name} is no longer served")
