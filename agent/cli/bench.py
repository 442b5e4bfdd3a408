"""`halomq bench`: which way of splitting a model is the fastest on this fleet?"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agent.cli.options import Json, configured, make_strategy, print_json, read_file
from agent.config import Config

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from agent.bench import Figures


@configured
def bench(
    model: Annotated[Path, typer.Argument(help="The ONNX file; its manifest is beside it.")],
    strategies: Annotated[
        str, typer.Option(help="Which to compare with a single device (docs/strategies.md).")
    ] = "modnn,deepthings,halp,dpfp-paper,dpfp",
    requests: Annotated[int, typer.Option(min=1, help="How many requests each gets.")] = 20,
    in_flight: Annotated[int, typer.Option(min=1, max=64, help="How many at a time.")] = 1,
    file: Annotated[
        Path | None, typer.Option("--input", help="What to send; default: a random picture.")
    ] = None,
    as_json: Json = False,
    *,
    config: Config,
) -> None:
    """Compare strategies on the fleet: latency, throughput, exactness.

    Deploys the model once for each, as MODEL-bench-STRATEGY, sends requests in turns and removes
    what it deployed.

    Example: halomq bench models/defects.onnx --strategies modnn,dpfp --requests 50
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from agent.bench import Bench, sample_request
    from agent.client import Client
    from agent.packaging import package_model

    chosen = [make_strategy(name) for name in strategies.split(",")]
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    console = Console(file=sys.stderr)
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(f"reading {model.name}", total=1.0)
        packaged = package_model(model)
        payload = read_file(file) if file else sample_request(packaged.graph, packaged.manifest)

        def report(text: str, share: float) -> None:
            progress.update(task, description=text, completed=share)

        with (
            Client(config=config) as client,
            Bench(client, packaged, chosen, report) as running,
        ):
            figures = running.run(payload, requests, in_flight)
    if as_json:
        print_json(_as_json(packaged.package.name, requests, in_flight, figures))
    else:
        _print(packaged.package.name, in_flight, figures)


def verdict(figures: Sequence[Figures], in_flight: int) -> Iterator[str]:
    """Yield what the figures mean, in words; the first of them is the single device's."""
    measured = [found for found in figures if found.failure is None]
    gains = {
        found.strategy: found.speedup if in_flight == 1 else found.throughput_ratio
        for found in measured[1:]
    }
    faster = "as fast as" if in_flight == 1 else "the requests per second of"
    best = max(gains, key=lambda strategy: gains[strategy], default=None)
    if best is None or gains[best] <= 1:
        yield "one device alone is faster than every split that was tried: use --strategy single"
    else:
        yield f"{best} is the best: {gains[best]:.2f} times {faster} one device"
        slower = [strategy for strategy, gain in gains.items() if gain <= 1]
        if slower:
            yield f"one device alone is faster than {', '.join(slower)}"
    for found in figures:
        if found.failure is not None:
            yield f"{found.strategy} failed: {found.failure}"


def _as_json(
    model: str, requests: int, in_flight: int, figures: Sequence[Figures]
) -> dict[str, object]:
    return {
        "model": model,
        "requests": requests,
        "in_flight": in_flight,
        "verdict": list(verdict(figures, in_flight)),
        "strategies": {
            found.strategy: {
                name: round(value, 3)
                if isinstance(value, float) and name != "max_rel_error"
                else value
                for name, value in dataclasses.asdict(found).items()
                if name != "strategy"
            }
            for found in figures
        },
    }


def _print(model: str, in_flight: int, figures: Sequence[Figures]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{model}, {in_flight} request(s) in flight")
    for column in (
        "strategy", "devices", "median ms", "p95 ms", "predicted ms", "requests/s", "speed-up",
        "answer",
    ):  # fmt: skip
        table.add_column(column, justify="left" if column in ("strategy", "answer") else "right")
    for found in figures:
        if found.failure is not None:
            table.add_row(found.strategy, "-", "-", "-", "-", "-", "-", "failed")
            continue
        table.add_row(
            found.strategy,
            str(len(found.devices)),
            f"{found.median_ms:.1f}",
            f"{found.p95_ms:.1f}",
            f"{found.predicted_ms:.1f}",
            f"{found.throughput_per_s:.1f}",
            f"{found.speedup:.2f}x",
            "identical" if found.identical else f"error {found.max_rel_error:.1g}",
        )
    console = Console()
    console.print(table)
    for line in verdict(figures, in_flight):
        console.print(line, markup=False, highlight=False)
