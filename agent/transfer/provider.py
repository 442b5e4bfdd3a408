"""The holding side: publishes the chunks that readers ask for, each once however many ask.

Rules: at most `IN_FLIGHT` chunks wait for the broker's acknowledgement, so a slow broker holds the
provider back; a chunk that waits in the queue is not queued again, because every reader listens
to the same topic; the queue is bounded, and readers ask again for what was not queued.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.transfer.events import Effect, PublishChunk

if TYPE_CHECKING:
    from agent.wire.messages import Want

IN_FLIGHT = 4
MAX_QUEUED = 4096


class Provider:
    """Orders what is published; every method returns the effects to carry out."""

    def __init__(self) -> None:
        self._queue: dict[tuple[str, int], None] = {}
        self._in_flight = 0

    def want(self, want: Want, chunks: int) -> list[Effect]:
        """Queue what `want` asks for of a blob that has `chunks` chunks."""
        for index in range(want.first, min(want.first + want.count, chunks)):
            if len(self._queue) < MAX_QUEUED:
                self._queue.setdefault((want.digest, index))
        return self._pump()

    def published(self) -> list[Effect]:
        """Note that the broker has one chunk, or that it could not be read."""
        self._in_flight = max(0, self._in_flight - 1)
        return self._pump()

    def reconnected(self) -> list[Effect]:
        """Forget acknowledgements that a lost connection owes."""
        self._in_flight = 0
        return self._pump()

    def _pump(self) -> list[Effect]:
        effects: list[Effect] = []
        while self._queue and self._in_flight < IN_FLIGHT:
            digest, index = next(iter(self._queue))
            del self._queue[(digest, index)]
            self._in_flight += 1
            effects.append(PublishChunk(digest, index))
        return effects
