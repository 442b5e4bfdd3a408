"""One request under one plan on this device: which pieces are here, what they make ready.

Rules: a send leaves once its region is held; a step is ready once every region it reads is held;
each happens once. Nothing is copied here: pieces are handed on and cut where they are used.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from agent.geometry import contains, intersect, missing
from agent.worker.events import Held

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent.geometry import Region
    from agent.wire.program import Part, Program, Send


@dataclass(slots=True)
class Execution:
    """The pieces, steps and sends of `program` for one request."""

    program: Program
    _held: dict[int, list[Held]] = field(default_factory=dict)
    _open_steps: dict[int, set[Part]] = field(default_factory=dict)
    _open_sends: dict[int, list[Send]] = field(default_factory=dict)
    _open_answers: set[Part] = field(default_factory=set)
    ready: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        for number, step in enumerate(self.program.steps):
            self._open_steps[number] = set(step.reads)
        for send in self.program.sends:
            self._open_sends.setdefault(send.part.tensor, []).append(send)
        self._open_answers = set(self.program.answers)

    @property
    def answerable(self) -> bool:
        """Whether this device answers and every output is here."""
        return bool(self.program.answers) and not self._open_answers

    def add(self, tensor: int, held: Held) -> list[Send]:
        """Take a piece; return the sends that it completes and note the steps it makes ready."""
        pieces = self._held.setdefault(tensor, [])
        if any(contains(piece.region, held.region) for piece in pieces):
            return []
        pieces.append(held)
        sends = self._open_sends.get(tensor, [])
        due = [send for send in sends if self._covers(tensor, send.part.region)]
        if due:
            self._open_sends[tensor] = [send for send in sends if send not in due]
        for number, reads in list(self._open_steps.items()):
            met = {r for r in reads if r.tensor == tensor and self._covers(tensor, r.region)}
            reads.difference_update(met)
            if not reads:
                del self._open_steps[number]
                self.ready.append(number)
        self.ready.sort()
        self._open_answers = {
            part
            for part in self._open_answers
            if part.tensor != tensor or not self._covers(tensor, part.region)
        }
        return due

    def wrote(self, step: int, arrays: Iterable[Any]) -> list[Send]:
        """Take what a step computed, one array for each of its writes."""
        writes = self.program.steps[step].writes
        sends: list[Send] = []
        for part, array in zip(writes, arrays, strict=True):
            sends += self.add(part.tensor, Held(part.region, array))
        return sends

    def pieces(self, part: Part) -> tuple[Held, ...]:
        """Return held pieces that together cover `part`, as few as one where one suffices."""
        pieces = self._held.get(part.tensor, [])
        for piece in pieces:
            if contains(piece.region, part.region):
                return (piece,)
        return tuple(piece for piece in pieces if intersect(piece.region, part.region))

    def _covers(self, tensor: int, region: Region) -> bool:
        return not missing(region, (piece.region for piece in self._held.get(tensor, [])))
