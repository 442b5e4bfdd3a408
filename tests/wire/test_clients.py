"""Whom a request is counted to."""

from __future__ import annotations

import pytest

from agent.wire.clients import MAX_NAME, client_of


@pytest.mark.parametrize(
    ("told", "request_id", "topic", "client"),
    [
        ("door", "x-1", "home/answers", "door"),
        (None, "door-17", "home/answers", "door"),
        (None, "front-door.1731000000.25", None, "front-door"),
        ("", "door-17", None, "door"),
        (None, "snapshot", "home/answers", "home/answers"),
        (None, "r17", None, ""),
        (None, None, None, ""),
        (None, "17", None, ""),
        (None, "1-2", None, "1"),
        ("n" * 1000, None, None, "n" * MAX_NAME),
    ],
)
def test_a_client_is_who_it_says_or_how_its_requests_are_called(
    told: str | None, request_id: str | None, topic: str | None, client: str
) -> None:
    assert client_of(told, request_id, topic) == client
