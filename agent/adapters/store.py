"""The blob store: content-addressed files in the data directory, with a size limit.

A blob is verified when it is stored and again the first time a process reads it, so a truncated
or damaged file is noticed, removed and fetched again. The least recently used blobs make room
for new ones; pinned blobs (those of the plans that are served) stay.
"""

from __future__ import annotations

import errno
import os
import re
from contextlib import suppress
from hashlib import file_digest, sha256
from threading import RLock
from typing import TYPE_CHECKING, Protocol

import numpy as np

from agent.adapters.mapping import MappedFiles, can_join
from agent.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

Content = bytes | bytearray | memoryview
DIGEST = re.compile(r"[0-9a-f]{64}")


class WrongDigestError(StoreError):
    """Bytes that do not have the sha256 by which they are addressed."""


class Mapped(Protocol):
    """Consecutive blobs as one array of bytes."""

    @property
    def array(self) -> NDArray[np.uint8]:
        """All bytes, read-only."""

    def drop_pages(self) -> None:
        """Give back what memory can be given back; the array stays valid."""


class JoinedBytes:
    """Blobs that are not mapped one behind the other: copied into one array if need be."""

    def __init__(self, contents: Sequence[Content]) -> None:
        arrays = [np.frombuffer(content, np.uint8) for content in contents]
        self.array = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)

    def drop_pages(self) -> None:
        """Nothing can be given back."""


class BlobStore:
    """Blobs below `folder`, at most `limit_bytes` of them.

    Safe to use from several threads of one process; a reader's mapping stays valid after eviction.

    Raises:
        StoreError: if the folder cannot be made or written.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._lock = RLock()
        self._folder = folder
        self._limit = limit_bytes
        self._pinned: set[str] = set()
        self._verified: set[str] = set()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for leftover in folder.glob("*.tmp"):
                leftover.unlink()
            blobs = [path for path in folder.iterdir() if DIGEST.fullmatch(path.name)]
            self._sizes = {
                path.name: path.stat().st_size
                for path in sorted(blobs, key=lambda path: path.stat().st_mtime)
                if path.is_file()
            }
        except OSError as error:
            raise StoreError(
                f"the data directory {folder} cannot be used: {error.strerror}; "
                "choose another with data_dir or mend its permissions"
            ) from error

    def __contains__(self, digest: str) -> bool:
        return digest in self._sizes

    @property
    def used_bytes(self) -> int:
        """How many bytes all blobs take."""
        return sum(self._sizes.values())

    def missing(self, blobs: Mapping[str, int]) -> dict[str, int]:
        """Return those of `blobs` (digest to size) that are not here in full size."""
        with self._lock:
            for digest in [d for d, size in blobs.items() if self._sizes.get(d, size) != size]:
                self.discard(digest)
            return {digest: size for digest, size in blobs.items() if digest not in self._sizes}

    def has_read(self, blobs: Mapping[str, int]) -> bool:
        """Tell whether `blobs` (digest to size) are all here and known to be undamaged."""
        with self._lock:
            return all(d in self._verified and self._sizes.get(d) == n for d, n in blobs.items())

    def remove_damaged(self, blobs: Iterable[str]) -> list[str]:
        """Read those of `blobs` that this process has not read; remove and return damaged ones."""
        damaged = []
        for digest in blobs:
            with self._lock:
                try:
                    if digest in self._sizes:
                        self._use(digest)
                except StoreError:
                    damaged.append(digest)
        return damaged

    def check_room(self, blobs: Mapping[str, int]) -> None:
        """Check that `blobs` (digest to size) fit beside those that are pinned.

        Raises:
            StoreError: if they do not, before any of their bytes has travelled.
        """
        with self._lock:
            pinned = (size for d, size in self._sizes.items() if d in self._pinned - blobs.keys())
            if sum(blobs.values()) + sum(pinned) > self._limit:
                raise self._full(sum(blobs.values()))

    def pin(self, digests: Iterable[str]) -> None:
        """Make `digests` the set of blobs that are never evicted."""
        self._pinned = set(digests)

    def put(self, digest: str, content: Content) -> None:
        """Verify and store a blob.

        Raises:
            WrongDigestError: if `content` is not what `digest` names.
            StoreError: if the store's limit or the disk is full.
        """
        with self._lock:
            if digest in self._sizes:
                return
            if sha256(content).hexdigest() != digest:
                raise WrongDigestError(f"blob {digest[:12]} arrived with wrong bytes")
            self._make_room(len(content))
            partial = self._folder / f"{digest}.tmp"
            try:
                partial.write_bytes(content)
                partial.replace(self._folder / digest)
            except OSError as error:
                partial.unlink(missing_ok=True)
                reason = "the disk is full" if error.errno == errno.ENOSPC else str(error.strerror)
                raise StoreError(
                    f"blob {digest[:12]} ({len(content)} bytes) does not fit into {self._folder}: "
                    f"{reason}; free some space or choose another data_dir"
                ) from error
            self._sizes[digest] = len(content)
            self._verified.add(digest)

    def read(self, digest: str) -> memoryview:
        """Return a blob's bytes as a read-only mapping of its file.

        Raises:
            StoreError: if it is not here, or was damaged on disk (it is removed then).
        """
        return self.map([digest]).array.data

    def map(self, digests: Sequence[str]) -> Mapped:
        """Return blobs one behind the other, mapped from their files where sizes allow.

        Raises:
            StoreError: if one is not here, or was damaged on disk (it is removed then).
        """
        with self._lock:
            absent = next((digest for digest in digests if digest not in self._sizes), None)
            if absent is not None:
                raise StoreError(f"blob {absent[:12]} is not in {self._folder}")
            for digest in digests:
                self._use(digest)
            sizes = [self._sizes[digest] for digest in digests]
            paths = [self._folder / digest for digest in digests]
            if can_join(sizes):
                return MappedFiles(paths, sizes)
            return JoinedBytes([path.read_bytes() for path in paths])

    def _use(self, digest: str) -> None:
        path = self._folder / digest
        try:
            os.utime(path)
            if path.stat().st_size != self._sizes[digest] or digest not in self._verified:
                with path.open("rb") as file:
                    found = file_digest(file, "sha256").hexdigest()
                if found != digest:
                    self.discard(digest)
                    raise WrongDigestError(f"blob {digest[:12]} was damaged on disk, removed now")
                self._verified.add(digest)
        except OSError as error:
            self.discard(digest)
            raise StoreError(f"blob {digest[:12]} cannot be read: {error.strerror}") from error
        self._sizes[digest] = self._sizes.pop(digest)

    def size(self, digest: str) -> int:
        """Return a stored blob's size in bytes; `KeyError` if it is not here."""
        return self._sizes[digest]

    def discard(self, digest: str) -> None:
        """Remove a blob if it is here."""
        with self._lock:
            self._sizes.pop(digest, None)
            self._verified.discard(digest)
            # What cannot be removed is overwritten when it is fetched again.
            with suppress(OSError):
                (self._folder / digest).unlink()

    def _make_room(self, nbytes: int) -> None:
        excess = self.used_bytes + nbytes - self._limit
        evictable = [digest for digest in self._sizes if digest not in self._pinned]
        if excess > sum(self._sizes[digest] for digest in evictable):
            raise self._full(nbytes)
        for digest in evictable:
            if excess <= 0:
                break
            excess -= self._sizes[digest]
            self.discard(digest)

    def _full(self, nbytes: int) -> StoreError:
        return StoreError(
            f"the store {self._folder} is full: {nbytes} bytes more would pass its limit of "
            f"{self._limit} bytes and everything in it is in use; raise store.limit_mb"
        )


class MemoryBlobs:
    """A store without disk or limit, for a client that provides a model's blobs."""

    def __init__(self, blobs: Mapping[str, Content]) -> None:
        self._blobs = dict(blobs)

    def __contains__(self, digest: str) -> bool:
        return digest in self._blobs

    def missing(self, blobs: Mapping[str, int]) -> dict[str, int]:
        """Return those of `blobs` (digest to size) that are not here."""
        return {digest: size for digest, size in blobs.items() if digest not in self._blobs}

    def remove_damaged(self, _blobs: Iterable[str]) -> list[str]:
        """Nothing is damaged."""
        return []

    def check_room(self, blobs: Mapping[str, int]) -> None:
        """Nothing is too large."""

    def put(self, digest: str, content: Content) -> None:
        """Verify and keep a blob.

        Raises:
            WrongDigestError: if `content` is not what `digest` names.
        """
        if sha256(content).hexdigest() != digest:
            raise WrongDigestError(f"blob {digest[:12]} has wrong bytes")
        self._blobs[digest] = content

    def size(self, digest: str) -> int:
        """Return a blob's size in bytes; `KeyError` if it is not here."""
        return len(self._blobs[digest])

    def read(self, digest: str) -> memoryview:
        """Return a blob's bytes; `KeyError` if it is not here."""
        return memoryview(self._blobs[digest])

    def map(self, digests: Sequence[str]) -> Mapped:
        """Return blobs one behind the other; `KeyError` if one is not here."""
        return JoinedBytes([self._blobs[digest] for digest in digests])
