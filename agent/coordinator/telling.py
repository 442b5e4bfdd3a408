"""What clients that wait for a deployment are told: how far it is, that it serves, or why not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.coordinator import events as ev
from agent.wire.messages import Progress

if TYPE_CHECKING:
    from agent.coordinator.deployment import Deployment
    from agent.coordinator.events import Effect
    from agent.wire.messages import PlanHeader

LONGEST_TEXT = 4000


def progress(sender: str, reference: str, text: str, fraction: float = 0.0) -> Effect:
    """Return what tells a client how far its wish is."""
    return ev.Tell(sender, Progress(reference, text, fraction=fraction))


def refuse(sender: str, reference: str, reason: str, model: str) -> list[Effect]:
    """Return what tells a client that its wish cannot be fulfilled."""
    message = Progress(reference, reason[:LONGEST_TEXT], done=True, ok=False)
    return [ev.Log("warning", reason, model), ev.Tell(sender, message)]


def report(deployment: Deployment, text: str) -> list[Effect]:
    """Return what tells all waiting clients how far the deployment is."""
    return [progress(sender, reference, text) for sender, reference in deployment.waiting]


def conclude(deployment: Deployment, text: str, header: PlanHeader) -> list[Effect]:
    """Return what tells all waiting clients that the model serves; nobody waits any more."""
    clients, deployment.waiting = deployment.waiting, []
    return [
        ev.Tell(sender, Progress(reference, text, done=True, fraction=1.0, plan=header))
        for sender, reference in clients
    ]


def refuse_all(deployment: Deployment, reason: str) -> list[Effect]:
    """Return what tells all waiting clients why not; nobody waits any more."""
    clients, deployment.waiting = deployment.waiting, []
    name = deployment.package.name
    return [e for sender, reference in clients for e in refuse(sender, reference, reason, name)]
