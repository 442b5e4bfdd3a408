"""The holding side of a transfer: each chunk once, a few at a time, within a bound."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.transfer import Provider, provider
from agent.transfer.events import PublishChunk
from agent.transfer.provider import IN_FLIGHT
from agent.wire.messages import Want
from tests.builders import digest_of

if TYPE_CHECKING:
    import pytest

BLOB, OTHER = digest_of("blob"), digest_of("other")
MANY = 1000


def want(first: int, count: int, blob: str = BLOB) -> Want:
    return Want("reader", blob, first, count)


def indices(effects: list[PublishChunk]) -> list[int]:
    return [effect.index for effect in effects]


class Held:
    """A provider; `ask` and `rest` return the chunks that are published."""

    def __init__(self) -> None:
        self.provider = Provider()

    def ask(self, *wanted: Want, chunks: int = MANY) -> list[PublishChunk]:
        return self.publishes([e for want in wanted for e in self.provider.want(want, chunks)])

    def next(self) -> list[PublishChunk]:
        return self.publishes(self.provider.published())

    def rest(self) -> list[PublishChunk]:
        """Acknowledge until nothing more is published."""
        made: list[PublishChunk] = []
        silent = 0
        while silent <= IN_FLIGHT:
            some = self.next()
            made += some
            silent = 0 if some else silent + 1
        return made

    def publishes(self, effects: object) -> list[PublishChunk]:
        assert isinstance(effects, list)
        assert all(isinstance(effect, PublishChunk) for effect in effects)
        return effects


def test_only_so_many_chunks_wait_for_the_broker() -> None:
    held = Held()
    assert indices(held.ask(want(0, 10))) == list(range(IN_FLIGHT))
    assert indices(held.next()) == [IN_FLIGHT]
    assert indices(held.next()) == [IN_FLIGHT + 1]
    assert held.ask(want(20, 5)) == []


def test_chunks_are_published_in_the_order_in_which_they_were_asked_for() -> None:
    held = Held()
    made = held.ask(want(5, 3), want(0, 2), want(7, 2, OTHER)) + held.rest()
    assert [(chunk.digest, chunk.index) for chunk in made] == [
        *((BLOB, index) for index in (5, 6, 7, 0, 1)),
        *((OTHER, index) for index in (7, 8)),
    ]


def test_a_chunk_that_waits_is_not_queued_again_however_many_ask() -> None:
    held = Held()
    made = held.ask(want(0, 10))
    for _ in range(3):
        made += held.ask(want(IN_FLIGHT, 6))
    assert indices(made + held.rest()) == list(range(10))


def test_a_chunk_that_was_published_is_published_again_when_asked_for() -> None:
    held = Held()
    held.ask(want(0, 2))
    assert indices(held.ask(want(1, 1))) == [1]


def test_what_the_blob_does_not_have_is_not_published() -> None:
    held = Held()
    assert indices(held.ask(want(1, 64), want(7, 2), chunks=3)) == [1, 2]


def test_the_queue_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provider, "MAX_QUEUED", 5)
    held = Held()
    made = held.ask(want(0, 20), want(30, 20)) + held.rest()
    # Five were queued, of the first want; of the second, as many as had left the queue.
    assert indices(made) == [0, 1, 2, 3, 4, 30, 31, 32, 33]
    assert indices(held.ask(want(6, 2))) == [6, 7]


def test_an_acknowledgement_too_many_does_no_harm() -> None:
    held = Held()
    for _ in range(3):
        assert held.next() == []
    assert len(held.ask(want(0, 10))) == IN_FLIGHT


def test_a_new_connection_owes_no_acknowledgements() -> None:
    held = Held()
    held.ask(want(0, 10))
    again = held.publishes(held.provider.reconnected())
    assert indices(again) == list(range(IN_FLIGHT, 2 * IN_FLIGHT))
    assert indices(held.rest()) == [8, 9]
