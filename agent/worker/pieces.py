"""Pieces on the wire: what one must be to fit a program, and how large ones are cut."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.errors import WireError
from agent.geometry import shape_of, size, split_rows
from agent.wire.messages import CHUNK_BYTES
from agent.wire.packing import Packed
from agent.wire.tensors import itemsize
from agent.worker.events import Held

if TYPE_CHECKING:
    from agent.geometry import Region
    from agent.wire.messages import Piece
    from agent.wire.program import Program


def check_piece(piece: Piece, program: Program) -> None:
    """Check a piece against the program that it is for.

    Raises:
        WireError: if its tensor, region, coding or number of bytes does not fit.
    """
    if piece.tensor >= len(program.tensors):
        raise WireError(f"tensor {piece.tensor} is not in the plan")
    spec = program.tensors[piece.tensor]
    fits = len(piece.region) == len(spec.shape) and all(
        start < stop <= extent
        for (start, stop), extent in zip(piece.region, spec.shape, strict=True)
    )
    if not fits:
        raise WireError(f"region {piece.region} does not fit {spec.name} {spec.shape}")
    expected = size(piece.region) * itemsize(spec.dtype)
    if piece.coding == "half" and spec.dtype != "float32":
        raise WireError(f"{spec.name} is {spec.dtype}, but came rounded to float16")
    # What is inside is checked when it is unpacked.
    fitting = range(1, expected) if piece.coding != "plain" else (expected,)
    if len(piece.data) not in fitting:
        raise WireError(f"{len(piece.data)} bytes for {spec.name}, expected {expected}")


def held(piece: Piece, program: Program) -> Held:
    """Return what a checked piece holds; a packed one is unpacked where it is used."""
    if piece.coding == "plain":
        return Held(piece.region, piece.data)
    dtype = program.tensors[piece.tensor].dtype
    return Held(piece.region, Packed(piece.coding, dtype, shape_of(piece.region), piece.data))


def chunked(region: Region, bytes_each: int) -> list[Region]:
    """Cut a region along its longest axis so that each part fits into one message."""
    total = size(region) * bytes_each
    if total <= CHUNK_BYTES:
        return [region]
    axis = max(range(len(region)), key=lambda axis: region[axis][1] - region[axis][0])
    extent = region[axis][1] - region[axis][0]
    rows = max(1, extent * CHUNK_BYTES // total)
    parts = split_rows(region, axis, rows)
    if len(parts) == 1:
        return parts
    return [small for part in parts for small in chunked(part, bytes_each)]
