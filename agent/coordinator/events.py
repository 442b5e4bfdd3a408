"""What happens to a coordinator (events) and what it wants done (effects): frozen plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agent.wire.calibration import Figures
    from agent.wire.messages import (
        Beat,
        Calibrated,
        Capacity,
        Control,
        Deploy,
        Deployed,
        ModelState,
        PlanHeader,
        Prepared,
        Ready,
        Remove,
        Status,
    )
    from agent.wire.model import ModelPackage
    from agent.wire.program import BlobRef


@dataclass(frozen=True, slots=True)
class Member:
    """A device that can be planned with: its id, this life of its agent, its capacity.

    `runtime` is what a layer's time depends on there; timings of another one say nothing. One that
    `beats` tells that it is alive while it has requests.
    """

    device: str
    session: str
    capacity: Capacity
    runtime: str = ""
    beats: bool = False


Fleet = frozenset[str]


@dataclass(frozen=True, slots=True)
class ComputedPlan:
    """What the planner made for `fleet`; `devices` is in rank order and may be fewer.

    `blobs` gives, for each device, digest to size of all that its program needs. `choice` is what
    the planner needs to weigh this plan against another; `instead_of_ms` is what the plan that it
    was to be weighed against takes by the same figures.
    """

    fleet: Fleet
    devices: tuple[str, ...]
    programs: dict[str, BlobRef]
    blobs: dict[str, dict[str, int]]
    predicted_ms: float
    notes: tuple[str, ...] = field(default=())
    choice: Any = None
    instead_of_ms: float | None = None


# Events -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StatusSeen:
    """A device's retained status or last will."""

    status: Status


@dataclass(frozen=True, slots=True)
class HeaderSeen:
    """A retained plan header: another coordinator's, or one from an earlier life."""

    header: PlanHeader


@dataclass(frozen=True, slots=True)
class RecordSeen:
    """The retained record of a deployment: the leader's, or one from an earlier reign."""

    record: Deployed


@dataclass(frozen=True, slots=True)
class DeployAsked:
    """A client wants a model served."""

    deploy: Deploy


@dataclass(frozen=True, slots=True)
class RemoveAsked:
    """A client wants a model forgotten."""

    remove: Remove


@dataclass(frozen=True, slots=True)
class Fetched:
    """Every blob of a `Fetch` is in the store."""

    ticket: str


@dataclass(frozen=True, slots=True)
class Fetching:
    """A `Fetch` goes on: the share of its bytes that is here."""

    ticket: str
    fraction: float


@dataclass(frozen=True, slots=True)
class FetchFailed:
    """A `Fetch` cannot be completed."""

    ticket: str
    reason: str


@dataclass(frozen=True, slots=True)
class Computed:
    """A `ComputePlan` of `package` succeeded; its programs and segments are in the store."""

    package: ModelPackage
    plan: ComputedPlan


@dataclass(frozen=True, slots=True)
class ComputeFailed:
    """A `ComputePlan` of `package` for `fleet` failed; `reason` is for people."""

    package: ModelPackage
    fleet: Fleet
    reason: str


@dataclass(frozen=True, slots=True)
class ProbesMade:
    """A `MakeProbes` of `package` succeeded: the probes are blob `probes` in the store."""

    package: ModelPackage
    probes: BlobRef


@dataclass(frozen=True, slots=True)
class ProbesRefused:
    """A `MakeProbes` of `package` failed; `reason` is for people."""

    package: ModelPackage
    reason: str


@dataclass(frozen=True, slots=True)
class CalibratedSeen:
    """An agent tells how long a model's probes take."""

    calibrated: Calibrated


@dataclass(frozen=True, slots=True)
class PreparedSeen:
    """An agent prepared a plan, or could not."""

    prepared: Prepared


@dataclass(frozen=True, slots=True)
class ReadySeen:
    """An agent has loaded programs of plans after a loss."""

    ready: Ready


@dataclass(frozen=True, slots=True)
class BeatSeen:
    """An agent with unanswered requests is alive."""

    beat: Beat


@dataclass(frozen=True, slots=True)
class Connected:
    """There is a connection to the broker, perhaps again; what it had retained may be lost."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = (
    StatusSeen
    | HeaderSeen
    | RecordSeen
    | DeployAsked
    | RemoveAsked
    | Fetched
    | Fetching
    | FetchFailed
    | Computed
    | ComputeFailed
    | ProbesMade
    | ProbesRefused
    | CalibratedSeen
    | PreparedSeen
    | ReadySeen
    | BeatSeen
    | Connected
    | Tick
)


# Effects ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fetch:
    """Bring `blobs` into the store from `holder`."""

    ticket: str
    blobs: dict[str, int]
    holder: str


@dataclass(frozen=True, slots=True)
class ComputePlan:
    """Run the planner for `members`, store what it makes, answer `Computed`/`ComputeFailed`.

    `figures` says by device what is known beyond capacities. The plan `against` is to be weighed
    against what is made.
    """

    package: ModelPackage
    members: tuple[Member, ...]
    figures: dict[str, Figures] = field(default_factory=dict)
    against: ComputedPlan | None = None


@dataclass(frozen=True, slots=True)
class MakeProbes:
    """Make the probes of a model, store them, answer `ProbesMade` or `ProbesRefused`."""

    package: ModelPackage


@dataclass(frozen=True, slots=True)
class Tell:
    """Publish a control message to a device's or client's inbox."""

    device: str
    message: Control


@dataclass(frozen=True, slots=True)
class Announce:
    """Publish a plan's header, retained: it is the current plan from now on."""

    header: PlanHeader


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Clear the retained header of a model."""

    model: str


@dataclass(frozen=True, slots=True)
class Persist:
    """Save what is known of deployments, and pin the blobs that they need."""

    records: tuple[Deployed, ...]
    blobs: frozenset[str]


@dataclass(frozen=True, slots=True)
class Record:
    """Publish the record of a deployment, retained."""

    record: Deployed


@dataclass(frozen=True, slots=True)
class Show:
    """Refresh the coordinator's retained status; `term` is 0 on standby.

    `held` are the devices that are held back from plans because they come and go.
    """

    models: tuple[ModelState, ...]
    term: int
    held: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Log:
    """Log one line about an event."""

    level: str
    text: str
    model: str | None = None
    epoch: int | None = None


Effect = (
    Fetch | ComputePlan | MakeProbes | Tell | Announce | Withdraw | Persist | Record | Show | Log
)
