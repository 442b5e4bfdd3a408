"""How a computed plan becomes an offer to its devices, and how offers are taken back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.coordinator import events as ev
from agent.wire.messages import PlanHeader, Prepare, Standby
from agent.wire.program import BlobRef, plan_digest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from agent.coordinator.deployment import Deployment
    from agent.coordinator.events import ComputedPlan, Effect

REMIND_S = 5.0
PREPARE_S = 120.0
# As long as requests live that say nothing else.
JOINED_S = 30.0


def is_unchanged(deployment: Deployment, plan: ComputedPlan, sessions: Mapping[str, str]) -> bool:
    """Tell whether the announced plan is `plan`, and still loaded by the same lives."""
    current, before = deployment.current, deployment.sessions
    return (
        current is not None
        and current.programs == plan.programs
        and current.manifest == deployment.package.manifest
        and all(before.get(d, sessions[d]) == sessions[d] for d in plan.devices)
    )


def offer(
    deployment: Deployment,
    plan: ComputedPlan,
    sessions: Mapping[str, str],
    coordinator: str,
    now: float,
) -> PlanHeader:
    """Make `plan` the offer of a deployment under a new epoch; return its header."""
    current = deployment.current
    stayed = {
        device
        for device in (current.devices if current else ())
        if device in sessions and deployment.sessions.get(device) == sessions[device]
    }
    # Whoever was offered a plan watches requests from then on, announced or not.
    watched = deployment.epoch > 0
    deployment.epoch += 1
    header = PlanHeader(
        epoch=deployment.epoch,
        coordinator=coordinator,
        model=deployment.package.name,
        digest=plan_digest(plan.programs, deployment.epoch, coordinator),
        devices=plan.devices,
        programs=plan.programs,
        manifest=deployment.package.manifest,
        source=coordinator,
        joined=_joined(deployment, plan.devices, stayed, now) if watched else (),
        predicted_ms=plan.predicted_ms,
    )
    deployment.offered = header
    deployment.awaited = set(plan.devices)
    deployment.remind_at = now + REMIND_S
    deployment.prepare_until = now + PREPARE_S
    deployment.state = "preparing"
    return header


def _joined(
    deployment: Deployment, devices: tuple[str, ...], stayed: set[str], now: float
) -> tuple[str, ...]:
    # Who was to pass requests on to a device that joined may have died before it did.
    recent = {d: at for d, at in deployment.joined.items() if now - at < JOINED_S}
    deployment.joined = recent | {d: now for d in devices if d not in stayed}
    return tuple(d for d in devices if d in deployment.joined)


def take_back(deployment: Deployment, devices: Iterable[str]) -> list[Effect]:
    """Return what frees devices of offers that were given up since the plan that serves.

    `devices` are all that are there: one that was offered a plan may be held back by now.
    """
    current = deployment.current
    if current is None or deployment.epoch == current.epoch:
        return []
    return decline(deployment, devices)


def decline(deployment: Deployment, devices: Iterable[str]) -> list[Effect]:
    """Return what has devices give up whatever was offered beside the plan that serves."""
    current = deployment.current
    if current is None or deployment.offered:
        return []
    return [ev.Tell(device, Prepare(current)) for device in sorted(devices)]


def standbys(deployment: Deployment, plan: ComputedPlan, coordinator: str) -> list[Effect]:
    """Return what makes the devices ready for the plans after losses, beyond `plan`."""
    effects: list[Effect] = []
    manifest = deployment.package.manifest
    programs: dict[str, tuple[BlobRef, ...]] = {}
    for device in sorted(deployment.planned):
        blobs = {manifest.digest: manifest.nbytes}
        others = [p for p in deployment.after_loss.values() if device in p.programs]
        programs[device] = tuple(dict.fromkeys(other.programs[device] for other in others))
        blobs |= {ref.digest: ref.nbytes for ref in programs[device]}
        for other in others:
            blobs |= other.blobs[device]
        extra = {d: n for d, n in blobs.items() if d not in plan.blobs.get(device, {})}
        refs = tuple(BlobRef(digest, nbytes) for digest, nbytes in sorted(extra.items()))
        standby = Standby(deployment.package.name, coordinator, refs, programs[device], manifest)
        effects.append(ev.Tell(device, standby))
    deployment.readiness.ask(manifest, programs)
    return effects
