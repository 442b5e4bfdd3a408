"""The reading side: asks holders for chunks, a window at a time, until every blob is here.

Rules: chunks are asked for in the order of the queue; at most `WINDOW_CHUNKS` are outstanding, so
the broker's queue for this reader stays short; chunks that others asked for are taken as well; a
chunk is asked for again once its holder has sent nothing for `PATIENCE_S`; a blob whose holder
stays silent for `GIVE_UP_S`, or whose bytes are wrong `MAX_REJECTIONS` times, fails its fetches.
A break loses at most the blobs in progress: finished ones are in the store.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil
from typing import TYPE_CHECKING

from agent.transfer.events import Ask, Done, Effect, Failed, Ignore, Keep, Listen
from agent.wire.messages import CHUNK_BYTES, Chunk, Want

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

WINDOW_CHUNKS = 16
ACTIVE_BLOBS = 8
RUN_CHUNKS = 16
PATIENCE_S = 3.0
GIVE_UP_S = 60.0
MAX_REJECTIONS = 3


@dataclass(slots=True)
class _Blob:
    digest: str
    nbytes: int
    holder: str
    content: dict[int, bytes]
    lacking: set[int]
    asked: dict[int, float] = field(default_factory=dict)
    rejections: int = 0
    keeping: bool = False


class Fetcher:
    """Fetches blobs for device `reader`; every method returns the effects to carry out."""

    def __init__(self, reader: str) -> None:
        self._reader = reader
        self._queue: dict[str, _Blob | tuple[int, str]] = {}
        self._tickets: dict[str, set[str]] = {}
        self._heard: dict[str, float] = {}
        self._online = True

    @property
    def outstanding_bytes(self) -> int:
        """How many bytes are still to come, for progress reports."""
        return sum(
            len(blob.lacking) * CHUNK_BYTES if isinstance(blob, _Blob) else blob[0]
            for blob in self._queue.values()
        )

    def fetch(self, ticket: str, blobs: Mapping[str, int], holder: str, now: float) -> list[Effect]:
        """Start fetching `blobs` (digest to size in bytes, none of them stored) from `holder`."""
        effects = self._forget(ticket, keep=blobs.keys())
        if not blobs:
            return [*effects, Done(ticket)]
        self._tickets[ticket] = set(blobs)
        for digest, nbytes in blobs.items():
            blob = self._queue.setdefault(digest, (nbytes, holder))
            if isinstance(blob, _Blob):
                blob.holder = holder
                self._heard.setdefault(holder, now)
            else:
                self._queue[digest] = (nbytes, holder)
        return effects + self._pump(now)

    def cancel(self, ticket: str) -> list[Effect]:
        """Forget a fetch; blobs that no other fetch needs are no longer asked for."""
        return self._forget(ticket, keep=())

    def _forget(self, ticket: str, keep: Collection[str]) -> list[Effect]:
        digests = self._tickets.pop(ticket, set()) - set(keep)
        needed = set().union(*self._tickets.values()) if self._tickets else set()
        return [
            Ignore(digest)
            for digest in sorted(digests - needed)
            if isinstance(self._queue.pop(digest, None), _Blob)
        ]

    def chunk(self, chunk: Chunk, now: float) -> list[Effect]:
        """Take a chunk that arrived, wanted or not."""
        blob = self._queue.get(chunk.digest)
        if not isinstance(blob, _Blob) or chunk.index not in blob.lacking:
            return []
        start = chunk.index * CHUNK_BYTES
        expected = min(CHUNK_BYTES, blob.nbytes - start)
        if chunk.nbytes != blob.nbytes or len(chunk.data) != expected:
            return self._fail(chunk.digest, "its holder sends chunks of another size")
        blob.content[chunk.index] = chunk.data
        blob.lacking.discard(chunk.index)
        blob.asked.pop(chunk.index, None)
        self._heard[blob.holder] = now
        effects: list[Effect] = []
        if not blob.lacking:
            blob.keeping = True
            # Not before: whoever only says that a blob is large must not fill the memory.
            parts, blob.content = blob.content, {}
            whole = bytearray().join(parts[index] for index in sorted(parts))
            effects.append(Keep(blob.digest, whole))
        return effects + self._pump(now)

    def absent(self, digest: str, reason: str) -> list[Effect]:
        """Take the holder's word that it cannot provide a blob."""
        if digest not in self._queue:
            return []
        return self._fail(digest, reason or "its holder does not have it")

    def stored(self, digest: str, now: float) -> list[Effect]:
        """Note that a blob was verified and stored."""
        if self._queue.pop(digest, None) is None:
            return []
        effects: list[Effect] = [Ignore(digest)]
        for ticket in list(self._tickets):
            self._tickets[ticket].discard(digest)
            if not self._tickets[ticket]:
                del self._tickets[ticket]
                effects.append(Done(ticket))
        return effects + self._pump(now)

    def rejected(self, digest: str, reason: str, now: float, *, retry: bool) -> list[Effect]:
        """Note that a blob could not be stored; `retry` when its bytes were wrong."""
        blob = self._queue.get(digest)
        if not isinstance(blob, _Blob):
            return []
        blob.rejections += 1
        if not retry or blob.rejections >= MAX_REJECTIONS:
            return self._fail(digest, reason)
        blob.lacking = set(range(_chunks(blob.nbytes)))
        blob.asked.clear()
        blob.keeping = False
        return self._pump(now)

    def disconnected(self) -> None:
        """Note that the connection was lost: silence is nobody's fault now."""
        self._online = False

    def reconnected(self, now: float) -> list[Effect]:
        """Listen and ask again after the connection was lost."""
        self._online = True
        effects: list[Effect] = []
        for blob in self._active():
            blob.asked.clear()
            effects.append(Listen(blob.digest))
        self._heard = dict.fromkeys(self._heard, now)
        return effects + self._pump(now)

    def tick(self, now: float) -> list[Effect]:
        """Ask again for what is overdue and give up on holders that stay silent."""
        effects: list[Effect] = []
        for blob in self._active() if self._online else ():
            # What others of the same holder bring shows that it works through its queue.
            overdue = {index: max(at, self._heard[blob.holder]) for index, at in blob.asked.items()}
            if any(now - at > PATIENCE_S for at in overdue.values()):
                blob.asked.clear()
            silent = now - self._heard[blob.holder] > GIVE_UP_S
            if silent and not blob.keeping and blob.digest in self._queue:
                effects += self._fail(blob.digest, f"{blob.holder} does not send it")
        return effects + self._pump(now)

    def _active(self) -> list[_Blob]:
        return [blob for blob in self._queue.values() if isinstance(blob, _Blob)]

    def _pump(self, now: float) -> list[Effect]:
        effects = self._activate(now)
        room = WINDOW_CHUNKS - sum(len(blob.asked) for blob in self._active())
        for blob in self._active():
            if room <= 0 or blob.keeping:
                continue
            open_chunks = sorted(blob.lacking - blob.asked.keys())[:room]
            for first, count in _runs(open_chunks):
                effects.append(Ask(blob.holder, Want(self._reader, blob.digest, first, count)))
            for index in open_chunks:
                blob.asked[index] = now
            room -= len(open_chunks)
        return effects

    def _activate(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        active = len(self._active())
        for digest, entry in self._queue.items():
            if active >= ACTIVE_BLOBS:
                break
            if isinstance(entry, _Blob):
                continue
            nbytes, holder = entry
            if all(blob.holder != holder for blob in self._active()):
                self._heard[holder] = now
            lacking = set(range(_chunks(nbytes)))
            self._queue[digest] = _Blob(digest, nbytes, holder, {}, lacking)
            effects.append(Listen(digest))
            active += 1
        return effects

    def _fail(self, digest: str, reason: str) -> list[Effect]:
        tickets = [ticket for ticket, blobs in self._tickets.items() if digest in blobs]
        effects: list[Effect] = [Failed(ticket, digest, reason) for ticket in tickets]
        for ticket in tickets:
            effects += self.cancel(ticket)
        return effects


def _chunks(nbytes: int) -> int:
    return max(1, ceil(nbytes / CHUNK_BYTES))


def _runs(indices: list[int]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for index in indices:
        if runs and sum(runs[-1]) == index and runs[-1][1] < RUN_CHUNKS:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((index, 1))
    return runs
