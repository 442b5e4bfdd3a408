"""In which order the requests of several clients have their turn: start-time fair queueing.

Rules: a client's requests have consecutive turns in order of arrival; one that had none waiting
begins at the present turn, so that it waits for one request of each other client, not for all of
one. Turns follow from the broker's order of requests and answers alone: all devices agree.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent.worker.requests import Request

MAX_CLIENTS = 1024


class Turns:
    """Gives requests their turns."""

    def __init__(self) -> None:
        self._present = 0
        self._next: dict[str, int] = {}

    def take(self, client: str) -> int:
        """Return the turn of a client's request that has arrived."""
        turn = max(self._present, self._next.pop(client, 0))
        self._next[client] = turn + 1
        if len(self._next) > MAX_CLIENTS:
            del self._next[next(iter(self._next))]
        return turn

    def served(self, request: Request) -> None:
        """Note that a request had its turn."""
        self._present = max(self._present, request.turn)
        self._next = {c: turn for c, turn in self._next.items() if turn > self._present}

    def turned_away(self, request: Request, others: Iterable[Request]) -> None:
        """Note that a request had no turn: its client's later ones, of `others`, move up."""
        client = request.client
        for other in others:
            if other.client == client and other.turn > request.turn:
                other.turn -= 1
        if client in self._next:
            self._next[client] -= 1
