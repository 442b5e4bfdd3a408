"""Message types: JSON where people and other tools read, msgpack where tensors travel.

Every type is a frozen struct that is validated when it is decoded; what does not fit raises
`WireError`, which the receiver logs and drops.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from agent.errors import WireError
from agent.wire.calibration import Figures, Timings
from agent.wire.model import ModelName, ModelPackage
from agent.wire.program import BlobRef, Box, Coding, Digest, Extent, Index
from agent.wire.tensors import TensorMessage, unpack

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

CHUNK_BYTES = 512 * 1024
# What broker_config/ allows: a request of 8 MiB and what is around it.
MAX_PACKET_BYTES = (8 << 20) + (64 << 10)
# How often a device with unanswered requests tells that it is alive, in seconds.
BEAT_S = 0.1
# How many sends, and how many receives, a trace tells one by one.
MAX_TRANSFERS = 512

DeviceId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]
RequestId = DeviceId
Text = Annotated[str, Meta(max_length=4096)]
Fingerprint = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
# JSON numbers are exact up to here.
Epoch = Annotated[int, Meta(ge=0, lt=1 << 53)]
Positive = Annotated[float, Meta(ge=0.0, le=1e18)]
Ratio = Annotated[float, Meta(ge=1e-3, le=1e3)]
Term = Annotated[int, Meta(ge=0, le=1 << 53)]


class Capacity(Struct, frozen=True):
    """What a device can do: rates in flop/s and bytes/s, times in seconds, sizes in bytes.

    It packs and unpacks halos at `packing_bytes_per_s`; 0 is one that cannot.
    """

    cpu: Text
    cores: Index
    threads: Index
    memory_bytes: Extent
    providers: tuple[Text, ...]
    flops_per_s: Positive
    memory_bytes_per_s: Positive
    link_latency_s: Positive
    link_bytes_per_s: Positive
    memory_limit_bytes: Extent | None = None
    step_overhead_s: Positive = 0.0003
    packing_bytes_per_s: Positive = 0.0


class Health(Struct, frozen=True):
    """How a device is now; temperature in degrees Celsius where the platform tells it."""

    load: Positive
    memory_available_bytes: Extent
    memory_used_bytes: Extent
    temperature_c: float | None = None


class ModelState(Struct, frozen=True):
    """What a coordinator says of a deployed model in its status.

    `covered` are the devices whose loss a plan answers that all others have ready. `measured` are
    the devices whose own times of the model's layers were planned with; where the
    coordinator does not calibrate (`calibrates`), no more will be.
    """

    name: ModelName
    state: Text
    epoch: int = 0
    devices: tuple[DeviceId, ...] = ()
    measured: tuple[DeviceId, ...] = ()
    calibrates: bool = True
    covered: tuple[DeviceId, ...] = ()


class Status(Struct, frozen=True):
    """Retained on a device's status topic; `session` tells one life of the process from another.

    The last will is the same message with `state` offline, so an old will cannot hide a new birth.
    Behind a dot `session` counts how often the broker has forgotten what was meant for the device.
    `drift` says how many times as long as predicted the steps of a model in `plans` take here,
    `drills` whether clients may have the agent fail, `supervised` whether systemd runs it, `beats`
    whether it tells with each `Beat` that it is alive while it has requests. `term` is that of a
    coordinator which leads, 0 on standby; the one with the highest `priority` takes over first.
    `held` are the devices that it holds back from plans, because they come and go.
    """

    device: DeviceId
    session: Text
    state: Literal["online", "offline"]
    role: Literal["agent", "coordinator"] = "agent"
    versions: dict[str, str] = {}
    capacity: Capacity | None = None
    health: Health | None = None
    plans: dict[ModelName, Epoch] = {}
    drift: dict[ModelName, Ratio] = {}
    drills: bool = False
    supervised: bool = False
    beats: bool = False
    models: tuple[ModelState, ...] = ()
    term: Term = 0
    priority: int = 0
    held: tuple[DeviceId, ...] = ()

    def ends(self, session: str) -> bool:
        """Tell whether this is the end of the life that `session` is of."""
        return self.state == "offline" and life_of(self.session) == life_of(session)


class Beat(Struct, frozen=True):
    """QoS 0, every `BEAT_S` while a device has unanswered requests: it is alive.

    `waits` are the models of which a request lacks what other devices are to send or answer;
    `first` is the first beat after there was nothing to do.
    """

    device: DeviceId
    session: Text
    waits: tuple[ModelName, ...] = ()
    first: bool = False


class Deployed(Struct, frozen=True):
    """Retained on a model's deployment topic, for coordinators: what is deployed under its name.

    Without a `package` the model was removed. `term` is that of the reign in which this was said;
    `coordinator` serves the package's blobs; `figures` are those of the newest plan, by device.
    """

    model: ModelName
    package: ModelPackage | None
    epoch: Index
    term: Term = 0
    coordinator: DeviceId | None = None
    figures: dict[DeviceId, Figures] = {}


def leader_of(statuses: Iterable[Status]) -> str | None:
    """Return the coordinator that leads, of all that these statuses tell of; None without one."""
    reigns = [(s.term, s.device) for s in statuses if s.state == "online" and s.term > 0]
    return max(reigns)[1] if reigns else None


class PlanHeader(Struct, frozen=True):
    """What is retained of a model's current plan; (epoch, coordinator) orders plans totally.

    `devices` is in rank order, the first one answers. `programs` and `manifest` are blobs that
    `source` serves. `joined` are the devices that were not in the plan before, and so may lack
    requests in flight.
    """

    epoch: Annotated[int, Meta(ge=1, lt=1 << 53)]
    coordinator: DeviceId
    model: ModelName
    digest: Digest
    devices: tuple[DeviceId, ...]
    programs: dict[DeviceId, BlobRef]
    manifest: BlobRef
    source: DeviceId
    joined: tuple[DeviceId, ...] = ()
    predicted_ms: float = 0.0

    @property
    def order(self) -> tuple[int, str]:
        """The key by which the newest plan is found."""
        return (self.epoch, self.coordinator)


class Prepare(Struct, frozen=True, tag="prepare"):
    """Coordinator to agent: fetch and load what `plan` needs, but keep serving the current one."""

    plan: PlanHeader


class Standby(Struct, frozen=True, tag="standby"):
    """Coordinator to agent: what plans after a device's loss need, to be made ready when idle.

    `blobs` are to be fetched from `source`, and `programs`, which are among them, to be loaded
    beside the current plan's where memory allows; `manifest` is what they are of.
    """

    model: ModelName
    source: DeviceId
    blobs: tuple[BlobRef, ...]
    programs: tuple[BlobRef, ...] = ()
    manifest: BlobRef | None = None


class Ready(Struct, frozen=True, tag="ready"):
    """Agent to coordinator: the programs (digests) that are loaded here for plans after a loss.

    A plan of such programs and this `manifest` can be announced without being offered.
    """

    device: DeviceId
    session: Text
    model: ModelName
    manifest: Digest
    programs: tuple[Digest, ...]


class Prepared(Struct, frozen=True, tag="prepared"):
    """Agent to coordinator: plan `epoch` can be activated, or why not."""

    device: DeviceId
    model: ModelName
    epoch: Epoch
    ok: bool
    reason: Text = ""


class Calibrate(Struct, frozen=True, tag="calibrate"):
    """Coordinator to agent: when idle, run the model's probes (a blob), for `budget_s` at most."""

    model: ModelName
    coordinator: DeviceId
    source: DeviceId
    probes: BlobRef
    budget_s: Annotated[float, Meta(ge=0.0, le=3600.0)]


class Calibrated(Struct, frozen=True, tag="calibrated"):
    """Agent to coordinator: how long the model's probes take here."""

    device: DeviceId
    model: ModelName
    timings: Timings


class Want(Struct, frozen=True, tag="want"):
    """Reader to the holder of a blob: publish `count` chunks, starting with chunk `first`."""

    reader: DeviceId
    digest: Digest
    first: Index
    count: Annotated[int, Meta(ge=1, le=64)]


class Absent(Struct, frozen=True, tag="absent"):
    """Holder to reader: the blob is not here, or cannot be read."""

    digest: Digest
    reason: Text = ""


class Deploy(Struct, frozen=True, tag="deploy"):
    """Client to coordinator: serve the model; `sender` serves its blobs until told it is done."""

    sender: DeviceId
    reference: Text
    package: ModelPackage


class Remove(Struct, frozen=True, tag="remove"):
    """Client to coordinator: stop serving a model and forget it."""

    sender: DeviceId
    reference: Text
    name: ModelName


class Progress(Struct, frozen=True, tag="progress"):
    """Coordinator to client: how a `Deploy` or `Remove` goes; the last one is `done`."""

    reference: Text
    text: Text
    done: bool = False
    ok: bool = True
    fraction: float = 0.0
    plan: PlanHeader | None = None


Control = (
    Prepare
    | Standby
    | Ready
    | Prepared
    | Calibrate
    | Calibrated
    | Want
    | Absent
    | Deploy
    | Remove
    | Progress
)


class Piece(Struct, frozen=True, tag="piece", omit_defaults=True):
    """A region of a tensor of one request under one plan; `data` is in C order, little-endian.

    Unless `coding` says that it is packed (`agent.wire.packing`).

    `input` is the fingerprint of the request's payload, so that a client which uses an id twice
    can never get tensors of its two pictures mixed.
    """

    plan: Digest
    request: RequestId
    input: Fingerprint
    tensor: Index
    region: Box
    data: memoryview
    coding: Coding = "plain"


class Forward(Struct, frozen=True, tag="forward"):
    """A request that a device which joined the plan has not seen; times in seconds from now."""

    model: ModelName
    request: RequestId
    payload: bytes
    remaining_s: Positive
    tensors: bool = False
    content_type: Text | None = None
    response_topic: Text | None = None
    correlation: bytes | None = None
    client: Text = ""


Peer = Piece | Forward


class Chunk(Struct, frozen=True):
    """Part `index` of a blob of `nbytes`, of `CHUNK_BYTES` each but the last."""

    digest: Digest
    nbytes: Extent
    index: Index
    data: bytes


class Failure(Struct, frozen=True):
    """Why a request has no result: a code for programs and a sentence for people."""

    code: Literal["input", "deadline", "overloaded", "compute", "model"]
    text: Text


class Answer(Struct, frozen=True, omit_defaults=True):
    """The answer to a request: `result` is what the manifest's task makes of the outputs.

    A request for tensors is answered in msgpack, with `outputs` instead of `result`.
    """

    request: RequestId
    model: ModelName
    input: Fingerprint
    ok: bool
    outputs: dict[str, TensorMessage] | None = None
    result: dict[str, Any] | None = None
    error: Failure | None = None
    elapsed_ms: float = 0.0
    epoch: int = 0
    devices: tuple[DeviceId, ...] = ()


class FailureCode(Struct, frozen=True):
    """What of a failure is for programs."""

    code: Text


class AnswerKey(Struct, frozen=True):
    """What of an answer tells which request it ends, and how."""

    request: RequestId
    input: Fingerprint
    error: FailureCode | None = None

    @property
    def turned_away(self) -> bool:
        """Whether there was no room for the request."""
        return self.error is not None and self.error.code == "overloaded"


class StepTrace(Struct, frozen=True):
    """When a step ran, in milliseconds since the request arrived, and what it wrote first."""

    block: int
    tensor: Text
    region: Box
    start_ms: float
    end_ms: float
    predicted_ms: float = 0.0
    predicted_start_ms: float = 0.0


class TransferTrace(Struct, frozen=True):
    """A send, when it was handed to the connection, or a receive, when it arrived.

    Times are in milliseconds since the request arrived. `peer` is whom a send went to; a receive
    knows none. Transfers that are told together have the hull of their regions, and the times of
    the first and the last.
    """

    tensor: Text
    region: Box
    start_ms: float
    end_ms: float
    nbytes: Extent
    peer: Text = ""


class Pace(Struct, frozen=True):
    """How far a device that plays a slower one kept its pace since its start.

    Of `steps` so many as `late` took longer than on the slower device; `over_ms` is what these and
    all other work took too long, together.
    """

    steps: int
    late: int
    over_ms: float


class Trace(Struct, frozen=True):
    """What one device did for one request, in milliseconds since it arrived there.

    `total_ms` is when the device was done, or had all outputs; the answering device then made the
    answer for `answer_ms`. `pace` is told by emulated devices only.
    """

    device: DeviceId
    request: RequestId
    epoch: int
    steps: tuple[StepTrace, ...]
    decode_ms: float
    compute_ms: float
    wait_ms: float
    total_ms: float
    bytes_sent: int
    bytes_received: int
    decode_start_ms: float = 0.0
    answer_ms: float = 0.0
    sends: tuple[TransferTrace, ...] = ()
    receives: tuple[TransferTrace, ...] = ()
    pace: Pace | None = None


def life_of(session: str) -> str:
    """Return what of a session names the life of a process."""
    return session.partition(".")[0]


def runtime_of(capacity: Capacity, versions: Mapping[str, str]) -> str:
    """Return what decides, beside the model, how long a layer takes on a device."""
    runtime = f"onnxruntime {versions.get('onnxruntime', '')} ({', '.join(capacity.providers)})"
    return f"{capacity.cpu}, {capacity.threads} threads, {runtime}"[:4096]


def fingerprint(payload: bytes) -> str:
    """Return what tells two payloads with the same request id apart."""
    return blake2b(payload, digest_size=16).hexdigest()


def encode_json(message: Struct) -> bytes:
    """Encode a message as JSON."""
    return msgspec.json.encode(message)


def decode_json(payload: bytes, kind: Any) -> Any:
    """Decode and validate JSON of the struct (or union of structs) `kind`.

    Raises:
        WireError: if the payload is not such a message.
    """
    try:
        return msgspec.json.decode(payload, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"not a message of this version of HaloMQ: {error}") from error


def encode_answer(answer: Answer) -> bytes:
    """Encode an answer as msgpack where it holds tensors, else as JSON."""
    return encode_msgpack(answer) if answer.outputs is not None else encode_json(answer)


def decode_answer(payload: bytes, kind: Any = Answer) -> Any:
    """Decode an `Answer` (or, for less work, an `AnswerKey`) from JSON or msgpack.

    Raises:
        WireError: if the payload is neither.
    """
    return (decode_json if payload[:1] == b"{" else decode_msgpack)(payload, kind)


def encode_msgpack(message: Struct) -> bytes:
    """Encode a message as msgpack."""
    return msgspec.msgpack.encode(message)


def decode_msgpack(payload: bytes, kind: Any) -> Any:
    """Decode and validate msgpack of the struct (or union of structs) `kind`.

    Raises:
        WireError: if the payload is not such a message.
    """
    return unpack(payload, kind, MAX_PACKET_BYTES, "a message of this version of HaloMQ")
