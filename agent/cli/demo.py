"""`halomq demo`: one CNN over several agents on this machine, one of which is killed."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agent.cli.options import Json, print_json
from agent.errors import HaloMQError

if TYPE_CHECKING:
    from rich.console import Console

    from agent.adapters.fleet import ProcessFleet
    from agent.demo.run import Recovery, Reference, Served
    from agent.wire.messages import Trace

TOLERANCE = 1e-5


def demo(
    devices: Annotated[int, typer.Option(min=1, max=16, help="How many agents.")] = 4,
    model: Annotated[
        str, typer.Option(help="vgg16, defects, or an ONNX file; default: both of the first.")
    ] = "",
    image: Annotated[Path | None, typer.Option(help="JPEG or PNG to send.")] = None,
    output: Annotated[
        Path, typer.Option(help="Folder for the pictures with their answers drawn in.")
    ] = Path("demo-output"),
    as_json: Json = False,
) -> None:
    """Share a CNN over several agents on this machine, then kill one while it works.

    Starts a broker on a free loopback port, a coordinator and the agents, each a process of its
    own; ends them all again. Exit status 0 only if every answer was that of a single device.

    Example: halomq demo --devices 4
    """
    names = [model] if model else ["defects", "vgg16"]
    console = _console()
    acts: dict[str, dict[str, Any]] = {}
    try:
        with tempfile.TemporaryDirectory(prefix="halomq-demo-") as folder:
            _perform(names, devices, image, output, Path(folder), console, acts)
    except HaloMQError as error:
        if as_json:
            print_json({"ok": False, "error": str(error), "models": acts})
        raise
    ok = all(act["ok"] for act in acts.values())
    main = acts[Path(names[-1]).stem]
    if as_json:
        print_json({**main, "ok": ok, "models": acts})
    told = "every answer was that of a single device" if ok else "an answer was WRONG"
    console.print(f"[bold]{'done' if ok else 'failed'}[/]: {told}")
    if not ok:
        raise typer.Exit(1)


def _console() -> Console:
    from rich.console import Console

    return Console(file=sys.stderr)


def _perform(
    names: list[str],
    devices: int,
    image: Path | None,
    output: Path,
    folder: Path,
    console: Console,
    acts: dict[str, dict[str, Any]],
) -> None:
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from agent.adapters.fleet import ProcessFleet
    from agent.client import Client
    from agent.demo.models import find_model
    from agent.demo.run import Demo

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("starting", total=1.0)

        def report(text: str, fraction: float) -> None:
            progress.update(task, description=text, completed=fraction)

        report("preparing the models", 0.0)
        chosen = {name: find_model(name, image) for name in names}
        with ProcessFleet(folder, devices) as fleet:
            _say_broker(console, fleet)
            for name, picked in chosen.items():
                act = Demo(fleet, picked, report)
                with Client(config=act.config) as client:
                    act.wait_for_devices(client)
                reference = act.reference()
                with Client(config=act.config) as client:
                    header = act.deploy(client)
                    served = act.serve(client, header, reference)
                    kill = name == names[-1] and devices > 1
                    recovery = act.survive(client, served, reference) if kill else None
                acts[act.name] = _summary(act.name, fleet, served, reference, recovery)
                _show(console, act.name, served, reference, recovery)
                _save_picture(console, output, act.name, picked.picture, served)


def _say_broker(console: Console, fleet: ProcessFleet) -> None:
    where = f"{fleet.broker.host}:{fleet.broker.port}"
    if fleet.broker.kind == "mosquitto":
        console.print(f"Mosquitto on {where}; {len(fleet.names)} agents, one thread each")
    else:
        console.print(f"no Mosquitto here: [yellow]embedded amqtt[/] on {where}, about 4x slower")
    cores = len(os.sched_getaffinity(0))
    if cores < len(fleet.names):
        console.print(
            f"[yellow]{len(fleet.names)} agents share {cores} cores here[/], so they are no faster "
            "than those; on devices of their own each has its core"
        )


def _summary(
    name: str,
    fleet: ProcessFleet,
    served: Served,
    reference: Reference,
    recovery: Recovery | None,
) -> dict[str, Any]:
    import msgspec

    same = served.max_rel_error <= TOLERANCE and served.answer == reference.answer
    survived = recovery is None or recovery.max_rel_error <= TOLERANCE
    return {
        "ok": same and survived,
        "model": name,
        "broker": fleet.broker.kind,
        "devices": len(fleet.names),
        "devices_used": list(served.header.devices),
        "identical": served.identical and (recovery is None or recovery.identical),
        "max_rel_error": max(served.max_rel_error, recovery.max_rel_error if recovery else 0.0),
        "predicted_ms": round(served.header.predicted_ms, 3),
        "latency_ms": round(served.latency_ms, 3),
        "single_device_ms": round(reference.single_ms, 3),
        "recovery_ms": round(recovery.recovery_ms, 3) if recovery else None,
        "killed": recovery.killed if recovery else None,
        "answer": served.answer,
        "single_device_answer": reference.answer,
        "per_device": msgspec.to_builtins(served.traces),
    }


def _show(
    console: Console,
    name: str,
    served: Served,
    reference: Reference,
    recovery: Recovery | None,
) -> None:
    console.print(f"\n[bold]{name}[/] on {', '.join(served.header.devices)}")
    console.print(f"  answer: {_answer_text(served.answer)}")
    if len(served.header.devices) == 1:
        console.print(
            "  [yellow]sharing it would be slower here, so the planner chose one device[/]"
        )
    same = "the same" if served.answer == reference.answer else "DIFFERENT"
    console.print(f"  one device's answer is {same}; its output is {_exactness(served)}")
    console.print(
        f"  latency {served.latency_ms:.1f} ms (predicted {served.header.predicted_ms:.1f} ms for "
        f"a core each); one device {reference.single_ms:.1f} ms"
    )
    console.print(_devices_table(served.traces))
    console.print(_blocks_table(served.traces))
    if recovery is not None:
        equal = "identical" if recovery.identical else f"error {recovery.max_rel_error:.2g}"
        console.print(
            f"  killed {recovery.killed} in flight: the request was answered "
            f"{recovery.recovery_ms:.0f} ms later by {', '.join(recovery.devices)}; {equal}"
        )


def _exactness(served: Served) -> str:
    if served.identical:
        return "[green]identical[/], byte for byte"
    return f"equal to rounding: largest error {served.max_rel_error:.2g} of the largest output"


def _answer_text(answer: dict[str, Any]) -> str:
    if answer.get("task") == "classification":
        return ", ".join(f"{top['label']} {top['score']:.3f}" for top in answer["top"])
    if answer.get("task") == "segmentation":
        return ", ".join(f"{found['label']} {found['share']:.1%}" for found in answer["regions"])
    if answer.get("task") in ("heatmap", "detection"):
        return ", ".join(f"{count} x {label}" for label, count in answer["counts"].items())
    return ", ".join(f"{o['name']} {o['shape']}" for o in answer.get("outputs", ()))


def _devices_table(traces: tuple[Trace, ...]) -> Any:
    from rich.table import Table

    table = Table(title="per device, of the last request", title_justify="left")
    for column in ("device", "steps", "decode ms", "compute ms", "wait ms", "sent kB", "got kB"):
        table.add_column(column, justify="left" if column == "device" else "right")
    for trace in traces:
        table.add_row(
            trace.device,
            str(len(trace.steps)),
            f"{trace.decode_ms:.1f}",
            f"{trace.compute_ms:.1f}",
            f"{trace.wait_ms:.1f}",
            f"{trace.bytes_sent / 1e3:.0f}",
            f"{trace.bytes_received / 1e3:.0f}",
        )
    return table


def _blocks_table(traces: tuple[Trace, ...]) -> Any:
    from rich.table import Table

    table = Table(title="tile of each block: what a device computes", title_justify="left")
    table.add_column("block", justify="right")
    table.add_column("tensor")
    for trace in traces:
        table.add_column(trace.device)
    blocks = sorted({step.block for trace in traces for step in trace.steps})
    for block in blocks:
        cells = {t.device: [s for s in t.steps if s.block == block] for t in traces}
        tensor = next(steps[0].tensor for steps in cells.values() if steps)
        tiles = [" ".join(_tile(step.region) for step in cells[t.device]) or "-" for t in traces]
        table.add_row(str(block), tensor, *tiles)
    return table


def _tile(region: tuple[tuple[int, int], ...]) -> str:
    axis = 2 if len(region) > 2 else len(region) - 1  # noqa: PLR2004 - rows of NCHW, else features
    word = "rows" if axis == 2 else "features"  # noqa: PLR2004 - the same
    return f"{word} {region[axis][0]}:{region[axis][1]}"


def _save_picture(console: Console, output: Path, name: str, picture: Path, served: Served) -> None:
    from agent.adapters.drawing import annotate

    if served.answer.get("task") in (None, "tensor"):
        return
    output.mkdir(parents=True, exist_ok=True)
    target = output / f"{name}.png"
    target.write_bytes(annotate(picture.read_bytes(), served.answer))
    console.print(f"  the picture with the answer drawn in: {target}")
