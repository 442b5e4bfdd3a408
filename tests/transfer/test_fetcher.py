"""The reading side of a transfer: a window of chunks, asked for again until every blob is here."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from agent.transfer import Fetcher
from agent.transfer import events as tr
from agent.transfer.fetcher import (
    ACTIVE_BLOBS,
    GIVE_UP_S,
    MAX_REJECTIONS,
    PATIENCE_S,
    RUN_CHUNKS,
    WINDOW_CHUNKS,
)
from agent.wire.messages import Chunk, Want
from tests.builders import digest_of, only

if TYPE_CHECKING:
    from collections.abc import Iterable

A, B, C = (digest_of(name) for name in "abc")
Effects = list[tr.Effect]


SIZE = 4


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.transfer.fetcher.CHUNK_BYTES", SIZE)


def chunk(digest: str, index: int, nbytes: int) -> Chunk:
    """Return a chunk of a blob whose bytes count up."""
    content = bytes(n % 251 for n in range(nbytes))
    return Chunk(digest, nbytes, index, content[index * SIZE : (index + 1) * SIZE])


def asked(effects: Iterable[tr.Effect]) -> list[tuple[str, int]]:
    """Return the chunks that are asked for, in order."""
    wants = [ask.want for ask in only(tr.Ask, effects)]
    return [(w.digest, n) for w in wants for n in range(w.first, w.first + w.count)]


def kept(effects: Iterable[tr.Effect]) -> list[str]:
    return [keep.digest for keep in only(tr.Keep, effects)]


def fetching(**blobs: int) -> tuple[Fetcher, Effects]:
    """Return a fetcher that fetches blobs (name to number of chunks) from "holder"."""
    fetcher = Fetcher("reader")
    sizes = {digest_of(name): count * SIZE for name, count in blobs.items()}
    return fetcher, fetcher.fetch("t", sizes, "holder", 0.0)


def deliver(fetcher: Fetcher, digest: str, count: int, now: float = 0.0) -> Effects:
    return [
        effect
        for index in range(count)
        for effect in fetcher.chunk(chunk(digest, index, count * SIZE), now)
    ]


def test_nothing_to_fetch_is_done_at_once() -> None:
    assert Fetcher("reader").fetch("t", {}, "holder", 0.0) == [tr.Done("t")]


def test_a_blob_is_listened_to_and_asked_for() -> None:
    _, effects = fetching(a=3)
    assert effects == [tr.Listen(A), tr.Ask("holder", Want("reader", A, 0, 3))]


def test_a_blob_is_kept_when_it_is_whole_and_done_when_it_is_stored() -> None:
    fetcher, _ = fetching(a=3)
    effects = deliver(fetcher, A, 3)
    assert only(tr.Keep, effects) == [tr.Keep(A, bytearray(range(12)))]
    assert only(tr.Done, effects) == []
    assert fetcher.stored(A, 0.0) == [tr.Ignore(A), tr.Done("t")]
    assert fetcher.outstanding_bytes == 0


@pytest.mark.parametrize(("nbytes", "chunks"), [(0, 1), (1, 1), (4, 1), (5, 2), (8, 2)])
def test_the_last_chunk_is_what_is_left(nbytes: int, chunks: int) -> None:
    fetcher = Fetcher("reader")
    assert len(asked(fetcher.fetch("t", {A: nbytes}, "holder", 0.0))) == chunks
    effects: Effects = []
    for index in range(chunks):
        assert kept(effects) == []
        effects = fetcher.chunk(chunk(A, index, nbytes), 0.0)
    assert [bytes(keep.content) for keep in only(tr.Keep, effects)] == [bytes(range(nbytes))]


def test_chunks_may_come_in_any_order_and_twice() -> None:
    fetcher, _ = fetching(a=4)
    for index in (3, 1, 1, 0, 3):
        assert kept(fetcher.chunk(chunk(A, index, 16), 0.0)) == []
    (keep,) = only(tr.Keep, fetcher.chunk(chunk(A, 2, 16), 0.0))
    assert bytes(keep.content) == bytes(range(16))
    assert fetcher.chunk(chunk(A, 2, 16), 0.0) == []


# The window -------------------------------------------------------------------------------------


def test_no_more_chunks_than_the_window_are_asked_for() -> None:
    fetcher, effects = fetching(a=40)
    assert asked(effects) == [(A, n) for n in range(WINDOW_CHUNKS)]
    assert all(ask.want.count <= RUN_CHUNKS for ask in only(tr.Ask, effects))
    for index in range(40 - WINDOW_CHUNKS):
        assert asked(fetcher.chunk(chunk(A, index, 160), 0.0)) == [(A, index + WINDOW_CHUNKS)]
    assert asked(fetcher.chunk(chunk(A, 30, 160), 0.0)) == []


def test_blobs_are_asked_for_in_their_order() -> None:
    _, effects = fetching(b=3, a=2, c=1)
    assert asked(effects) == [(B, 0), (B, 1), (B, 2), (A, 0), (A, 1), (C, 0)]


def test_only_so_many_blobs_are_in_progress() -> None:
    names = [f"blob {n}" for n in range(ACTIVE_BLOBS + 2)]
    fetcher, effects = fetching(**dict.fromkeys(names, 1))
    assert len(only(tr.Listen, effects)) == len(asked(effects)) == ACTIVE_BLOBS
    first = digest_of(names[0])
    deliver(fetcher, first, 1)
    effects = fetcher.stored(first, 0.0)
    assert only(tr.Listen, effects) == [tr.Listen(digest_of(names[ACTIVE_BLOBS]))]


def test_progress_counts_what_is_still_to_come() -> None:
    names = [f"blob {n}" for n in range(ACTIVE_BLOBS + 1)]
    fetcher, _ = fetching(**dict.fromkeys(names, 2))
    assert fetcher.outstanding_bytes == len(names) * 2 * SIZE
    fetcher.chunk(chunk(digest_of(names[0]), 0, 2 * SIZE), 0.0)
    assert fetcher.outstanding_bytes == len(names) * 2 * SIZE - SIZE


# Silence and wrong bytes ------------------------------------------------------------------------


def test_a_chunk_that_does_not_come_is_asked_for_again() -> None:
    fetcher, _ = fetching(a=3)
    fetcher.chunk(chunk(A, 1, 12), 0.0)
    assert fetcher.tick(PATIENCE_S) == []
    assert asked(fetcher.tick(PATIENCE_S + 0.1)) == [(A, 0), (A, 2)]
    assert fetcher.tick(PATIENCE_S + 0.2) == []


def test_a_holder_that_stays_silent_fails_the_fetch() -> None:
    fetcher, _ = fetching(a=3)
    for second in range(int(GIVE_UP_S) + 1):
        assert only(tr.Failed, fetcher.tick(float(second))) == []
    effects = fetcher.tick(GIVE_UP_S + 0.1)
    assert only(tr.Failed, effects) == [tr.Failed("t", A, "holder does not send it")]
    assert only(tr.Ignore, effects) == [tr.Ignore(A)]
    assert fetcher.tick(1000.0) == []


def test_a_slow_holder_is_not_given_up() -> None:
    fetcher, _ = fetching(a=3)
    for index, now in enumerate((50.0, 100.0, 150.0)):
        assert only(tr.Failed, fetcher.tick(now)) == []
        fetcher.chunk(chunk(A, index, 12), now)
    assert only(tr.Done, fetcher.stored(A, 150.0)) == [tr.Done("t")]


def test_a_blob_that_is_being_stored_is_waited_for() -> None:
    fetcher, _ = fetching(a=1)
    deliver(fetcher, A, 1)
    assert fetcher.tick(GIVE_UP_S + 1) == []
    assert only(tr.Done, fetcher.stored(A, GIVE_UP_S + 2)) == [tr.Done("t")]


def test_wrong_bytes_are_fetched_again_and_fail_at_last() -> None:
    fetcher, _ = fetching(a=2)
    for _ in range(MAX_REJECTIONS - 1):
        assert kept(deliver(fetcher, A, 2)) == [A]
        assert asked(fetcher.rejected(A, "wrong bytes", 0.0, retry=True)) == [(A, 0), (A, 1)]
    deliver(fetcher, A, 2)
    effects = fetcher.rejected(A, "wrong bytes", 0.0, retry=True)
    assert only(tr.Failed, effects) == [tr.Failed("t", A, "wrong bytes")]


def test_a_blob_that_was_wrong_once_can_still_be_stored() -> None:
    fetcher, _ = fetching(a=1)
    deliver(fetcher, A, 1)
    fetcher.rejected(A, "wrong bytes", 0.0, retry=True)
    assert kept(deliver(fetcher, A, 1)) == [A]
    assert only(tr.Done, fetcher.stored(A, 0.0)) == [tr.Done("t")]


def test_a_blob_that_cannot_be_stored_fails_at_once() -> None:
    fetcher, _ = fetching(a=1)
    deliver(fetcher, A, 1)
    effects = fetcher.rejected(A, "the disk is full", 0.0, retry=False)
    assert only(tr.Failed, effects) == [tr.Failed("t", A, "the disk is full")]


@pytest.mark.parametrize("reason", ["", "damaged on disk"])
def test_a_holder_that_does_not_have_it_fails_the_fetch(reason: str) -> None:
    fetcher, _ = fetching(a=2, b=2)
    effects = fetcher.absent(A, reason)
    assert [(f.digest, f.reason) for f in only(tr.Failed, effects)] == [
        (A, reason or "its holder does not have it")
    ]
    # The fetch is over: its other blobs are not wanted any more.
    assert {ignore.digest for ignore in only(tr.Ignore, effects)} == {A, B}
    assert fetcher.absent(A, reason) == []


@pytest.mark.parametrize(
    "bad",
    [
        Chunk(A, 8, 0, b"abc"),
        Chunk(A, 8, 0, b"abcde"),
        Chunk(A, 8, 1, b""),
        Chunk(A, 9, 0, b"abcd"),
    ],
)
def test_a_chunk_of_the_wrong_size_fails_the_fetch(bad: Chunk) -> None:
    fetcher, _ = fetching(a=2)
    (failed,) = only(tr.Failed, fetcher.chunk(bad, 0.0))
    assert (failed.ticket, failed.digest) == ("t", A)
    assert "size" in failed.reason


def test_chunks_that_are_not_wanted_are_ignored() -> None:
    fetcher, _ = fetching(a=2)
    assert fetcher.chunk(chunk(B, 0, 8), 0.0) == []
    assert fetcher.chunk(Chunk(A, 8, 2, b""), 0.0) == []
    assert kept(deliver(fetcher, A, 2)) == [A]


def test_events_of_unknown_blobs_do_nothing() -> None:
    fetcher, _ = fetching(a=2)
    assert fetcher.stored(B, 0.0) == []
    assert fetcher.rejected(B, "", 0.0, retry=True) == []
    assert fetcher.absent(B, "") == []
    assert fetcher.cancel("other") == []


# Several fetches --------------------------------------------------------------------------------


def shared() -> Fetcher:
    """Return a fetcher for a and b under ticket t, b and c under ticket u."""
    fetcher, _ = fetching(a=1, b=1)
    effects = fetcher.fetch("u", {B: SIZE, C: SIZE}, "holder", 0.0)
    assert asked(effects) == [(C, 0)]
    return fetcher


def test_a_blob_that_two_fetches_share_is_fetched_once() -> None:
    fetcher = shared()
    for digest in (A, B, C):
        deliver(fetcher, digest, 1)
    assert only(tr.Done, fetcher.stored(B, 0.0)) == []
    assert only(tr.Done, fetcher.stored(A, 0.0)) == [tr.Done("t")]
    assert only(tr.Done, fetcher.stored(C, 0.0)) == [tr.Done("u")]


def test_a_shared_blob_that_fails_fails_both() -> None:
    fetcher = shared()
    effects = fetcher.absent(B, "gone")
    assert [failed.ticket for failed in only(tr.Failed, effects)] == ["t", "u"]
    assert {ignore.digest for ignore in only(tr.Ignore, effects)} == {A, B, C}


def test_cancel_keeps_what_others_need() -> None:
    fetcher = shared()
    assert fetcher.cancel("t") == [tr.Ignore(A)]
    for digest in (B, C):
        assert kept(deliver(fetcher, digest, 1)) == [digest]
        effects = fetcher.stored(digest, 0.0)
    assert only(tr.Done, effects) == [tr.Done("u")]


def test_cancel_forgets_what_was_not_begun() -> None:
    names = [f"blob {n}" for n in range(ACTIVE_BLOBS + 2)]
    fetcher, _ = fetching(**dict.fromkeys(names, 1))
    effects = fetcher.cancel("t")
    assert len(effects) == len(only(tr.Ignore, effects)) == ACTIVE_BLOBS
    assert fetcher.tick(10.0) == []
    assert fetcher.outstanding_bytes == 0


def test_another_holder_takes_over_a_shared_blob() -> None:
    fetcher, _ = fetching(a=1)
    fetcher.fetch("u", {A: SIZE}, "other holder", 0.0)
    assert [ask.holder for ask in only(tr.Ask, fetcher.tick(PATIENCE_S + 1))] == ["other holder"]


def test_a_new_connection_listens_and_asks_again() -> None:
    fetcher, _ = fetching(a=3, b=1)
    fetcher.chunk(chunk(A, 0, 12), 0.0)
    effects = fetcher.reconnected(1.0)
    assert only(tr.Listen, effects) == [tr.Listen(A), tr.Listen(B)]
    assert asked(effects) == [(A, 1), (A, 2), (B, 0)]


@pytest.mark.parametrize("seed", range(10))
def test_blobs_come_over_a_link_that_loses_and_doubles_chunks(seed: int) -> None:
    chance = random.Random(seed)
    sizes = {digest_of(f"{seed}/{n}"): chance.randint(0, 70) for n in range(12)}
    fetcher, now, stored = Fetcher("reader"), 0.0, list[str]()
    effects: Effects = fetcher.fetch("t", sizes, "holder", now)
    travelling: list[tuple[str, int]] = []
    while True:
        assert only(tr.Failed, effects) == []
        for digest in kept(effects):
            stored.append(digest)
            effects = fetcher.stored(digest, now)
        travelling += asked(effects)
        if only(tr.Done, effects):
            break
        if not travelling:
            now += PATIENCE_S + 0.1
            effects = fetcher.tick(now)
            continue
        place = chance.randrange(len(travelling))
        digest, index = travelling[place]
        arrives = chance.random() < 0.8
        if chance.random() < 0.9:
            del travelling[place]
        effects = fetcher.chunk(chunk(digest, index, sizes[digest]), now) if arrives else []
    assert sorted(stored) == sorted(sizes)
    assert fetcher.outstanding_bytes == 0


def test_a_blob_that_is_only_said_to_be_large_takes_no_memory() -> None:
    fetcher, _ = fetching(a=4)
    fetcher.chunk(chunk(A, 3, 16), 0.0)
    (blob,) = fetcher._active()
    assert sum(map(len, blob.content.values())) == SIZE
