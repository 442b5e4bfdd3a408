"""Keeps logs readable, and disks from filling, where somebody causes lines in numbers.

Rules: lines are alike that begin with the same words, whatever names and numbers are in them; of
those some are told in each `WINDOW_S` seconds, and then how many more there were; kinds of lines
are bounded as well, what is beyond counts as one kind.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

WINDOW_S = 10.0
BURST = {"info": 50}
OTHER_BURST = 10
MAX_KINDS = 64
WORDS = 5
OTHERS = "others"
# A word with digits or signs is a name, a number or something quoted.
NAME = re.compile(r"\S*[^\sA-Za-z,;:.]\S*")


@dataclass(slots=True)
class _Kind:
    level: str
    since: float
    told: int = 0
    untold: int = 0


class Throttle:
    """Decides which lines are told; `now` is any clock, in seconds."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[str, str], _Kind] = {}

    def admits(self, level: str, text: str, now: float) -> bool:
        """Take a line; return whether it is to be told."""
        name = " ".join(NAME.sub("*", text[:200]).split()[:WORDS])
        if (level, name) not in self._kinds and len(self._kinds) >= MAX_KINDS:
            name = OTHERS
        kind = self._kinds.setdefault((level, name), _Kind(level, now))
        if kind.told < BURST.get(level, OTHER_BURST):
            kind.told += 1
            return True
        kind.untold += 1
        return False

    def settle(self, now: float) -> list[tuple[str, str]]:
        """Return (level, text) of what is to be told of windows that have ended."""
        ended = [key for key, kind in self._kinds.items() if now >= kind.since + WINDOW_S]
        lines = []
        for key in ended:
            kind = self._kinds.pop(key)
            if kind.untold:
                text = f"... {kind.untold} more like this in the last {WINDOW_S:.0f} s: {key[1]}"
                lines.append((kind.level, text))
        return lines
