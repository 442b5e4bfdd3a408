"""Plans as plain data: the dataflow program that each device executes, and the plan's header.

A planner compiles, agents execute. An agent knows nothing of CNN geometry: it runs a step once
every region that the step reads is here, and sends a region once it is written.
Tensors, segments and steps are referred to by their index in the program; the programs of a plan
have the same tensors, because pieces name tensors by index.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from agent.errors import WireError

Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Index = Annotated[int, Meta(ge=0, lt=1_000_000)]
Extent = Annotated[int, Meta(ge=0, le=1 << 40)]
Box = tuple[tuple[Extent, Extent], ...]
DType = Annotated[str, Meta(pattern=r"^(bool|u?int(8|16|32|64)|float(16|32|64))\Z")]

# How a region travels: as it is, in fewer bytes, or as float16 in fewer bytes (agent.wire.packing).
Coding = Literal["plain", "packed", "half"]


class BlobRef(Struct, frozen=True):
    """A content-addressed blob: its sha256 in hex and its size in bytes."""

    digest: Digest
    nbytes: Extent


class TensorSpec(Struct, frozen=True):
    """A tensor of the whole model: numpy dtype name and static shape."""

    name: str
    dtype: DType
    shape: tuple[Extent, ...]


class WeightSpec(Struct, frozen=True):
    """An initializer of a segment: bytes `offset` and on of its concatenated `parts`.

    Large weights are stored as several blobs along axis 0, so that a device that needs some rows
    fetches only the parts which hold them. `shape` is the shape that the segment sees.
    """

    name: str
    dtype: DType
    shape: tuple[Extent, ...]
    parts: tuple[BlobRef, ...]
    offset: Extent = 0


class SegmentSpec(Struct, frozen=True):
    """An ONNX graph without weights (`graph`), and the weights it is loaded with."""

    graph: BlobRef
    weights: tuple[WeightSpec, ...] = ()


class Part(Struct, frozen=True):
    """A region of a tensor of the program."""

    tensor: Index
    region: Box


class Step(Struct, frozen=True):
    """Run `segment` once every part in `reads` is here.

    The segment's i-th graph input is exactly the region `reads[i]`, its i-th output `writes[i]`.
    `block` numbers the plan's block, for reports; `predicted_start_s` (since the request arrived)
    and `predicted_s` (how long) are the planner's estimate.
    """

    segment: Index
    reads: tuple[Part, ...]
    writes: tuple[Part, ...]
    block: Index = 0
    predicted_s: float = 0.0
    predicted_start_s: float = 0.0


class Send(Struct, frozen=True, omit_defaults=True):
    """Publish `part` to device `to` once it is written."""

    part: Part
    to: str
    coding: Coding = "plain"


class Program(Struct, frozen=True):
    """What one device does for each request of one model.

    `input` is the index of the model's input tensor, which every device makes from the request.
    `answers` are the output parts (whole output tensors) of the device that answers, else empty.
    Steps are in priority order: of two ready steps the earlier one runs first.
    """

    model: str
    device: str
    tensors: tuple[TensorSpec, ...]
    input: Index
    segments: tuple[SegmentSpec, ...]
    steps: tuple[Step, ...]
    sends: tuple[Send, ...]
    answers: tuple[Part, ...] = ()

    def blobs(self) -> dict[str, int]:
        """Return digest to size in bytes of every blob that the program needs."""
        refs = [segment.graph for segment in self.segments]
        refs += [p for segment in self.segments for weight in segment.weights for p in weight.parts]
        return {ref.digest: ref.nbytes for ref in refs}


def encode_program(program: Program) -> bytes:
    """Encode a program as deterministic JSON, the form in which it is a blob."""
    return msgspec.json.encode(program, order="deterministic")


def blob_ref(content: bytes | memoryview) -> BlobRef:
    """Return the reference by which `content` is stored and fetched."""
    return BlobRef(sha256(content).hexdigest(), len(content))


def decode_program(content: bytes) -> Program:
    """Decode and check a program blob.

    Raises:
        WireError: if it is malformed, or refers to tensors or segments it does not have.
    """
    try:
        program = msgspec.json.decode(content, type=Program)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"not a program of this version of HaloMQ: {error}") from error
    for part in _parts(program):
        if part.tensor >= len(program.tensors):
            raise WireError(f"the program refers to tensor {part.tensor}, which it does not have")
        shape = program.tensors[part.tensor].shape
        fits = len(part.region) == len(shape) and all(
            start < stop <= extent for (start, stop), extent in zip(part.region, shape, strict=True)
        )
        if not fits:
            name = program.tensors[part.tensor].name
            raise WireError(f"the program's region {part.region} does not fit tensor {name}")
    if program.input >= len(program.tensors):
        raise WireError("the program's input is not one of its tensors")
    if any(step.segment >= len(program.segments) for step in program.steps):
        raise WireError("the program has a step whose segment is missing")
    if not all(step.writes for step in program.steps):
        raise WireError("the program has a step that writes nothing")
    for send in program.sends:
        spec = program.tensors[send.part.tensor]
        if send.coding == "half" and spec.dtype != "float32":
            raise WireError(f"the program rounds {spec.name} to float16, but it is {spec.dtype}")
    return program


def _parts(program: Program) -> list[Part]:
    stepped = [part for step in program.steps for part in (*step.reads, *step.writes)]
    return [*stepped, *(send.part for send in program.sends), *program.answers]


def plan_digest(programs: dict[str, BlobRef], epoch: int, coordinator: str) -> str:
    """Return the name of a plan: no two plans of any coordinators share it."""
    content = {"programs": programs, "epoch": epoch, "coordinator": coordinator}
    return sha256(msgspec.json.encode(content, order="deterministic")).hexdigest()
