"""Blob transfer on a connection and thread of its own, so that weights never delay halos."""

from __future__ import annotations

import contextlib
import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.adapters.logs import log
from agent.adapters.mqtt import Acknowledged, Connected, Disconnected, Link, LinkEvent, Received
from agent.adapters.store import WrongDigestError
from agent.errors import BrokerError, StoreError, WireError
from agent.service.loop import Loop, monotonic
from agent.transfer import Fetcher, Provider
from agent.transfer import events as tr
from agent.wire.messages import (
    CHUNK_BYTES,
    Absent,
    Chunk,
    Want,
    decode_msgpack,
    encode_json,
    encode_msgpack,
)
from agent.wire.topics import Kind

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.adapters.store import BlobStore, MemoryBlobs
    from agent.config import BrokerConfig
    from agent.wire.topics import Topics

TICK_S = 0.5
MAX_WAITING = 1024
NICE = 10


@dataclass(frozen=True, slots=True)
class FetchDone:
    """Every blob of a fetch is in the store."""

    ticket: str


@dataclass(frozen=True, slots=True)
class FetchProgress:
    """The share of a fetch's bytes that is here."""

    ticket: str
    fraction: float


@dataclass(frozen=True, slots=True)
class FetchBroken:
    """A fetch that cannot be completed, and why."""

    ticket: str
    reason: str


@dataclass(frozen=True, slots=True)
class _Fetch:
    ticket: str
    blobs: dict[str, int]
    holder: str


@dataclass(frozen=True, slots=True)
class _Cancel:
    ticket: str


@dataclass(frozen=True, slots=True)
class _Drop:
    seconds: float


@dataclass(frozen=True, slots=True)
class _Skipped:
    """A chunk that could not be read: its reader asks again, and is told then what is wrong."""


class TransferService:
    """Fetches blobs into `store` and serves those that are in it, as device `name`.

    `tell` is called from the transfer's thread with `FetchDone`, `FetchProgress`, `FetchBroken`.
    """

    def __init__(
        self,
        name: str,
        topics: Topics,
        broker: BrokerConfig,
        store: BlobStore | MemoryBlobs,
        tell: Callable[[object], None],
    ) -> None:
        self._name = name
        self._topics = topics
        self._store = store
        self._tell = tell
        self._fetcher = Fetcher(name)
        self._provider = Provider()
        self._sizes: dict[str, int] = {}
        self._unacknowledged: set[int] = set()
        self._tick_at = 0.0
        self._link = Link(f"halomq-{topics.fleet}-{name}-bulk", broker)
        self._loop = Loop(self._link, self, monotonic)
        self._thread = threading.Thread(target=self._run, name="transfer", daemon=True)

    def start(self) -> None:
        """Start the thread and the connection."""
        self._thread.start()

    def _run(self) -> None:
        # Hashing and storing weights must not slow the requests that are served meanwhile; where
        # a sandbox forbids it, it is done without.
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        self._loop.run()

    def stop(self) -> None:
        """End the connection and the thread."""
        self._loop.stop()
        self._thread.join(timeout=5.0)

    def fetch(self, ticket: str, blobs: dict[str, int], holder: str) -> None:
        """Bring `blobs` (digest to size) into the store; callable from any thread."""
        self._loop.post(_Fetch(ticket, blobs, holder))

    def cancel(self, ticket: str) -> None:
        """Forget a fetch; callable from any thread."""
        self._loop.post(_Cancel(ticket))

    def take(self, message: Want | Absent) -> None:
        """Hand over a control message about blobs; callable from any thread.

        Where more come than are dealt with they are dropped: readers ask again.
        """
        if self._loop.waiting < MAX_WAITING:
            self._loop.post(message)

    def drop(self, seconds: float) -> None:
        """Drop the connection, and make none for `seconds`; callable from any thread."""
        self._loop.post(_Drop(seconds))

    def on_link(self, event: LinkEvent) -> None:
        """Take an event of the bulk connection; nothing that arrives may end the thread."""
        try:
            self._linked(event)
        except Exception as error:  # noqa: BLE001 - one blob can't take all others down
            log("error", f"the transfer of blobs stumbled: {type(error).__name__}: {error}")

    def _linked(self, event: LinkEvent) -> None:
        match event:
            case Connected():
                self._unacknowledged.clear()
                self._apply(self._fetcher.reconnected(monotonic()))
                self._apply(self._provider.reconnected())
            case Disconnected():
                self._fetcher.disconnected()
            case Acknowledged(number) if number in self._unacknowledged:
                self._unacknowledged.discard(number)
                self._apply(self._provider.published())
            case Received():
                self._received(event)

    def on_post(self, item: object) -> None:
        """Take a call from another thread."""
        try:
            self._posted(item)
        except Exception as error:  # noqa: BLE001 - one blob can't take all others down
            log("error", f"the transfer of blobs stumbled: {type(error).__name__}: {error}")
            if isinstance(item, _Fetch):
                self._tell(FetchBroken(item.ticket, f"{type(error).__name__}: {error}"))

    def _posted(self, item: object) -> None:
        now = monotonic()
        match item:
            case _Fetch(ticket, blobs, holder):
                try:
                    self._store.check_room(blobs)
                except StoreError as error:
                    self._tell(FetchBroken(ticket, str(error)))
                    return
                missing = self._missing(blobs)
                self._sizes[ticket] = sum(missing.values())
                self._apply(self._fetcher.fetch(ticket, missing, holder, now))
            case _Cancel(ticket):
                self._sizes.pop(ticket, None)
                self._apply(self._fetcher.cancel(ticket))
            case Want():
                self._wanted(item)
            case _Drop(seconds):
                self._loop.drop(seconds)
            case _Skipped():
                self._apply(self._provider.published())
            case Absent(digest, reason):
                self._apply(self._fetcher.absent(digest, reason))

    def _missing(self, blobs: dict[str, int]) -> dict[str, int]:
        damaged = self._store.remove_damaged(blobs)
        if damaged:
            text = f"{len(damaged)} of {len(blobs)} blobs are damaged on disk and fetched again"
            log("warning", f"{text}; the first is {damaged[0][:12]}")
        return self._store.missing(blobs)

    def on_turn(self, now: float) -> float | None:
        """Ask again for what is overdue and report progress."""
        if not self._sizes:
            return None
        if now >= self._tick_at:
            self._tick_at = now + TICK_S
            self._apply(self._fetcher.tick(now))
            outstanding = self._fetcher.outstanding_bytes
            for ticket, total in self._sizes.items():
                fraction = 1.0 - min(1.0, outstanding / max(1, total))
                self._tell(FetchProgress(ticket, fraction))
        return self._tick_at

    def _received(self, message: Received) -> None:
        address = self._topics.parse(message.topic)
        if address is None or address.kind is not Kind.BLOB:
            return
        try:
            chunk = decode_msgpack(message.payload, Chunk)
        except WireError as error:
            log("warning", f"refused a chunk: {error}")
            return
        if chunk.digest == address.subject:
            self._apply(self._fetcher.chunk(chunk, monotonic()))

    def _wanted(self, want: Want) -> None:
        if want.digest not in self._store:
            absent = Absent(want.digest, f"{self._name} does not have it")
            self._publish(self._topics.inbox(want.reader), encode_json(absent))
            return
        chunks = max(1, -(-self._store.size(want.digest) // CHUNK_BYTES))
        self._apply(self._provider.want(want, chunks))

    def _apply(self, effects: list[tr.Effect]) -> None:
        for effect in effects:
            match effect:
                case tr.Listen(digest):
                    self._link.subscribe(self._topics.blob(digest))
                case tr.Ignore(digest):
                    self._link.unsubscribe(self._topics.blob(digest))
                case tr.Ask(holder, want):
                    self._publish(self._topics.inbox(holder), encode_json(want))
                case tr.Keep(digest, content):
                    self._keep(digest, content)
                case tr.PublishChunk(digest, index):
                    self._publish_chunk(digest, index)
                case tr.Done(ticket):
                    self._sizes.pop(ticket, None)
                    self._tell(FetchDone(ticket))
                case tr.Failed(ticket, digest, reason):
                    self._sizes.pop(ticket, None)
                    self._tell(FetchBroken(ticket, f"blob {digest[:12]}: {reason}"))

    def _keep(self, digest: str, content: bytearray) -> None:
        try:
            self._store.put(digest, content)
        except StoreError as error:
            retry = isinstance(error, WrongDigestError)
            effects = self._fetcher.rejected(digest, str(error), monotonic(), retry=retry)
        else:
            effects = self._fetcher.stored(digest, monotonic())
        self._apply(effects)

    def _publish_chunk(self, digest: str, index: int) -> None:
        try:
            content = self._store.read(digest)
            start = index * CHUNK_BYTES
            data = bytes(content[start : start + CHUNK_BYTES])
            chunk = Chunk(digest, len(content), index, data)
            number = self._link.publish(self._topics.blob(digest), encode_msgpack(chunk))
        except BrokerError as error:
            # Without a connection the provider starts anew when it is back.
            if self._link.connected:
                log("error", str(error))
                self._loop.post(_Skipped())
        except StoreError as error:
            log("error", str(error))
            self._loop.post(_Skipped())
        else:
            self._unacknowledged.add(number)

    def _publish(self, topic: str, payload: bytes) -> None:
        try:
            self._link.publish(topic, payload)
        except BrokerError:
            # No connection: the fetcher asks again after `reconnected`.
            return
