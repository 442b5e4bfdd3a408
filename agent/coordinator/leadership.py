"""Which of several coordinators leads: one at a time, and the next one where it is gone. Pure.

Rules: (term, name) orders reigns and the highest wins; another leader steps down once it hears of
it. Nobody leads before he has listened: until his own status came back from the broker, after all
that it had retained, and `LISTEN_S` more. Coordinators tell their status every `BEAT_S`; where the
leader's will came, or nothing for `MISSED_S`, the one with the highest priority, the first by name,
claims a term higher than all that were heard of; each further one waits `CLAIM_S` longer. Whoever
was away for `MISSED_S` himself cannot know who leads: he stands by and listens anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent.wire.messages import Status

LISTEN_S = 0.5
BEAT_S = 2.0
MISSED_S = 6.0
CLAIM_S = 1.0
# No coordinator gets that far; one that believed it could not go on from there.
MAX_TERM = 1 << 52


class Leadership:
    """The part of coordinator `name` in this life, `session`; a high `priority` comes first.

    `term` is that of its reign, 0 on standby. `handicap_s` is how much later than in its turn it
    claims, because others are readier.
    """

    def __init__(self, name: str, session: str, priority: int, now: float) -> None:
        self._name = name
        self._session = session
        self._priority = priority
        self._peers: dict[str, Status] = {}
        self._heard: dict[str, float] = {}
        self._highest = 0
        self._listens = True
        self._vacant_at: float | None = None
        self._beat_at = now
        self._awake_at = now
        self.term = 0
        self.handicap_s = 0.0

    @property
    def leads(self) -> bool:
        """Whether this coordinator leads."""
        return self.term > 0

    @property
    def leader(self) -> str | None:
        """Who leads, as far as is known here."""
        reigns = [(status.term, name) for name, status in self._peers.items()]
        term, name = max([*reigns, (self.term, self._name)])
        return name if term else None

    @property
    def peers(self) -> tuple[str, ...]:
        """The other coordinators that are there."""
        return tuple(sorted(self._peers))

    def next_timer(self) -> float:
        """Return when `pass_time` is to be called at the latest."""
        claim = self._claims_at()
        expiries = (at + MISSED_S for at in self._heard.values())
        return min([self._beat_at, *([] if claim is None else [claim]), *expiries])

    def wake(self, now: float) -> None:
        """Take note that this coordinator acts; after a long sleep it knows nothing any more."""
        if now - self._awake_at > MISSED_S:
            self._awake_at = now
            self._listen(now)

    def connected(self, now: float) -> None:
        """Listen to what the broker has; while there was no connection all were silent."""
        self._awake_at = now
        self._heard = dict.fromkeys(self._peers, now)
        if not self.leads:
            self._listen(now)

    def see(self, status: Status, now: float) -> None:
        """Take a coordinator's status, or its last will."""
        if status.term >= MAX_TERM:
            return
        self._highest = max(self._highest, status.term)
        if status.device == self._name:
            if self._listens and (status.session, status.term) == (self._session, 0):
                self._listens = False
                self._vacant_at = None if self.leader else now + LISTEN_S
            return
        known = self._peers.get(status.device)
        if status.state == "online":
            self._peers[status.device] = status
            self._heard[status.device] = now
        elif known is not None and status.ends(known.session):
            self._forget(status.device)
        self._look(now)

    def hear_of_term(self, term: int, now: float) -> None:
        """Note that somebody has led in `term`; a leader of an earlier one did not know."""
        if term >= MAX_TERM:
            return
        self._highest = max(self._highest, term)
        if self.leads and term > self.term:
            self._listen(now)

    def beats(self, now: float) -> bool:
        """Tell, once, whether a status is due."""
        is_due = now >= self._beat_at
        if is_due:
            self._beat_at = now + BEAT_S
        return is_due

    def pass_time(self, now: float) -> None:
        """Miss the silent, and lead if it is this one's turn."""
        self._awake_at = now
        for name in [name for name, at in self._heard.items() if now >= at + MISSED_S]:
            self._forget(name)
        self._look(now)
        claim = self._claims_at()
        if claim is not None and now >= claim:
            self.term = self._highest = self._highest + 1
            self._vacant_at = None

    def _listen(self, now: float) -> None:
        self.term = 0
        self._listens = True
        self._vacant_at = None
        self._beat_at = now
        self._heard = dict.fromkeys(self._peers, now)

    def _forget(self, name: str) -> None:
        del self._peers[name]
        del self._heard[name]

    def _look(self, now: float) -> None:
        leader = self.leader
        if self.leads and leader != self._name:
            self.term = 0
        if leader is not None or self._listens:
            self._vacant_at = None
        elif self._vacant_at is None:
            self._vacant_at = now

    def _claims_at(self) -> float | None:
        if self.leads or self._vacant_at is None:
            return None
        mine = (-self._priority, self._name)
        before = sum((-s.priority, name) < mine for name, s in self._peers.items())
        return self._vacant_at + before * CLAIM_S + self.handicap_s
