"""`halomq infer`: send one request and print its answer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agent.cli.options import (
    Json,
    Timeline,
    configured,
    print_json,
    read_file,
    timeline_ending,
    write_file,
)
from agent.config import Config
from agent.errors import FleetError, InputError

if TYPE_CHECKING:
    from agent.client import Client
    from agent.wire.messages import Answer


@configured
def infer(
    model: Annotated[str, typer.Argument(help="Name of a deployed model.")],
    file: Annotated[Path, typer.Argument(help="JPEG, PNG, .npy or msgpack tensor.")],
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the answer.")] = 30.0,
    save: Annotated[
        Path | None, typer.Option(help="Write the picture with its answer drawn in (PNG).")
    ] = None,
    timeline: Timeline = None,
    as_json: Json = False,
    *,
    config: Config,
) -> None:
    """Send a picture or tensor to a deployed model and print the answer.

    Example: halomq infer defects part.jpg --save part-answer.png
    """
    import msgspec

    from agent.adapters.drawing import annotate
    from agent.client import Client

    ending = None if timeline is None else timeline_ending(timeline)
    payload = read_file(file)
    with Client(config=config) as client:
        name = client.send(model, payload, timeout_s=timeout, traces=ending is not None)
        answer = client.answer(model, name, timeout)
        drawn = _drawn(client, answer, ending) if ending is not None and answer.ok else None
    if as_json:
        print_json(msgspec.to_builtins(answer))
    if not answer.ok:
        _raise(answer)
    if not as_json:
        print_json(answer.result)
    if save is not None and answer.result is not None:
        save.write_bytes(annotate(payload, answer.result))
    if timeline is not None and drawn is not None:
        write_file(timeline, drawn)


def _drawn(client: Client, answer: Answer, ending: str) -> str:
    """Return the timeline of a request that was answered, made of its devices' traces."""
    from agent.timeline import render, series_of

    devices = answer.devices
    told = client.traces(answer.model, answer.request, len(devices))
    traces = [trace for trace in told if trace.device in devices]
    if not traces:
        raise FleetError(
            "no device told what it did for the request, so there is no timeline; "
            "see requests.traces in docs/configuration.md"
        )
    traces.sort(key=lambda trace: devices.index(trace.device))
    untold = sorted(set(devices) - {trace.device for trace in traces})
    if untold:
        sys.stderr.write(f"note: not in the timeline, as they told nothing: {', '.join(untold)}\n")
    title = f"{answer.model} on {len(devices)} device(s), request {answer.request}"
    return render(ending, title, series_of(traces))


def _raise(answer: Answer) -> None:
    error = answer.error
    if error is None:
        raise FleetError("the answer is neither a result nor an error")
    raise (InputError if error.code == "input" else FleetError)(f"{error.code}: {error.text}")
