"""`halomq plan`: what a plan would look like, without any device."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from agent.cli.options import (
    Exact,
    HalosName,
    Json,
    ObjectiveName,
    StrategyName,
    Timeline,
    make_halos,
    make_objective,
    make_strategy,
    print_json,
    timeline_ending,
    write_file,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from agent.planner import Block, Device, Plan
    from agent.planner.layout import Shape
    from agent.planner.plan import Form, Undistributed

# Operators that are not shared are named one by one up to this many.
_NAMED = 5

# Bytes packed while so many operations of a convolution take place, as on x86.
PACKED_PER_FLOP = 1 / 250

MOST_DEVICES = 64
Devices = Annotated[int, typer.Option(min=1, max=MOST_DEVICES, help="How many devices.")]


def plan(
    model: Annotated[Path, typer.Argument(help="The ONNX file.")],
    devices: Devices = 4,
    gflops: Annotated[
        str, typer.Option(help="Rate of each device in Gflop/s, or one for all: 20 or 20,10.")
    ] = "20",
    link_mbit: Annotated[float, typer.Option(help="Link of each device in Mbit/s.")] = 1000.0,
    latency_ms: Annotated[float, typer.Option(help="Time of a small message in ms.")] = 0.5,
    layout: Annotated[str, typer.Option(help="How maps are shared: any, rows, columns, grid.")] = (
        "any"
    ),
    objective: ObjectiveName = None,
    strategy: StrategyName = None,
    halos: HalosName = None,
    exact: Exact = False,
    svg: Annotated[Path | None, typer.Option(help="Draw the plan into this SVG file.")] = None,
    timeline: Timeline = None,
    as_json: Json = False,
) -> None:
    """Show how a model would be split: blocks, tiles, halo bytes and predicted time.

    Example: halomq plan models/defects.onnx --devices 4 --svg plan.svg
    """
    from agent.packaging import package_model
    from agent.planner import compile_plan
    from agent.planner.strategies import compile_strategy

    ending = None if timeline is None else timeline_ending(timeline)
    form = make_form(layout)
    members = make_devices(devices, gflops, link_mbit, latency_ms)
    packaged = package_model(
        model,
        exact=exact,
        objective=make_objective(objective) if objective else None,
        strategy=make_strategy(strategy) if strategy else None,
        halos=make_halos(halos) if halos else None,
    )
    manifest = packaged.manifest
    made = compile_strategy(
        manifest.strategy,
        packaged.graph,
        members,
        model_name=packaged.package.name,
        exact=manifest.exact,
        objective=manifest.objective,
        form=form,
        halos=manifest.halos,
    )
    single = compile_plan(packaged.graph, members[:1], model_name=packaged.package.name)
    if svg is not None:
        from agent.planner.draw import draw_plan

        svg.write_text(draw_plan(made))
    if timeline is not None and ending is not None:
        write_file(timeline, _drawn(made, ending))
    if as_json:
        print_json(_as_json(made, single))
    else:
        _print(made, single)


def _drawn(made: Plan, ending: str) -> str:
    from agent.timeline import Series, render, with_waits

    title = f"{made.model} on {len(made.devices)} device(s)"
    return render(ending, title, (with_waits(Series("predicted", made.spans)),))


def make_form(layout: str) -> Form:
    """Return the form of layouts that the user named.

    Raises:
        ConfigError: if there is none of that name.
    """
    from agent.errors import ConfigError
    from agent.planner.plan import Form

    if layout not in get_args(Form):
        raise ConfigError(f"--layout {layout}: give any, rows, columns or grid")
    return cast("Form", layout)


def make_devices(count: int, gflops: str, link_mbit: float, latency_ms: float) -> list[Device]:
    """Return `count` devices of the given rates; the last rate stands for the rest."""
    from agent.errors import ConfigError
    from agent.planner import Device

    try:
        rates = [float(rate) for rate in gflops.split(",")]
    except ValueError as error:
        raise ConfigError(f"--gflops {gflops}: give numbers, as in 20 or 20,10") from error
    if not all(0 < rate < math.inf for rate in (*rates, link_mbit)):
        raise ConfigError("--gflops and --link-mbit must be above 0 and finite")
    if not 0 <= latency_ms < math.inf:
        raise ConfigError("--latency-ms must be at least 0 and finite")
    rates += [rates[-1]] * (count - len(rates))
    return [
        Device(
            id=f"device-{number + 1}",
            flops_per_s=rate * 1e9,
            link_bytes_per_s=link_mbit * 125_000,
            link_latency_s=latency_ms / 1e3,
            packing_bytes_per_s=rate * 1e9 * PACKED_PER_FLOP,
        )
        for number, rate in enumerate(rates[:count])
    ]


def _as_json(made: Plan, single: Plan) -> dict[str, object]:
    return {
        "model": made.model,
        "devices": list(made.devices),
        "predicted_ms": round(made.predicted_s * 1e3, 3),
        "single_device_ms": round(single.predicted_s * 1e3, 3),
        "distributed_share": round(made.distributed_share, 4),
        "halo_bytes": sum(block.halo_bytes for block in made.blocks),
        "undistributed": undistributed_json(made.undistributed),
        "blocks": [
            {
                "layers": list(block.layers),
                "layout": list(shape),
                "devices": list(block.devices),
                "tiles": block.tiles,
                "halo_bytes": block.halo_bytes,
                "compute_ms": round(block.compute_s * 1e3, 3),
                "exchange_ms": round(block.exchange_s * 1e3, 3),
                "overlapped": block.overlapped,
                "codings": sorted(block.codings),
                "flops": block.flops,
            }
            for block, shape in zip(made.blocks, made.layouts, strict=True)
        ],
    }


def undistributed_json(operators: Sequence[Undistributed]) -> list[dict[str, object]]:
    """Return what one device computes for all, the dearest first."""
    return [
        {
            "label": operator.label,
            "reason": operator.reason,
            "ms": round(operator.seconds * 1e3, 6),
        }
        for operator in _dearest_first(operators)
    ]


def undistributed_lines(operators: Sequence[Undistributed]) -> Iterator[str]:
    """Yield what one device computes for all in words: the dearest by name, the rest together."""
    ordered = _dearest_first(operators)
    for operator in ordered[:_NAMED]:
        yield f"not shared: {operator}"
    rest = ordered[_NAMED:]
    if rest:
        together = sum(operator.seconds for operator in rest)
        yield f"not shared: and {len(rest)} more, {together * 1e3:.2g} ms together"


def _dearest_first(operators: Sequence[Undistributed]) -> list[Undistributed]:
    return sorted(operators, key=lambda operator: -operator.seconds)


def _print(made: Plan, single: Plan) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{made.model} on {len(made.devices)} device(s)")
    for column in ("block", "layers", "layout", "tiles", "halo kB", "exchange ms", "compute ms"):
        table.add_column(
            column, justify="left" if column in ("layers", "tiles") else "right", overflow="fold"
        )
    for block, shape in zip(made.blocks, made.layouts, strict=True):
        table.add_row(
            str(block.index),
            _layers(block.layers),
            str(shape),
            tiles_text(block, shape),
            _halos(block),
            f"{block.exchange_s * 1e3:.2f}",
            f"{block.compute_s * 1e3:.2f}",
        )
    console = Console()
    console.print(table)
    gain = single.predicted_s / made.predicted_s
    console.print(
        f"predicted {made.predicted_s * 1e3:.1f} ms; one device {single.predicted_s * 1e3:.1f} ms "
        f"({gain:.2f}x); {made.distributed_share:.1%} of the arithmetic is shared"
    )
    for line in undistributed_lines(made.undistributed):
        console.print(line, markup=False, highlight=False)


def _halos(block: Block) -> str:
    packed = sorted(block.codings - {"plain"})
    return " ".join([f"{block.halo_bytes / 1e3:.0f}", *packed])


def _layers(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} .. {names[-1]}"


def tiles_text(block: Block, shape: Shape) -> str:
    """Return the tiles of a block's first live tensor: the ranges of rows x those of columns.

    Where columns differ from row to row there is a line for each device instead.
    """
    from agent.planner.draw import drawn_axes

    regions = [block.tiles[device][0][1] for device in block.devices]
    axes = [axis for axis in drawn_axes(block, shape) if axis is not None]
    ranges = [[f"{start}:{stop}" for start, stop in (r[a] for a in axes)] for r in regions]
    distinct = [list(dict.fromkeys(column)) for column in zip(*ranges, strict=True)]
    if math.prod(map(len, distinct)) != len(regions):
        return "\n".join(" x ".join(spans) for spans in ranges)
    return " x ".join(" ".join(spans) for spans in distinct) or "whole"
