"""Requests that came without an id, until the answering device gives them one.

Rules: every device keeps them, for the answering one may die first; each is a request of its own,
whatever others have the same payload; the oldest of a payload is dropped once one with an id and
the same payload is seen (the answering device has published it again) or answered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agent.worker.events import RequestKey
    from agent.worker.requests import Request


class Unclaimed:
    """The requests without an id that this device knows, in order of arrival."""

    def __init__(self) -> None:
        self._requests: dict[int, Request] = {}

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(list(self._requests.values()))

    def __contains__(self, key: RequestKey) -> bool:
        return any(request.key == key for request in self._requests.values())

    def add(self, request: Request) -> None:
        """Keep a request."""
        self._requests[request.number] = request

    def remove(self, request: Request) -> None:
        """Forget a request, known or not."""
        self._requests.pop(request.number, None)

    def claimed(self, key: RequestKey) -> bool:
        """Forget the oldest request with the model and payload of `key`, which has an id."""
        for request in self:
            if (request.key.model, request.key.input) == (key.model, key.input):
                self.remove(request)
                return True
        return False

    def take(self, which: Callable[[str], bool]) -> list[Request]:
        """Remove and return the requests for the models that `which` picks."""
        taken = [request for request in self if which(request.key.model)]
        for request in taken:
            self.remove(request)
        return taken
