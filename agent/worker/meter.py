"""What a request costs its device, and the trace that tells of it.

Notes are taken while the request runs and are cheap; the trace is built from them once the answer
has been published.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from agent.geometry import hull
from agent.wire.messages import MAX_TRANSFERS, StepTrace, TransferTrace

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent.geometry import Region
    from agent.wire.program import Program


class Transfer(NamedTuple):
    """A region that was sent to `peer`, or arrived (then `peer` is not known), in seconds."""

    tensor: int
    region: Region
    start: float
    end: float
    nbytes: int
    peer: str = ""


@dataclass(slots=True)
class Meter:
    """What a request cost this device: (step, start, end) of what ran; times in seconds."""

    steps: list[tuple[int, float, float]] = field(default_factory=list)
    sends: list[Transfer] = field(default_factory=list)
    receives: list[Transfer] = field(default_factory=list)
    decode_s: float = 0.0
    decoded: float | None = None
    answered: float | None = None

    def restart(self) -> None:
        """Forget what was done under an older plan; what is decoded stays so."""
        self.steps.clear()
        self.sends.clear()
        self.receives.clear()
        self.answered = None

    @property
    def compute_s(self) -> float:
        """How long steps ran together."""
        return sum(stop - start for _, start, stop in self.steps)

    def step_traces(self, program: Program, origin: float) -> tuple[StepTrace, ...]:
        """Return what ran, in milliseconds since `origin`."""
        return tuple(_step_trace(program, origin, *entry) for entry in self.steps)


def transfer_traces(
    transfers: list[Transfer], program: Program, origin: float
) -> tuple[TransferTrace, ...]:
    """Return sends or receives in milliseconds since `origin`, at most `MAX_TRANSFERS`.

    Where there are more, those of one tensor and peer are told together.
    """
    few = transfers if len(transfers) <= MAX_TRANSFERS else _merged(transfers)
    return tuple(
        TransferTrace(
            tensor=program.tensors[transfer.tensor].name,
            region=transfer.region,
            start_ms=milliseconds(transfer.start - origin),
            end_ms=milliseconds(transfer.end - origin),
            nbytes=transfer.nbytes,
            peer=transfer.peer,
        )
        for transfer in few[:MAX_TRANSFERS]
    )


def milliseconds(seconds: float) -> float:
    """Return seconds as milliseconds, to the microsecond."""
    return round(seconds * 1e3, 3)


def _merged(transfers: Iterable[Transfer]) -> list[Transfer]:
    groups: dict[tuple[int, str], list[Transfer]] = {}
    for transfer in transfers:
        groups.setdefault((transfer.tensor, transfer.peer), []).append(transfer)
    return [
        Transfer(
            tensor,
            hull(part.region for part in group),
            min(part.start for part in group),
            max(part.end for part in group),
            sum(part.nbytes for part in group),
            peer,
        )
        for (tensor, peer), group in groups.items()
    ]


def _step_trace(
    program: Program, origin: float, number: int, start: float, stop: float
) -> StepTrace:
    step = program.steps[number]
    written = step.writes[0]
    return StepTrace(
        block=step.block,
        tensor=program.tensors[written.tensor].name,
        region=written.region,
        start_ms=milliseconds(start - origin),
        end_ms=milliseconds(stop - origin),
        predicted_ms=milliseconds(step.predicted_s),
        predicted_start_ms=milliseconds(step.predicted_start_s),
    )
