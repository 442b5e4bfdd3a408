"""The transfer of blobs and what other threads hand to it."""

from __future__ import annotations

from agent.adapters.store import MemoryBlobs
from agent.config import BrokerConfig
from agent.service.transfer import MAX_WAITING, TransferService
from agent.wire.messages import Want
from agent.wire.topics import Topics
from tests.builders import digest_of


def test_wishes_beyond_what_is_dealt_with_are_dropped() -> None:
    nobody = TransferService("a", Topics("home"), BrokerConfig(), MemoryBlobs({}), lambda _: None)
    for number in range(MAX_WAITING + 10):
        nobody.take(Want("reader", digest_of("blob"), number, 1))
    assert nobody._loop.waiting == MAX_WAITING
    # The loop never ran, so it has not closed what wakes it.
    nobody._loop._wake.close()
    nobody._loop._woken.close()
