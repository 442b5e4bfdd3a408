"""Who is in the fleet: the agents that are online, what they can do, who is held back.

Rules: agents tell their status every 15 s, and one that was silent for `SILENT_S` is gone even if
the broker, restarted or cut off, never published its last will; an old will cannot hide a new
birth, because a status counts for its own session only; a device that could not prepare a plan of
a model is not planned with for `EXCLUDE_S`; one that was taken for dead and is heard again, or one
that comes and goes, is held back for a while, longer each time, unless nobody else is left; joins
and changes count once the fleet was quiet for `SETTLE_S`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.coordinator.events import Member
from agent.coordinator.flapping import Flapping
from agent.wire.messages import life_of, runtime_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent.wire.messages import Status

SETTLE_S = 0.5
EXCLUDE_S = 30.0
SILENT_S = 60.0
CHANGED_RATIO = 1.5
MAX_MEMBERS = 1024
FIRST_HOLD_S = 2.0
LONGEST_HOLD_S = 300.0
# After so long without a suspicion a device is as good as any.
CALM_S = 600.0


@dataclass(slots=True)
class _Suspect:
    """A life of a device that was taken for dead, and when it may be planned with again."""

    session: str
    since: float
    hold_s: float
    returns_at: float | None = None


class Membership:
    """The agents that are online, by device id.

    `settled_at` is when plans are to be looked at again, if nothing happens until then.
    """

    def __init__(self) -> None:
        self._members: dict[str, Member] = {}
        self._heard: dict[str, float] = {}
        self._plans: dict[str, dict[str, int]] = {}
        self._excluded: dict[tuple[str, str], float] = {}
        self._suspects: dict[str, _Suspect] = {}
        self._flapping = Flapping()
        self.settled_at: float | None = None

    def settle(self, now: float) -> None:
        """Wait anew for the fleet to be quiet."""
        self.settled_at = now + SETTLE_S

    def settle_at_once(self, now: float) -> None:
        """Have plans looked at now."""
        self.settled_at = now

    def has_settled(self, now: float) -> bool:
        """Tell, once, that plans are to be looked at again."""
        if self.settled_at is None or now < self.settled_at:
            return False
        self.settled_at = self.next_return(now)
        return True

    def see(self, status: Status, now: float) -> bool:
        """Take a status; return whether plans must be looked at again."""
        before = self._members.get(status.device)
        if status.role != "agent":
            return False
        if status.state == "offline" or status.capacity is None:
            if before is not None and status.ends(before.session):
                del self._members[status.device]
                self._flapping.went(status.device, now)
                return True
            return False
        if before is None and len(self._members) >= MAX_MEMBERS:
            return False
        runtime = runtime_of(status.capacity, status.versions)
        member = Member(status.device, status.session, status.capacity, runtime, status.beats)
        if before is not None and before.session == status.session and _alike(before, member):
            return False
        # What the broker forgot is no fault of the device.
        is_known = before is not None and life_of(before.session) == life_of(status.session)
        if before is not None and not is_known:
            self._flapping.went(status.device, now)
        if not is_known:
            self._flapping.came(status.device, now)
        self._members[status.device] = member
        return True

    def hear(self, status: Status, now: float) -> None:
        """Note that a device told its status at time `now`."""
        self._heard[status.device] = now
        self._plans[status.device] = status.plans
        if len(self._heard) > 2 * MAX_MEMBERS:
            known = {*self._members, status.device}
            self._heard = {d: at for d, at in self._heard.items() if d in known}
            self._plans = {d: plans for d, plans in self._plans.items() if d in known}

    def serve(self, model: str, epoch: int, devices: Iterable[str]) -> bool:
        """Tell whether all of `devices` say that they serve this plan of a model."""
        return all(self._plans.get(device, {}).get(model) == epoch for device in devices)

    def heard_again(self, device: str, session: str, now: float) -> bool:
        """Note a sign of life; return whether it is of a member's present life."""
        member = self._members.get(device)
        if member is None or member.session != session:
            return False
        suspect = self._suspects.get(device)
        if suspect is not None and suspect.session == session and suspect.returns_at is None:
            suspect.returns_at = now + suspect.hold_s
            if device not in self._held_back(now):
                self.settle(now)
            elif self.settled_at is None:
                self.settled_at = self.next_return(now)
        return True

    def suspect(self, device: str, now: float) -> None:
        """Take a member for dead until it is heard again, and hold it back for a while then."""
        session, before = self._members[device].session, self._suspects.get(device)
        hold_s = FIRST_HOLD_S
        if before is not None and before.session == session and now - before.since < CALM_S:
            hold_s = min(2 * before.hold_s, LONGEST_HOLD_S)
        self._suspects[device] = _Suspect(session, now, hold_s)

    def beating(self, devices: Iterable[str], now: float) -> list[str]:
        """Return which of `devices` are planned with and tell that they are alive."""
        held = self._held_back(now)
        return [
            device
            for device in devices
            if device in self._members and self._members[device].beats and device not in held
        ]

    def _held_back(self, now: float) -> set[str]:
        held = {d for d, member in self._members.items() if self._is_held_back(member, now)}
        if len(held) < len(self._members):
            return held
        # Nobody else is left: whoever is heard again is better than no service.
        return {device for device in held if self._suspects[device].returns_at is None}

    def _is_held_back(self, member: Member, now: float) -> bool:
        suspect = self._suspects.get(member.device)
        if suspect is None or suspect.session != member.session:
            return False
        return suspect.returns_at is None or now < suspect.returns_at

    def hear_all(self, now: float) -> None:
        """Give every member its time again: the silence was this coordinator's own."""
        self._heard = dict.fromkeys(self._members, now)

    def expire(self, now: float) -> list[str]:
        """Forget the members that were silent for too long, and return them."""
        silent = [d for d in self._members if now - self._heard.get(d, now) > SILENT_S]
        for device in silent:
            del self._members[device]
            self._flapping.went(device, now)
        return silent

    def exclude(self, model: str, device: str, now: float) -> None:
        """Do not plan `model` with `device` for a while."""
        self._excluded[(model, device)] = now + EXCLUDE_S
        if self.settled_at is None:
            self.settled_at = self.next_return(now)

    def next_return(self, now: float) -> float | None:
        """Return when the next device that is held back may be planned with again."""
        times = [*self._excluded.values(), self._flapping.next_return(now) or 0.0]
        times += [s.returns_at for s in self._suspects.values() if s.returns_at is not None]
        return min((until for until in times if until > now), default=None)

    def sessions(self) -> dict[str, str]:
        """Return the session of each member."""
        return {device: member.session for device, member in self._members.items()}

    def held(self, now: float) -> dict[str, float]:
        """Return the members that are held back because they come and go, and for how long."""
        seconds = {device: self._flapping.holds(device, now) for device in sorted(self._members)}
        return {device: left for device, left in seconds.items() if left > 0.0}

    def candidates(self, model: str, now: float) -> tuple[Member, ...]:
        """Return the members that `model` can be planned with, ordered by id."""
        silent = self._held_back(now)
        able = tuple(
            member
            for device, member in sorted(self._members.items())
            if self._excluded.get((model, device), 0.0) <= now and device not in silent
        )
        held = self.held(now)
        # Better one that comes and goes than none.
        return tuple(member for member in able if member.device not in held) or able


def _alike(old: Member, new: Member) -> bool:
    rates = [
        (old.capacity.flops_per_s, new.capacity.flops_per_s),
        (old.capacity.link_bytes_per_s, new.capacity.link_bytes_per_s),
    ]
    same_limits = old.capacity.memory_limit_bytes == new.capacity.memory_limit_bytes
    return same_limits and all(max(a, b) <= CHANGED_RATIO * min(a, b) for a, b in rates)
