"""Who is in the fleet: the agents that are online, what they can do, who is held back.

Rules: agents tell their status every 15 s, and one that was silent for `SILENT_S` is gone even if
the broker, restarted or cut off, never published its last will; an old will cannot hide a new
birth, because a status counts for its own session only; a device that could not prepare a plan of
a model is not planned with for `EXCLUDE_S`; joins and changes count once the fleet was quiet for
`SETTLE_S`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.coordinator.events import Member
from agent.wire.messages import runtime_of

if TYPE_CHECKING:
    from agent.wire.messages import Status

SETTLE_S = 0.5
EXCLUDE_S = 30.0
SILENT_S = 60.0
CHANGED_RATIO = 1.5


class Membership:
    """The agents that are online, by device id.

    `settled_at` is when plans are to be looked at again, if nothing happens until then.
    """

    def __init__(self) -> None:
        self._members: dict[str, Member] = {}
        self._heard: dict[str, float] = {}
        self._excluded: dict[tuple[str, str], float] = {}
        self.settled_at: float | None = None

    def settle(self, now: float) -> None:
        """Wait anew for the fleet to be quiet."""
        self.settled_at = now + SETTLE_S

    def has_settled(self, now: float) -> bool:
        """Tell, once, that plans are to be looked at again."""
        if self.settled_at is None or now < self.settled_at:
            return False
        self.settled_at = self.next_return(now)
        return True

    def see(self, status: Status) -> bool:
        """Take a status; return whether plans must be looked at again."""
        before = self._members.get(status.device)
        if status.role != "agent":
            return False
        if status.state == "offline" or status.capacity is None:
            if before is not None and status.ends(before.session):
                del self._members[status.device]
                return True
            return False
        runtime = runtime_of(status.capacity, status.versions)
        member = Member(status.device, status.session, status.capacity, runtime)
        if before is not None and before.session == status.session and _alike(before, member):
            return False
        self._members[status.device] = member
        return True

    def hear(self, device: str, now: float) -> None:
        """Note that a device told its status at time `now`."""
        self._heard[device] = now

    def hear_all(self, now: float) -> None:
        """Give every member its time again: the silence was this coordinator's own."""
        self._heard = dict.fromkeys(self._members, now)

    def expire(self, now: float) -> list[str]:
        """Forget the members that were silent for too long, and return them."""
        silent = [d for d in self._members if now - self._heard.get(d, now) > SILENT_S]
        for device in silent:
            del self._members[device]
        return silent

    def exclude(self, model: str, device: str, now: float) -> None:
        """Do not plan `model` with `device` for a while."""
        self._excluded[(model, device)] = now + EXCLUDE_S
        if self.settled_at is None:
            self.settled_at = self.next_return(now)

    def next_return(self, now: float) -> float | None:
        """Return when the next device that is held back may be planned with again."""
        return min((until for until in self._excluded.values() if until > now), default=None)

    def candidates(self, model: str, now: float) -> tuple[Member, ...]:
        """Return the members that `model` can be planned with, ordered by id."""
        return tuple(
            member
            for device, member in sorted(self._members.items())
            if self._excluded.get((model, device), 0.0) <= now
        )


def _alike(old: Member, new: Member) -> bool:
    rates = [
        (old.capacity.flops_per_s, new.capacity.flops_per_s),
        (old.capacity.link_bytes_per_s, new.capacity.link_bytes_per_s),
    ]
    same_limits = old.capacity.memory_limit_bytes == new.capacity.memory_limit_bytes
    return same_limits and all(max(a, b) <= CHANGED_RATIO * min(a, b) for a, b in rates)
