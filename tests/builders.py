"""Short ways to make what the tests of cores and codecs need: headers, programs, requests."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from agent.adapters.compute import gather
from agent.wire.messages import Piece, PlanHeader, fingerprint
from agent.wire.program import (
    BlobRef,
    Part,
    Program,
    SegmentSpec,
    Send,
    Step,
    TensorSpec,
    blob_ref,
    encode_program,
    plan_digest,
)
from agent.wire.tensors import bytes_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from agent.geometry import Region
    from agent.worker import events as ev

T = TypeVar("T")
Span = tuple[int, int]
Tiles = dict[str, Span]
DTYPE = "int64"


def only(kind: type[T], effects: Iterable[object]) -> list[T]:
    """Return the effects of one kind, in order."""
    return [effect for effect in effects if isinstance(effect, kind)]


def digest_of(text: str) -> str:
    """Return a well-formed blob digest."""
    return sha256(text.encode()).hexdigest()


def ref(text: str, nbytes: int = 10) -> BlobRef:
    """Return a reference to a blob that stands for `text`."""
    return BlobRef(digest_of(text), nbytes)


def header_of(
    programs: Mapping[str, Program] | Sequence[str],
    epoch: int = 1,
    *,
    model: str = "m",
    coordinator: str = "boss",
    joined: tuple[str, ...] = (),
) -> PlanHeader:
    """Return the header of a plan whose devices are in the order of `programs`."""
    if isinstance(programs, dict):
        refs = {device: blob_ref(encode_program(p)) for device, p in programs.items()}
    else:
        refs = {device: ref(f"program of {device}") for device in programs}
    return PlanHeader(
        epoch=epoch,
        coordinator=coordinator,
        model=model,
        digest=plan_digest(refs, epoch, coordinator),
        devices=tuple(refs),
        programs=refs,
        manifest=ref("manifest"),
        source=coordinator,
        joined=joined,
    )


# Programs whose tensors are rows of integers -----------------------------------------------------


def chain(
    layers: Sequence[Tiles],
    rows: int,
    gatherer: str,
    model: str = "m",
    *,
    step_rows: int = 1000,
) -> dict[str, Program]:
    """Return programs in which row i of each tensor needs rows i-1 to i+1 of the one before.

    `layers` gives, for each tensor after the input, the rows that each device owns; `gatherer`
    answers with the whole last tensor. A step computes at most `step_rows` rows.
    """
    devices = sorted({device for tiles in layers for device in tiles})
    order = [gatherer, *(device for device in devices if device != gatherer)]
    tensors = tuple(TensorSpec(f"t{n}", DTYPE, (rows,)) for n in range(len(layers) + 1))
    last = len(layers)
    programs = {}
    for device in order:
        steps, sends = [], []
        for tensor, tiles in enumerate(layers, start=1):
            own = tiles.get(device)
            if own is None:
                continue
            for start in range(*own, step_rows):
                part = (start, min(start + step_rows, own[1]))
                read, write = Part(tensor - 1, (_window(part, rows),)), Part(tensor, (part,))
                steps.append(Step(0, (read,), (write,), block=tensor - 1))
            for other in order:
                wanted = (0, rows) if tensor == last else None
                if tensor < last and other in layers[tensor]:
                    wanted = _window(layers[tensor][other], rows)
                if other == device or wanted is None or (tensor == last and other != gatherer):
                    continue
                common = (max(own[0], wanted[0]), min(own[1], wanted[1]))
                if common[0] < common[1]:
                    sends.append(Send(Part(tensor, (common,)), other))
        programs[device] = Program(
            model=model,
            device=device,
            tensors=tensors,
            input=0,
            segments=(SegmentSpec(ref("segment")),),
            steps=tuple(steps),
            sends=tuple(sends),
            answers=(Part(last, ((0, rows),)),) if device == gatherer else (),
        )
    return programs


def _window(span: Span, rows: int) -> Span:
    return (max(0, span[0] - 1), min(rows, span[1] + 1))


def layer(inputs: NDArray[Any], window: Span, tile: Span) -> NDArray[Any]:
    """Compute rows `tile` of a tensor from the rows `window` of the one before."""
    row = [
        int(inputs[max(0, n - 1 - window[0]) : n + 2 - window[0]].sum()) * (n + 1)
        for n in range(*tile)
    ]
    return np.array(row, DTYPE) % 1_000_003


def whole_chain(inputs: NDArray[Any], layers: int) -> NDArray[Any]:
    """Compute the last tensor of a chain in one place."""
    for _ in range(layers):
        inputs = layer(inputs, (0, len(inputs)), (0, len(inputs)))
    return inputs


def run_step(program: Program, job: ev.Run) -> tuple[NDArray[Any], ...]:
    """Do what an executor does for a step of a chain."""
    step = program.steps[job.step]
    read, write = step.reads[0].region, step.writes[0].region
    return (layer(gather(read, DTYPE, job.inputs[0]), read[0], write[0]),)


def image_of(payload: bytes, rows: int) -> NDArray[Any]:
    """Decode a payload: its bytes, repeated as often as there are rows."""
    return np.array([payload[n % len(payload)] + n for n in range(rows)], DTYPE)


def piece_of(
    header: PlanHeader,
    request: str,
    payload: bytes,
    region: Region,
    values: Sequence[int],
    *,
    tensor: int = 1,
) -> Piece:
    """Return a piece of a tensor of integers."""
    data = np.array(values, DTYPE)
    return Piece(header.digest, request, fingerprint(payload), tensor, region, bytes_of(data))
