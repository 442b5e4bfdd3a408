"""Time and chance: a virtual clock, a heap of what is to happen, and one seed for all of it."""

from __future__ import annotations

import heapq
from random import Random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_EVENTS = 400_000


class Violation(AssertionError):  # noqa: N818 - it is what a broken promise is called
    """A promise that the fleet did not keep."""


class World:
    """A clock in seconds that jumps from one event to the next; equal times keep their order.

    `story` is the schedule of what was done to the fleet; with `trace` every message is told.
    """

    def __init__(self, seed: int, *, trace: bool = False) -> None:
        self.seed = seed
        self.random = Random(seed)
        self.now = 0.0
        self.story: list[str] = []
        self.trace: list[str] | None = [] if trace else None
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0

    @property
    def count(self) -> int:
        """How much has happened, or is about to."""
        return self._count

    def at(self, time: float, action: Callable[..., None], *arguments: Any) -> None:
        """Have `action` called at `time`, or now if that has passed."""
        self._count += 1
        heapq.heappush(self._heap, (max(time, self.now), self._count, action, arguments))

    def after(self, delay: float, action: Callable[..., None], *arguments: Any) -> None:
        """Have `action` called `delay` seconds from now."""
        self.at(self.now + delay, action, *arguments)

    def run(self, until: float) -> None:
        """Let everything happen that is due up to `until`.

        Raises:
            Violation: if more happens than any fleet has reason to do.
        """
        heap = self._heap
        while heap and heap[0][0] <= until:
            self.now, number, action, arguments = heapq.heappop(heap)
            if number > MAX_EVENTS:
                raise Violation(f"{MAX_EVENTS} events: somebody repeats itself without end")
            action(*arguments)
        self.now = until

    def tell(self, text: str) -> None:
        """Note what was done to the fleet."""
        line = f"{self.now:9.3f}  {text}"
        self.story.append(line)
        if self.trace is not None:
            self.trace.append(line)

    def note(self, text: str) -> None:
        """Note a message or an effect, where a trace is wanted."""
        if self.trace is not None:
            self.trace.append(f"{self.now:9.3f}    {text}")
