"""`halomq drill`: does this fleet keep its promise when a device fails?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agent.cli.options import Json, configured, print_json, read_file
from agent.config import Config
from agent.errors import ConfigError, FleetError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console
    from rich.table import Table

    from agent.client import Client
    from agent.drill.course import Course
    from agent.drill.director import Director
    from agent.drill.report import Figures, Report
    from agent.drill.samples import Sample
    from agent.wire.messages import PlanHeader, Status

HALF_RATE = "half of what the fleet does"


@configured
def drill(
    model: Annotated[str, typer.Argument(help="A deployed model's name, or its ONNX file.")],
    faults: Annotated[str, typer.Option(help="Which: die, freeze, drop.")] = "die,freeze,drop",
    devices: Annotated[
        str, typer.Option(help="Which devices fail; default: all of the plan that allow it.")
    ] = "",
    point: Annotated[
        str, typer.Option(help="Where: received, step:K, sent, answer (docs/drills.md).")
    ] = "step:2",
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="How often each.")] = 1,
    seconds: Annotated[
        float, typer.Option(min=0.1, max=60, help="How long a freeze or a dropped link lasts.")
    ] = 5.0,
    pause: Annotated[
        float, typer.Option(min=0, help="Seconds of peace before and after each fault.")
    ] = 3.0,
    patience: Annotated[
        float, typer.Option(min=1, help="Seconds in which a device has to be back.")
    ] = 90.0,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for an answer.")] = 10.0,
    rate: Annotated[
        float | None,
        typer.Option(min=0.01, help=f"Requests per second. [default: {HALF_RATE}]"),
    ] = None,
    files: Annotated[
        list[Path] | None, typer.Option("--input", help="What to send; default: random pictures.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name it is served under, if that is not the file's.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before it starts.")] = False,
    as_json: Json = False,
    *,
    config: Config,
) -> None:
    """Have devices fail while the fleet serves, and tell what became of every request.

    Only agents whose configuration allows it (drill.allowed) take part. Exit status 0 only if every
    device came back and no answer was lost, wrong, or contradicted by another. Given the ONNX file,
    answers are compared with the whole model's, else with those before anything fails.

    Example: halomq drill models/defects.onnx --faults die,freeze --rounds 3
    """
    from rich.console import Console

    from agent.client import Client
    from agent.drill.course import Course, read_faults, read_points

    console = Console(file=sys.stderr)
    chosen, at = read_faults(faults), read_points(point)
    served, samples, bound = _prepare(model, name, files or [])
    with Client(config=config) as client:
        header, statuses = _survey(client, served)
        user = client.name
    course = Course(
        model=served,
        devices=_choose(header, statuses, devices),
        faults=chosen,
        points=at,
        rounds=rounds,
        seconds=seconds,
        pause_s=pause,
        patience_s=patience,
        timeout_s=timeout,
        interval_s=None if rate is None else 1.0 / rate,
        bound=bound,
    )
    _announce(console, course, header, statuses, known=samples[0].outputs is not None)
    if not yes:
        _ask()
    report = _run(console, config, user, course, samples)
    if as_json:
        print_json(report.as_json())
    else:
        _print(report)
    if not report.ok:
        raise typer.Exit(1)


def _prepare(
    model: str, name: str | None, files: Sequence[Path]
) -> tuple[str, list[Sample], float]:
    """Return the model's name, what to send, and the largest error that is right."""
    from agent.drill.samples import Sample, random_pictures, samples_of
    from agent.packaging import package_model
    from agent.verification import BOUND, bound_of

    payloads = [read_file(file) for file in files]
    path = Path(model)
    if path.suffix != ".onnx":
        samples = [Sample(payload) for payload in payloads] or random_pictures()
        return name or model, samples, BOUND
    packaged = package_model(path, name)
    samples = samples_of(path, packaged, payloads)
    return packaged.package.name, samples, bound_of(packaged.graph)


def _survey(client: Client, model: str) -> tuple[PlanHeader, dict[str, Status]]:
    plans = client.plans()
    header = next((plan for plan in plans if plan.model == model), None)
    if header is None:
        listed = ", ".join(plan.model for plan in plans) or "none"
        raise FleetError(f"model {model} is not deployed here; deployed: {listed}")
    return header, {status.device: status for status in client.devices() if status.role == "agent"}


def _choose(header: PlanHeader, statuses: dict[str, Status], devices: str) -> tuple[str, ...]:
    allowing = [d for d in header.devices if d in statuses and statuses[d].drills]
    named = [part.strip() for part in devices.split(",") if part.strip()]
    how = "set allowed = true under [drill] in its configuration and restart it (docs/drills.md)"
    if not named and not allowing:
        listed = ", ".join(header.devices)
        raise FleetError(f"none of {listed} allows drills: {how}")
    for device in named:
        if device not in header.devices:
            listed = ", ".join(header.devices)
            raise FleetError(f"{device} is not in the plan of {header.model}; it has {listed}")
        if device not in allowing:
            raise FleetError(f"{device} does not allow drills: {how}")
    return tuple(dict.fromkeys(named)) or tuple(allowing)


def _announce(
    console: Console,
    course: Course,
    header: PlanHeader,
    statuses: dict[str, Status],
    *,
    known: bool,
) -> None:
    cases = course.cases
    at = ", ".join(str(point) for point in course.points)
    console.print(
        f"[bold]{course.model}[/] on {', '.join(header.devices)}: {len(cases)} fault(s), "
        f"{', '.join(course.faults)} at {at}, on {', '.join(course.devices)}"
    )
    least = len(cases) * (course.pause_s + course.seconds)
    console.print(
        f"Requests go out all the time; each device is waited for; at least {least:.0f} s. Answers "
        f"are compared with {'the whole model here' if known else 'the first ones'}."
    )
    spared = [device for device in header.devices if device not in course.devices]
    if spared:
        console.print(f"{', '.join(spared)}: not made to fail")
    alone = [d for d in course.devices if not (d in statuses and statuses[d].supervised)]
    if alone and "die" in course.faults:
        console.print(
            f"[yellow]no systemd runs {', '.join(alone)}[/]: where nothing else starts an agent "
            f"that died, start it within {course.patience_s:.0f} s, or the drill ends there"
        )
    if len(header.devices) == 1:
        console.print("[yellow]the plan has one device[/]: nobody can finish what it was at")


def _ask() -> None:
    if not sys.stdin.isatty():
        raise ConfigError("nobody can be asked here; --yes starts it")
    typer.confirm("Start?", abort=True, err=True)


def _run(
    console: Console, config: Config, user: str, course: Course, samples: list[Sample]
) -> Report:
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from agent.drill.runner import Runner

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=16),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("connecting", total=1.0)

        def watch(director: Director) -> None:
            totals = director.report().totals
            errors = sum(totals.errors.values())
            bad = len(totals.lost) + len(totals.wrong) + len(totals.duplicated)
            text = f"{director.doing} | {totals.sent} sent, {totals.right} right, {errors} errors"
            text += f", [red]{bad} BAD[/]" if bad else ""
            progress.update(task, description=text, completed=director.share)

        runner = Runner(config, user, course, samples, watch)
        try:
            return runner.run()
        except KeyboardInterrupt:
            console.print("stopped; a fault that was asked for may still come")
            return runner.report()


def _print(report: Report) -> None:
    from rich.console import Console

    console = Console()
    figures = report.figures
    console.print(
        _table(
            "what became of the requests",
            ("sent", "right", "errors", "lost", "twice", "wrong"),
            [(found, _answers(found)) for found in figures],
        )
    )
    times = ("flight", "before", "during", "worst", "after", "replan", "back")
    console.print(
        _table(
            "what they took (ms), and how long the fleet did (s)",
            times,
            [(found, _times(found)) for found in figures],
        )
    )
    for line in report.verdict():
        console.print(line, markup=False, highlight=False)


def _table(
    title: str, columns: Sequence[str], rows: Sequence[tuple[Figures, tuple[str, ...]]]
) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0)
    table.add_column("fault", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for found, cells in rows:
        case = found.case
        name = f"{case.fault} {case.device} {case.at}"
        table.add_row(name, *cells, style=None if found.passed else "red")
    return table


def _answers(found: Figures) -> tuple[str, ...]:
    tally = found.tally
    errors = ", ".join(f"{count} {cause}" for cause, count in tally.errors.items()) or "0"
    counts = (len(tally.lost), len(tally.duplicated), len(tally.wrong))
    return (str(tally.sent), str(tally.right), errors, *map(str, counts))


def _times(found: Figures) -> tuple[str, ...]:
    latencies = (
        found.in_flight_ms,
        found.before_ms,
        found.during_ms,
        found.longest_ms,
        found.after_ms,
    )
    back = "-" if found.back_s is None else f"{found.back_s:.1f}"
    return (
        *("-" if value is None else f"{value:.0f}" for value in latencies),
        "-" if found.replanned_s is None else f"{found.replanned_s:.1f}",
        back if found.outcome in ("back", "open") else found.outcome,
    )
