"""Pieces that come before their request or plan is known here: kept a while, within a bound."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent.wire.messages import Piece

MAX_BYTES = 64 << 20
KEEP_S = 15.0


class EarlyPieces:
    """A bounded buffer of pieces in order of arrival; the oldest make room."""

    def __init__(self) -> None:
        self._pieces: deque[tuple[float, int, Piece]] = deque()
        self._bytes = 0

    def add(self, piece: Piece, nbytes: int, now: float) -> int:
        """Keep a piece; return how many others were dropped to make room."""
        self._pieces.append((now, nbytes, piece))
        self._bytes += nbytes
        dropped = 0
        while self._bytes > MAX_BYTES:
            self._bytes -= self._pieces.popleft()[1]
            dropped += 1
        return dropped

    def take(self, plan: str, request: str, fingerprint: str) -> list[tuple[float, int, Piece]]:
        """Remove and return (when it came, bytes, piece) of one request under one plan."""
        mine = (plan, request, fingerprint)
        taken: list[tuple[float, int, Piece]] = []
        rest: deque[tuple[float, int, Piece]] = deque()
        for at, nbytes, piece in self._pieces:
            if (piece.plan, piece.request, piece.input) == mine:
                taken.append((at, nbytes, piece))
                self._bytes -= nbytes
            else:
                rest.append((at, nbytes, piece))
        self._pieces = rest
        return taken

    def next_expiry(self) -> float | None:
        """Return when the oldest piece has been kept for `KEEP_S` seconds."""
        return self._pieces[0][0] + KEEP_S if self._pieces else None

    def expire(self, now: float) -> list[Piece]:
        """Remove and return the pieces that nobody claimed in `KEEP_S` seconds."""
        expired: list[Piece] = []
        while self._pieces and now >= self._pieces[0][0] + KEEP_S:
            _, nbytes, piece = self._pieces.popleft()
            self._bytes -= nbytes
            expired.append(piece)
        return expired
