"""What happens to a worker (events) and what it wants done (effects): frozen plain data.

Arrays, decoded pictures and manifests are opaque to the core: it only passes them on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agent.geometry import Region
    from agent.wire.calibration import Timing, Timings
    from agent.wire.drill import Drill, Drilled
    from agent.wire.messages import (
        Answer,
        Calibrate,
        Control,
        Forward,
        Piece,
        PlanHeader,
        Standby,
        Trace,
    )
    from agent.wire.program import BlobRef, Coding, Program


@dataclass(frozen=True, slots=True)
class RequestKey:
    """One request: the model, the client's id and the fingerprint of the payload."""

    model: str
    request: str
    input: str


@dataclass(frozen=True, slots=True)
class ReplyTo:
    """Who asks, and how the answer is wanted; MQTT 5 properties are None where there are none.

    `client` is the same on all devices; requests of one client share what is its due.
    """

    tensors: bool = False
    content_type: str | None = None
    response_topic: str | None = None
    correlation: bytes | None = None
    client: str = ""


# Events -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PlanOffered:
    """A coordinator asks to prepare a plan."""

    header: PlanHeader


@dataclass(frozen=True, slots=True)
class PlanAnnounced:
    """A plan became current (the retained header of `model`), or the model was removed (None)."""

    model: str
    header: PlanHeader | None


@dataclass(frozen=True, slots=True)
class StandbyOffered:
    """A coordinator names blobs that a plan after a loss would need."""

    standby: Standby


@dataclass(frozen=True, slots=True)
class Fetched:
    """Every blob of a `Fetch` is in the store."""

    ticket: str


@dataclass(frozen=True, slots=True)
class FetchFailed:
    """A `Fetch` cannot be completed."""

    ticket: str
    reason: str


@dataclass(frozen=True, slots=True)
class PlanRead:
    """The program and manifest of plan `plan` were read from the store and are valid."""

    plan: str
    program: Program
    manifest: Any


@dataclass(frozen=True, slots=True)
class Loaded:
    """Every segment of plan `plan` is loaded and can run."""

    plan: str


@dataclass(frozen=True, slots=True)
class PlanFailed:
    """Plan `plan` cannot be read or loaded."""

    plan: str
    reason: str


@dataclass(frozen=True, slots=True)
class RequestArrived:
    """A client's request; `request` is None where the client gave no id.

    `expires_s` is what is left of the message's expiry, `redelivered` the MQTT DUP flag.
    """

    model: str
    request: str | None
    input: str
    payload: bytes
    reply: ReplyTo
    expires_s: float | None = None
    redelivered: bool = False


@dataclass(frozen=True, slots=True)
class Decoded:
    """A request's payload is ready for `plan`; `image` stands for the whole input tensor."""

    key: RequestKey
    plan: str
    image: Any
    seconds: float


@dataclass(frozen=True, slots=True)
class DecodeRefused:
    """A request's payload does not fit the model of `plan`."""

    key: RequestKey
    plan: str
    reason: str


@dataclass(frozen=True, slots=True)
class PieceArrived:
    """A peer sent a piece."""

    piece: Piece
    nbytes: int


@dataclass(frozen=True, slots=True)
class StepFinished:
    """Step `step` ran from `started` to `ended`; one array for each of its writes."""

    key: RequestKey
    plan: str
    step: int
    arrays: tuple[Any, ...]
    started: float
    ended: float


@dataclass(frozen=True, slots=True)
class StepFailed:
    """Step `step` could not run."""

    key: RequestKey
    plan: str
    step: int
    reason: str


@dataclass(frozen=True, slots=True)
class PieceSent:
    """A piece that was to be packed has left, as `nbytes` bytes; it was due at time `due`."""

    key: RequestKey
    plan: str
    to: str
    tensor: int
    region: Region
    nbytes: int
    due: float


@dataclass(frozen=True, slots=True)
class PieceFailed:
    """A piece that was to be packed could not be made."""

    key: RequestKey
    plan: str
    reason: str


@dataclass(frozen=True, slots=True)
class Concluded:
    """The outputs of a request were made into an answer's fields `result` or `outputs`."""

    key: RequestKey
    plan: str
    result: dict[str, Any] | None
    outputs: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class ResultSeen:
    """The broker delivered the answer to a request: it is done for everyone.

    `turned_away` where the answer is that there was no room for it.
    """

    key: RequestKey
    turned_away: bool = False


@dataclass(frozen=True, slots=True)
class CalibrationAsked:
    """A coordinator asks how long a model's probes take."""

    ask: Calibrate


@dataclass(frozen=True, slots=True)
class ProbesRead:
    """The probes of a model are valid and `count` many; `known` is what was measured before."""

    model: str
    probes: str
    count: int
    runtime: str
    known: Timings | None


@dataclass(frozen=True, slots=True)
class ProbesFailed:
    """The probes of a model cannot be read."""

    model: str
    probes: str
    reason: str


@dataclass(frozen=True, slots=True)
class ProbeRan:
    """Probe `index` ran, in `seconds` with all around it; it has no timing where it could not."""

    model: str
    probes: str
    index: int
    timing: Timing | None
    seconds: float


@dataclass(frozen=True, slots=True)
class DrillAsked:
    """A client asks this device to fail at a point of a request."""

    drill: Drill


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class LeaveAsked:
    """The process was asked to end: take no new plans."""


PlanEvent = (
    PlanOffered
    | PlanAnnounced
    | StandbyOffered
    | Fetched
    | FetchFailed
    | PlanRead
    | Loaded
    | PlanFailed
)
JobEnded = Decoded | DecodeRefused | StepFinished | StepFailed | Concluded | ProbeRan
CalibrationEvent = CalibrationAsked | ProbesRead | ProbesFailed | ProbeRan
Event = (
    PlanEvent
    | CalibrationEvent
    | RequestArrived
    | Decoded
    | DecodeRefused
    | PieceArrived
    | StepFinished
    | StepFailed
    | PieceSent
    | PieceFailed
    | Concluded
    | ResultSeen
    | DrillAsked
    | Tick
    | LeaveAsked
)


# Effects ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Held:
    """An array (opaque here) that holds exactly `region` of a tensor."""

    region: Region
    data: Any


@dataclass(frozen=True, slots=True)
class Fetch:
    """Bring `blobs` into the store from `holder`; answer with `Fetched` or `FetchFailed`."""

    ticket: str
    blobs: dict[str, int]
    holder: str


@dataclass(frozen=True, slots=True)
class CancelFetch:
    """Forget a fetch."""

    ticket: str


@dataclass(frozen=True, slots=True)
class ReadPlan:
    """Read and check the program and manifest of a plan; answer `PlanRead` or `PlanFailed`."""

    plan: str
    program: BlobRef
    manifest: BlobRef


@dataclass(frozen=True, slots=True)
class Load:
    """Load a program's segments; answer with `Loaded` or `PlanFailed`."""

    plan: str
    program: Program


@dataclass(frozen=True, slots=True)
class LoadSpare:
    """Load a program's segments if memory allows; answer with `Loaded` or `PlanFailed`."""

    plan: str
    program: Program


@dataclass(frozen=True, slots=True)
class Adopt:
    """Have plan `plan` run what was loaded as `spare`, from now on."""

    plan: str
    spare: str
    program: Program


@dataclass(frozen=True, slots=True)
class Unload:
    """Forget the segments of a plan that no other loaded plan uses."""

    plan: str


@dataclass(frozen=True, slots=True)
class Watch:
    """Subscribe to a model's requests and results."""

    model: str


@dataclass(frozen=True, slots=True)
class Unwatch:
    """Unsubscribe from a model's requests and results."""

    model: str


@dataclass(frozen=True, slots=True)
class Tell:
    """Publish a control message to a device's inbox."""

    device: str
    message: Control


@dataclass(frozen=True, slots=True)
class Pass:
    """Publish a request to a device that has not seen it."""

    device: str
    message: Forward


@dataclass(frozen=True, slots=True)
class Decode:
    """Executor: decode a payload for the input tensor of plan `plan`."""

    key: RequestKey
    plan: str
    payload: bytes
    content_type: str | None


@dataclass(frozen=True, slots=True)
class Run:
    """Executor: run a step; for each read the pieces that cover it."""

    key: RequestKey
    plan: str
    step: int
    inputs: tuple[tuple[Held, ...], ...]


@dataclass(frozen=True, slots=True)
class Conclude:
    """Executor: make the answer of whole output tensors, each given as the pieces covering it."""

    key: RequestKey
    plan: str
    image: Any
    outputs: tuple[tuple[Held, ...], ...]
    tensors: bool


@dataclass(frozen=True, slots=True)
class ReadProbes:
    """Read and check the probes of a model; answer `ProbesRead` or `ProbesFailed`."""

    model: str
    probes: BlobRef


@dataclass(frozen=True, slots=True)
class RunProbe:
    """Executor: run probe `index`; answer `ProbeRan`."""

    model: str
    probes: str
    index: int


@dataclass(frozen=True, slots=True)
class KeepTimings:
    """Forget the probes of a model, and keep what they took for the next time."""

    timings: Timings


@dataclass(frozen=True, slots=True)
class SendPiece:
    """Publish a region of a tensor to a device, cut from the pieces that cover it.

    What is not to be plain is answered with `PieceSent` or `PieceFailed`.
    """

    key: RequestKey
    plan: str
    to: str
    tensor: int
    region: Region
    pieces: tuple[Held, ...]
    coding: Coding = "plain"


@dataclass(frozen=True, slots=True)
class PublishAnswer:
    """Publish the one answer of a request."""

    answer: Answer
    reply: ReplyTo


@dataclass(frozen=True, slots=True)
class Republish:
    """Publish a request that came without an id under id `request`."""

    model: str
    request: str
    payload: bytes
    reply: ReplyTo
    remaining_s: float


@dataclass(frozen=True, slots=True)
class PublishTrace:
    """Publish what this device did for a request."""

    model: str
    trace: Trace


@dataclass(frozen=True, slots=True)
class Beat:
    """Tell that this device is alive; see `agent.wire.messages.Beat`."""

    waits: tuple[str, ...]
    first: bool


@dataclass(frozen=True, slots=True)
class PlansChanged:
    """The device's active plans are now these (model to epoch): pin blobs, refresh the status."""

    epochs: dict[str, int]
    blobs: frozenset[str]


@dataclass(frozen=True, slots=True)
class DriftChanged:
    """Steps take longer or less long than was told: refresh the status."""


@dataclass(frozen=True, slots=True)
class FailNow:
    """The point of a drill is reached: fail as it says, before the effects that follow."""

    drill: Drill


@dataclass(frozen=True, slots=True)
class TellDrilled:
    """Tell the client `sender` how its drill goes."""

    sender: str
    drilled: Drilled


@dataclass(frozen=True, slots=True)
class Log:
    """Log one line about an event."""

    level: str
    text: str
    request: str | None = None
    model: str | None = None
    epoch: int | None = None


Effect = (
    Fetch
    | CancelFetch
    | ReadPlan
    | Load
    | LoadSpare
    | Adopt
    | Unload
    | Watch
    | Unwatch
    | Tell
    | Pass
    | Decode
    | Run
    | Conclude
    | ReadProbes
    | RunProbe
    | KeepTimings
    | SendPiece
    | PublishAnswer
    | Republish
    | PublishTrace
    | Beat
    | PlansChanged
    | DriftChanged
    | FailNow
    | TellDrilled
    | Log
)
