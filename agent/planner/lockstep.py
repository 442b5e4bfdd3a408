"""The clock of the papers: all devices compute, then all exchange, and nobody runs ahead."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from agent.geometry import size
from agent.planner.program import rounds
from agent.wire.tensors import itemsize

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agent.planner.cost import Device
    from agent.wire.program import Program, Send


class Lockstep(NamedTuple):
    """Seconds of a request: those of the slowest devices, and those of the busiest links."""

    compute_s: float
    exchange_s: float

    @property
    def seconds(self) -> float:
        """Both together."""
        return self.compute_s + self.exchange_s


def lockstep(programs: Mapping[str, Program], devices: Sequence[Device]) -> Lockstep:
    """Return how long programs take in lockstep, by their steps' predicted seconds.

    Raises:
        ModelError: if the programs cannot run to their end.
    """
    links = {device.id: device for device in devices}
    compute = exchange = 0.0
    for waves, steps in rounds(programs):
        exchange += sum(_wave_seconds(wave, programs, links) for wave in waves)
        busy = dict.fromkeys(programs, 0.0)
        for device, step in steps:
            busy[device] += step.predicted_s
        compute += max(busy.values())
    return Lockstep(compute, exchange)


def _wave_seconds(
    wave: Sequence[tuple[str, Send]],
    programs: Mapping[str, Program],
    links: Mapping[str, Device],
) -> float:
    """Return the seconds of the busiest link; each carries both directions at once."""
    sent, received = dict.fromkeys(programs, 0), dict.fromkeys(programs, 0)
    for device, send in wave:
        spec = programs[device].tensors[send.part.tensor]
        nbytes = size(send.part.region) * itemsize(spec.dtype)
        sent[device] += nbytes
        received[send.to] += nbytes
    return max(
        links[device].link_latency_s
        + max(nbytes, received[device]) / links[device].link_bytes_per_s
        for device, nbytes in sent.items()
        if nbytes or received[device]
    )
