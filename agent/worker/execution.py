"""One request under one plan on this device: which pieces are here, what they make ready.

Rules: a send leaves once its region is held; a step is ready once every region it reads is held;
each happens once. Nothing is copied here: pieces are handed on and cut where they are used.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from agent.geometry import contains, intersect, missing
from agent.worker.events import Held

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent.wire.program import Part, Program, Send


@dataclass(slots=True)
class _Waiting:
    """What happens once a part is held: sends leave, steps lack it no more, an answer has it."""

    sends: list[Send] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    answers: int = 0


@dataclass(slots=True)
class Execution:
    """The pieces, steps and sends of `program` for one request."""

    program: Program
    _held: dict[int, list[Held]] = field(default_factory=dict)
    _wanted: dict[int, dict[Part, _Waiting]] = field(default_factory=dict)
    _lacking: list[int] = field(default_factory=list)
    _open_answers: int = 0
    ready: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        for send in self.program.sends:
            self._waiting(send.part).sends.append(send)
        for number, step in enumerate(self.program.steps):
            reads = set(step.reads)
            self._lacking.append(len(reads))
            for part in reads:
                self._waiting(part).steps.append(number)
        for part in self.program.answers:
            self._waiting(part).answers += 1
        self._open_answers = len(self.program.answers)

    def _waiting(self, part: Part) -> _Waiting:
        return self._wanted.setdefault(part.tensor, {}).setdefault(part, _Waiting())

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
        wanted = self._wanted.get(tensor, {})
        due: list[Send] = []
        for part in [part for part in wanted if self._completes(held, part)]:
            waiting = wanted.pop(part)
            due += waiting.sends
            self._open_answers -= waiting.answers
            for number in waiting.steps:
                self._lacking[number] -= 1
                if not self._lacking[number]:
                    insort(self.ready, number)
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

    def _completes(self, held: Held, part: Part) -> bool:
        """Tell whether `part` is held now that the piece `held` is here."""
        if contains(held.region, part.region):
            return True
        if intersect(held.region, part.region) is None:
            return False
        return not missing(part.region, (piece.region for piece in self._held[part.tensor]))
