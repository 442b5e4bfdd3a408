"""What an agent and a coordinator have in common: both are members of the fleet.

A member has a connection, a retained status with a last will on the same topic, a store with a
transfer of its own, worker threads, and a watchdog that is fed only while loop and threads move.
"""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from agent import __version__
from agent.adapters.logs import log, settle
from agent.adapters.mqtt import Connected, Disconnected, Link, LinkEvent, Received, Unreadable, Will
from agent.adapters.systemd import Notifier
from agent.errors import BrokerError, HaloMQError, WireError, reason_of
from agent.service.executor import Executor
from agent.service.loop import Loop, monotonic
from agent.service.transfer import TransferService
from agent.wire import messages as wire
from agent.wire.topics import Topics

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from agent.adapters.store import BlobStore
    from agent.config import Config
    from agent.wire.topics import Address

FIRST_CONNECTION_S = 15.0
STUCK_S = 120.0


@dataclass(frozen=True, slots=True)
class _Leave:
    """The process was asked to end."""


class Member(ABC):
    """A member `name` of the fleet, until `leave` is called.

    `run` belongs to one thread, in which all other methods but `leave` are called.
    """

    role: Literal["agent", "coordinator"]

    def __init__(
        self, name: str, config: Config, store: BlobStore, environment: Mapping[str, str]
    ) -> None:
        self.name = name
        self.config = config
        self.session = secrets.token_hex(6)
        self.topics = Topics(config.fleet)
        self.store = store
        self.notifier = Notifier.from_environment(environment)
        self._executors: list[Executor] = []
        will = wire.encode_json(self._status("offline"))
        self.link = Link(
            f"halomq-{config.fleet}-{name}", config.broker, Will(self.topics.status(name), will)
        )
        self.loop = Loop(self.link, self, monotonic)
        self.transfer = TransferService(name, self.topics, config.broker, store, self.loop.post)
        self._watchdog_at = 0.0
        self._started = monotonic()
        self._was_connected = False
        self._is_leaving = False
        self._failure: HaloMQError | None = None

    def run(self) -> None:
        """Serve until told to leave.

        Raises:
            BrokerError: if the broker could not be reached at the start, or refuses this member.
        """
        self.transfer.start()
        try:
            self.loop.run()
        finally:
            self.transfer.stop()
            for executor in self._executors:
                executor.stop()
        if self._failure is not None:
            raise self._failure

    def leave(self) -> None:
        """Hand over and end `run`; callable from a signal handler."""
        self.loop.post(_Leave())

    # What a kind of member adds ------------------------------------------------------------

    @abstractmethod
    def details(self) -> dict[str, Any]:
        """Return the fields of the online status beyond the identity."""

    @abstractmethod
    def connected(self, *, first: bool) -> None:
        """Subscribe (the first time) and tell of oneself."""

    @abstractmethod
    def forgotten(self) -> None:
        """The broker has lost what came here since the last connection; `connected` follows."""

    @abstractmethod
    def received(self, address: Address, message: Received) -> None:
        """Take a message on a topic of the fleet; `WireError` if it is not what it should be."""

    @abstractmethod
    def posted(self, item: Any) -> None:
        """Take what a thread of this member posted."""

    @abstractmethod
    def turn(self, now: float) -> float | None:
        """Do what is due; return when to be called again at the latest."""

    @abstractmethod
    def leaving(self) -> None:
        """Begin to leave; the status is offline already. Ends with `loop.stop`."""

    @abstractmethod
    def perform(self, effect: Any) -> None:
        """Carry out one effect of the core."""

    # What they share -----------------------------------------------------------------------

    def executor(self, title: str) -> Executor:
        """Return a new worker thread that posts to this member."""
        executor = Executor(title, self.loop.post, monotonic)
        self._executors.append(executor)
        return executor

    def carry_out(self, effects: Iterable[Any]) -> None:
        """Carry out the core's effects; one that fails is logged and harms no other."""
        for effect in effects:
            try:
                self.perform(effect)
            except Exception as error:  # noqa: BLE001 - one effect can't take the process down
                log("error", f"{type(effect).__name__} failed: {reason_of(error)}")

    def publish(self, topic: str, payload: bytes, **options: Any) -> None:
        """Publish a message; what cannot be published is logged."""
        try:
            self.link.publish(topic, payload, **options)
        except BrokerError as error:
            log("warning", str(error))

    def tell(self, device: str, message: wire.Control) -> None:
        """Publish a control message to an inbox."""
        self.publish(self.topics.inbox(device), wire.encode_json(message))

    def drop_links(self, seconds: float) -> None:
        """Drop both connections as a fault would, and make none for `seconds`."""
        self.loop.drop(seconds)
        self.transfer.drop(seconds)

    def publish_status(self) -> None:
        """Publish the retained status, unless on the way out."""
        if not self._is_leaving:
            self._publish_state("online")

    def fail(self, error: HaloMQError) -> None:
        """End `run` with an error."""
        self._failure = error
        self.loop.stop()

    # The loop's calls ----------------------------------------------------------------------

    def on_link(self, event: LinkEvent) -> None:
        """Take an event of the connection; nothing that arrives may end the process."""
        match event:
            case Connected(kept):
                log("info", f"connected to the broker at {self.config.broker.host}")
                first, self._was_connected = not self._was_connected, True
                self._failure = None
                if not first and not kept:
                    self.forgotten()
                self.connected(first=first)
            case Disconnected(reason, fatal):
                log("warning", f"no connection to the broker: {reason}")
                if not self._was_connected:
                    self._failure = BrokerError(reason)
                    if fatal:
                        self.fail(self._failure)
            case Received():
                self._take(event)
            case Unreadable(reason):
                log("warning", f"dropped a message that cannot be read: {reason}")

    def on_post(self, item: object) -> None:
        """Take what a thread of this member, or a signal handler, posted."""
        if not isinstance(item, _Leave):
            self.posted(item)
        elif not self._is_leaving:
            log("info", "leaving")
            self._is_leaving = True
            self.notifier.stopping()
            self._publish_state("offline")
            self.leaving()

    def on_turn(self, now: float) -> float | None:
        """Do what is due; give up where the broker was never reached."""
        if not self._was_connected and now - self._started > FIRST_CONNECTION_S:
            self.fail(self._failure or BrokerError("the broker does not answer"))
        self._feed_watchdog(now)
        settle()
        return self.turn(now)

    def _take(self, message: Received) -> None:
        try:
            self.received(self.topics.address(message.topic), message)
        except WireError as error:
            log("warning", f"refused a message on {message.topic}: {error}")
        except Exception as error:  # noqa: BLE001 - a message can't take the process down
            log("error", f"dropped a message on {message.topic}: {reason_of(error)}")

    def _feed_watchdog(self, now: float) -> None:
        interval = self.notifier.interval_s
        stuck = any(executor.busy_for() > STUCK_S for executor in self._executors)
        if interval is not None and not stuck and now >= self._watchdog_at:
            self._watchdog_at = now + interval / 2
            self.notifier.watchdog()

    def _publish_state(self, state: Literal["online", "offline"]) -> None:
        payload = wire.encode_json(self._status(state))
        self.publish(self.topics.status(self.name), payload, retain=True)

    def _status(self, state: Literal["online", "offline"]) -> wire.Status:
        return wire.Status(
            device=self.name,
            session=self.session,
            state=state,
            role=self.role,
            **({"versions": {"halomq": __version__}} | self.details() if state == "online" else {}),
        )
