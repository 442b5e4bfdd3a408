"""What clients ask for: a model is fetched and then planned, or it is removed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.coordinator import events as ev
from agent.coordinator.deployment import Deployment
from agent.coordinator.telling import conclude, progress, refuse, refuse_all
from agent.wire.messages import Progress

if TYPE_CHECKING:
    from agent.coordinator.catalog import Catalog
    from agent.coordinator.events import Effect
    from agent.coordinator.planning import Planning
    from agent.wire.messages import Deploy

MAX_DEPLOYS = 64
# Of the clients that wait for one model: further ones displace those that have waited longest.
MAX_WAITING = 64
FETCHING = "fetching the model"


class Clients:
    """The wishes of clients, carried out on `catalog` and by `planning`."""

    def __init__(self, catalog: Catalog, planning: Planning) -> None:
        self._catalog = catalog
        self._planning = planning
        self._deploys: dict[str, Deploy] = {}

    def rest(self) -> None:
        """Leave all wishes to another coordinator: clients ask it again."""
        self._deploys.clear()

    def deploy_asked(self, event: ev.DeployAsked, _now: float) -> list[Effect]:
        """Fetch a model's blobs from the client first."""
        deploy = event.deploy
        ticket = f"deploy/{deploy.sender}/{deploy.reference}"
        if ticket not in self._deploys and len(self._deploys) >= MAX_DEPLOYS:
            reason = f"{MAX_DEPLOYS} models are being fetched already; try again later"
            return refuse(deploy.sender, deploy.reference, reason, deploy.package.name)
        self._deploys[ticket] = deploy
        return [
            ev.Log("info", f"{deploy.sender} deploys", deploy.package.name),
            progress(deploy.sender, deploy.reference, FETCHING),
            ev.Fetch(ticket, deploy.package.blobs(), deploy.sender),
        ]

    def fetching(self, event: ev.Fetching, _now: float) -> list[Effect]:
        """Tell the client how far the fetching is."""
        deploy = self._deploys.get(event.ticket)
        if deploy is None:
            return []
        return [progress(deploy.sender, deploy.reference, FETCHING, event.fraction)]

    def fetch_failed(self, event: ev.FetchFailed, _now: float) -> list[Effect]:
        """Tell the client why its model cannot be deployed."""
        deploy = self._deploys.pop(event.ticket, None)
        if deploy is None:
            return []
        return refuse(deploy.sender, deploy.reference, event.reason, deploy.package.name)

    def fetched(self, event: ev.Fetched, now: float) -> list[Effect]:
        """Have a model planned, in the place of another of its name."""
        deploy = self._deploys.pop(event.ticket, None)
        if deploy is None:
            return []
        name = deploy.package.name
        old = self._catalog.get(name)
        client = (deploy.sender, deploy.reference)
        if old is not None and old.package == deploy.package:
            self._catalog.lacking.discard(name)
            old.waiting = [*(c for c in old.waiting if c != client), client][-MAX_WAITING:]
            if old.state == "serving" and old.current:
                return conclude(old, "serving already", old.current)
            underway = old.state in ("planning", "preparing")
            return [] if underway else self._planning.replan(old, now)
        deployment = Deployment(deploy.package, self._catalog.retired.pop(name, 0))
        effects: list[Effect] = []
        if old is not None:
            deployment.succeed(old)
            deployment.previous = old if old.plan is not None else old.previous
            effects = refuse_all(old, "another model was deployed under this name")
        deployment.waiting.append(client)
        self._catalog.put(deployment)
        return [*effects, *self._catalog.persist(), *self._planning.replan(deployment, now)]

    def remove_asked(self, event: ev.RemoveAsked, _now: float) -> list[Effect]:
        """Have a model served no more."""
        remove = event.remove
        known = remove.name in self._catalog.retired.keys() - self._catalog.removed
        deployment = self._catalog.remove(remove.name)
        done = Progress(remove.reference, "removed", done=True)
        if deployment is None and known:
            # A plan from before this coordinator lost its disk.
            told = self._catalog.persist()
            return [ev.Withdraw(remove.name), *told, ev.Tell(remove.sender, done)]
        if deployment is None:
            return refuse(remove.sender, remove.reference, "no such model", remove.name)
        return [
            *refuse_all(deployment, f"{remove.sender} removed the model"),
            ev.Withdraw(remove.name),
            *self._catalog.persist(),
            ev.Tell(remove.sender, done),
            ev.Log("info", f"removed by {remove.sender}", remove.name),
        ]
