"""What became of each request: the accounting of a run, from which all figures are made.

Rules of the file: no clock, no connection; whoever sends and receives says so, with the time in
seconds. A request *counts* once the broker has acknowledged it. MQTT delivers at least once, and a
device that was cut off can repeat what another one has answered meanwhile: an answer that says what
the first one said is the same answer, delivered again. One that says something else is a duplicate,
but for one that the client itself has asked for by sending the request again.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from agent.wire.messages import fingerprint


@dataclass(slots=True)
class Entry:
    """One request; `verdicts` are what its answers said: "exact", "wrong" or an error's code.

    `copies` came byte for byte again, `repeats` said the same in other words (of other devices).
    """

    picture: int
    sent: float
    accepted: float | None = None
    sendings: int = 1
    answered: float | None = None
    verdicts: list[str] = field(default_factory=list)
    payloads: set[str] = field(default_factory=set)
    copies: int = 0
    repeats: int = 0

    @property
    def latency_s(self) -> float | None:
        """How long the first answer took, None if there is none."""
        return None if self.answered is None else self.answered - self.sent

    @property
    def is_exact(self) -> bool:
        """Whether the first answer is the right result."""
        return self.verdicts[:1] == ["exact"]


class Ledger:
    """All requests of a run by id."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.strays: Counter[str] = Counter()

    def sent(self, request: str, picture: int, now: float) -> None:
        """Note a request that is published for the first time."""
        self.entries[request] = Entry(picture, now)

    def sent_again(self, request: str) -> None:
        """Note that the client itself publishes a request anew."""
        self.entries[request].sendings += 1

    def accepted(self, request: str, now: float) -> None:
        """Note that the broker has acknowledged a request."""
        entry = self.entries[request]
        if entry.accepted is None:
            entry.accepted = now

    def answered(self, request: str, payload: bytes, verdict: str, now: float) -> None:
        """Note an answer; `verdict` is "exact", "wrong" or the code of the error it tells."""
        entry = self.entries.get(request)
        if entry is None:
            self.strays[request] += 1
            return
        told = fingerprint(payload)
        if told in entry.payloads:
            entry.copies += 1
            return
        entry.payloads.add(told)
        if verdict in entry.verdicts:
            entry.repeats += 1
            return
        entry.verdicts.append(verdict)
        if entry.answered is None:
            entry.answered = now

    def open(self) -> list[str]:
        """Return the requests that have no answer yet, the oldest first."""
        return [request for request, entry in self.entries.items() if entry.answered is None]

    def lost(self) -> list[str]:
        """Return the requests that the broker accepted and nobody answered."""
        return [request for request in self.open() if self.entries[request].accepted is not None]

    def wrong(self) -> list[str]:
        """Return the requests with an answer that is no error and not the right result."""
        named = [request for request, entry in self.entries.items() if "wrong" in entry.verdicts]
        return [*named, *self.strays]

    def duplicated(self) -> list[str]:
        """Return the requests with more different answers than times they were sent."""
        return [r for r, entry in self.entries.items() if len(entry.verdicts) > entry.sendings]

    def counts(self) -> dict[str, object]:
        """Return the figures by name; requests are counted by their first answer."""
        entries = self.entries.values()
        errors = Counter(
            entry.verdicts[0]
            for entry in entries
            if entry.verdicts and entry.verdicts[0] not in {"exact", "wrong"}
        )
        return {
            "sent": len(self.entries),
            "exact": sum(entry.is_exact for entry in entries),
            "errors": dict(sorted(errors.items())),
            "lost": len(self.lost()),
            "wrong": len(self.wrong()),
            "duplicated": len(self.duplicated()),
            "refused": sum(entry.accepted is None and not entry.verdicts for entry in entries),
            "delivered_again": sum(entry.copies for entry in entries),
            "repeated": sum(entry.repeats for entry in entries),
            "sent_again": sum(entry.sendings - 1 for entry in entries),
        }
