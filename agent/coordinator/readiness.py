"""Which programs of plans after a loss the devices of a model have loaded already.

Rules: what a device says counts for that life of its process, and only as far as it was asked to
keep ready what it names; a plan that all of its devices have ready needs no offer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.wire.messages import life_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from agent.coordinator.events import ComputedPlan, Fleet, Member
    from agent.wire.messages import Ready
    from agent.wire.program import BlobRef


class Readiness:
    """What the devices were asked to keep ready (`manifest` and programs), and what they have."""

    def __init__(self) -> None:
        self._asked: dict[str, frozenset[str]] = {}
        self._ready: dict[tuple[str, str], frozenset[str]] = {}
        self._manifest = ""

    def ask(self, manifest: BlobRef, programs: Mapping[str, Iterable[BlobRef]]) -> None:
        """Note what each device is asked to keep ready; all else may be given up there."""
        if manifest.digest != self._manifest:
            self._ready.clear()
        self._manifest = manifest.digest
        self._asked = {d: frozenset(r.digest for r in refs) for d, refs in programs.items()}
        self._ready = {
            (device, session): ready & self._asked.get(device, frozenset())
            for (device, session), ready in self._ready.items()
        }

    def take(self, ready: Ready) -> None:
        """Take what a device says it has ready."""
        if ready.manifest == self._manifest:
            asked = self._asked.get(ready.device, frozenset())
            self._ready[ready.device, life_of(ready.session)] = asked.intersection(ready.programs)

    def has(self, plan: ComputedPlan, sessions: Mapping[str, str]) -> bool:
        """Tell whether all devices of a plan, in these lives, have it ready."""
        return all(
            plan.programs[device].digest
            in self._ready.get((device, life_of(sessions.get(device, ""))), frozenset())
            for device in plan.devices
        )

    def covered(
        self, after_loss: Mapping[Fleet, ComputedPlan], members: Mapping[str, Member]
    ) -> tuple[str, ...]:
        """Return which of `members` are such that a plan without them is ready."""
        sessions = {device: member.session for device, member in members.items()}
        fleet = frozenset(members)
        return tuple(
            device
            for device in sorted(fleet)
            if (plan := after_loss.get(fleet - {device})) and self.has(plan, sessions)
        )
