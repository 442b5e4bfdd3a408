"""What a coordinator does for models that others have deployed: it fetches them, and gets ready.

Rules: the blobs come from the coordinator that told of the model, else from any other that is
there; while they are missing the fetching is tried again every `RETRY_S`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.coordinator import events as ev

if TYPE_CHECKING:
    from agent.coordinator.catalog import Catalog
    from agent.coordinator.events import Effect
    from agent.coordinator.measuring import Measuring
    from agent.wire.messages import Deployed

RETRY_S = 5.0
TICKET = "deployed/"


class Following:
    """Keeps the models of `catalog` that others have deployed, for coordinator `name`."""

    def __init__(self, name: str, catalog: Catalog, measuring: Measuring) -> None:
        self._name = name
        self._catalog = catalog
        self._measuring = measuring
        self._holders: dict[str, str] = {}
        self._tries = 0
        self.retry_at: float | None = None

    @staticmethod
    def owns(ticket: str) -> bool:
        """Tell whether a `Fetch` is one of these."""
        return ticket.startswith(TICKET)

    def hear(self, record: Deployed, now: float) -> list[Effect]:
        """Take a record that is news; fetch what it needs."""
        effects = self._catalog.persist()
        if record.coordinator == self._name:
            # Of an earlier life, which lost its disk.
            self.retry_at = now
            return effects
        if record.coordinator is not None:
            self._holders[record.model] = record.coordinator
        if record.model in self._catalog.lacking:
            effects += self._fetch(record.model, record.coordinator)
        return effects

    def connected(self) -> list[Effect]:
        """Look for what is not known to be here; of an earlier life it is on this disk."""
        return [
            effect
            for model in sorted(self._catalog.lacking)
            for effect in self._fetch(model, self._holders.get(model, self._name))
        ]

    def fetched(self, ticket: str) -> list[Effect]:
        """Note that a model is here; have its probes made, for the figures are of them."""
        model = ticket.removeprefix(TICKET)
        deployment = self._catalog.get(model)
        if deployment is None:
            return []
        self._catalog.lacking.discard(model)
        wanted = self._measuring.wanted and deployment.calibration.lacks_probes()
        return [ev.MakeProbes(deployment.package)] if wanted else []

    def failed(self, reason: str, now: float) -> list[Effect]:
        """Try again later."""
        self.retry_at = now + RETRY_S
        return [ev.Log("warning", f"cannot fetch a model from another coordinator: {reason}")]

    def retry(self, peers: tuple[str, ...], now: float) -> list[Effect]:
        """Try again what could not be fetched, if that is due."""
        if self.retry_at is None or now < self.retry_at:
            return []
        self.retry_at = None
        self._tries += 1
        effects: list[Effect] = []
        for model in sorted(self._catalog.lacking):
            holders = [holder for holder in (self._holders.get(model), *peers) if holder]
            holder = holders[self._tries % len(holders)] if holders else None
            effects += self._fetch(model, holder)
            if holder is None:
                self.retry_at = now + RETRY_S
        return effects

    def _fetch(self, model: str, holder: str | None) -> list[Effect]:
        deployment = self._catalog.get(model)
        if deployment is None or holder is None:
            return []
        return [ev.Fetch(f"{TICKET}{model}", deployment.package.blobs(), holder)]
