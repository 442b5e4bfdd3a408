"""A client of the simulated fleet: deploys and removes models, and sends requests."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from agent.wire import messages as wire
from tests.simulation import compute
from tests.simulation.broker import Link, Message

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.simulation.fleet import Fleet

RETRY_S = 15.0
NAME = "user"


class Client:
    """A user with a connection; what it wants served is asked for until the leader agrees."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.frozen = False
        self.link = Link(fleet.broker, self, NAME, None)
        self.wanted: dict[str, int | None] = {}
        self.agreed: dict[str, int | None] = {}
        self._coordinators: dict[str, wire.Status] = {}
        self._references: dict[str, str] = {}
        self._count = 0

    @property
    def blobs(self) -> set[str]:
        """The blobs that it provides."""
        return {
            digest
            for model in compute.MODELS
            for number in compute.VERSIONS
            for digest in compute.version(model, number).blobs
        }

    def do(self, action: Callable[[], None]) -> None:
        """Act at once: a client is never frozen."""
        action()

    def forgotten(self) -> None:
        """See `Node.forgotten`."""

    def connected(self, *, first: bool) -> None:
        """Listen for what coordinators say."""
        if first:
            self.link.subscribe(("inbox", NAME), ("status", "+"))

    # Models --------------------------------------------------------------------------------

    def want(self, model: str, version: int | None) -> None:
        """Have a version of a model served, or none."""
        self.wanted[model] = version
        self._pursue(model)

    def again(self) -> None:
        """Ask for all models anew: the coordinator may have forgotten them."""
        for model in self.wanted:
            self._pursue(model)

    def _pursue(self, model: str) -> None:
        self._count += 1
        reference = f"{model}-{self._count}"
        self._references[model] = reference
        self._ask(model, reference)

    def _ask(self, model: str, reference: str) -> None:
        if self._references.get(model) != reference:
            return
        version = self.wanted[model]
        message: wire.Control = wire.Remove(NAME, reference, model)
        if version is not None:
            message = wire.Deploy(NAME, reference, compute.version(model, version).package)
        leader = wire.leader_of(self._coordinators.values())
        if leader is not None:
            self.link.publish(Message("inbox", leader, message, NAME))
        self.fleet.world.after(RETRY_S if leader else 1.0, self._ask, model, reference)

    def received(self, message: Message, again: bool) -> None:  # noqa: ARG002, FBT001
        """Take a coordinator's word."""
        progress = message.content
        if isinstance(progress, wire.Status) and progress.role == "coordinator":
            self._coordinators[progress.device] = progress
        if not isinstance(progress, wire.Progress) or not progress.done:
            return
        for model, reference in list(self._references.items()):
            if progress.reference == reference and (progress.ok or self.wanted[model] is None):
                self.agreed[model] = self.wanted[model]
                self.fleet.touch("models")
                del self._references[model]
            elif progress.reference == reference:
                self.fleet.world.after(1.0, self._ask, model, reference)

    # Requests ------------------------------------------------------------------------------

    def ask(
        self, model: str, name: str | None, content: bytes, life_s: float, client: str = NAME
    ) -> None:
        """Send a request, in the name of `client`, that is to be answered within `life_s`."""
        expires = self.fleet.world.now + life_s
        message = Message("infer", model, (name, content, client), NAME, expires_at=expires)
        self.link.publish(message)

    def ask_later(self, delay: float, model: str, name: str | None, content: bytes) -> None:
        """Send a request with a long life after `delay` seconds."""
        self.fleet.world.after(delay, partial(self.ask, model, name, content, 30.0))
