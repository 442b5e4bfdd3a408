"""`halomq infer`: send one request and print its answer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agent.cli.options import Json, configured, print_json, read_file
from agent.config import Config
from agent.errors import FleetError, InputError

if TYPE_CHECKING:
    from agent.wire.messages import Answer


@configured
def infer(
    model: Annotated[str, typer.Argument(help="Name of a deployed model.")],
    file: Annotated[Path, typer.Argument(help="JPEG, PNG, .npy or msgpack tensor.")],
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the answer.")] = 30.0,
    save: Annotated[
        Path | None, typer.Option(help="Write the picture with its answer drawn in (PNG).")
    ] = None,
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

    payload = read_file(file)
    with Client(config=config) as client:
        answer = client.infer(model, payload, timeout_s=timeout)
    if as_json:
        print_json(msgspec.to_builtins(answer))
    if not answer.ok:
        _raise(answer)
    if not as_json:
        print_json(answer.result)
    if save is not None and answer.result is not None:
        save.write_bytes(annotate(payload, answer.result))


def _raise(answer: Answer) -> None:
    error = answer.error
    if error is None:
        raise FleetError("the answer is neither a result nor an error")
    raise (InputError if error.code == "input" else FleetError)(f"{error.code}: {error.text}")
