"""A model of an MQTT broker and of the connections to it, with all that may go wrong on the way.

Rules, those of MQTT and of Mosquitto: what a member publishes reaches the broker in order; what the
broker sends on one stream (a topic, or a model's requests and results) arrives in order, streams
overtake each other; QoS 1 is sent again until it is acknowledged, marked as redelivered after a
break; a session outlives its connection for `SESSION_S`; a queue that is full drops what is new; a
connection that ends without a goodbye publishes its will.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.simulation.world import World

SESSION_S = 60.0
KEEPALIVE_S = 10.0
NOTICED_S = 1.5 * KEEPALIVE_S
FIRST_RETRY_S = 0.25
LAST_RETRY_S = 10.0
PURGE_AT = 64

Topic = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Message:
    """A message: its topic is `kind` and `subject`; `content` None clears a retained one."""

    kind: str
    subject: str
    content: Any
    sender: str
    retain: bool = False
    qos: int = 1
    expires_at: float | None = None

    @property
    def topic(self) -> Topic:
        """Its topic, without a request's id."""
        return (self.kind, self.subject)

    @property
    def stream(self) -> Topic:
        """Within which order is kept."""
        return ("request", self.subject) if self.kind in ("infer", "result") else self.topic


@dataclass(slots=True)
class Weather:
    """What the network is like: seconds of latency, chances of each mishap, bounds of queues."""

    latency_s: float = 0.002
    spike: float = 0.0
    spike_s: float = 0.05
    again: float = 0.0
    dropped: float = 0.0
    overtaking: bool = True
    queue: int = 1000
    late_will_s: float = 0.0


@dataclass(slots=True)
class Sent:
    """A QoS 1 message that waits for its acknowledgement."""

    message: Message
    tries: int = 0
    acked_at: float | None = None


def purge(queue: dict[int, Sent], now: float) -> None:
    """Forget what was acknowledged."""
    done = [n for n, sent in queue.items() if sent.acked_at is not None and sent.acked_at <= now]
    for number in done:
        del queue[number]


class Connection:
    """One connection; each end may be open while the other knows that it is not."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.broker_open = False
        self.node_open = True
        self.kept = False
        self.blocked = False
        self.held: list[Callable[[], None]] = []
        self.last: dict[Any, float] = {}

    def travel(self, world: World, weather: Weather, way: Any, arrive: Callable[[], None]) -> None:
        """Have `arrive` called after a latency, in order with all else of the same `way`."""
        delay = weather.latency_s * (0.5 + world.random.random())
        if world.random.random() < weather.spike:
            delay += weather.spike_s * world.random.random()
        time = max(self.last.get(way, 0.0), world.now + delay)
        self.last[way] = time
        world.at(time, self._arrived, arrive)

    def _arrived(self, arrive: Callable[[], None]) -> None:
        if self.blocked:
            self.held.append(arrive)
        else:
            arrive()

    def unblock(self) -> None:
        """Let through what a cut held up."""
        self.blocked = False
        held, self.held = self.held, []
        for arrive in held:
            arrive()


@dataclass(slots=True)
class Session:
    """What the broker keeps of a client."""

    topics: set[Topic] = field(default_factory=set)
    connection: Connection | None = None
    queue: dict[int, Sent] = field(default_factory=dict)
    expires_at: float = 0.0


class Broker:
    """The broker; `accepted` is told of each message, `overflowed` of one that is dropped."""

    def __init__(
        self,
        world: World,
        weather: Weather,
        accepted: Callable[[Message], None],
        overflowed: Callable[[], None],
    ) -> None:
        self.world = world
        self.weather = weather
        self.is_up = True
        self.sessions: dict[str, Session] = {}
        self.retained: dict[Topic, Message] = {}
        self._accepted = accepted
        self._overflowed = overflowed
        self._count = 0

    # Connections ---------------------------------------------------------------------------

    def open(self, connection: Connection) -> None:
        """Accept a connection; an older one of the same client ends."""
        client = connection.link.client
        session = self.sessions.get(client)
        if session is not None and session.connection is not None:
            self.close(session.connection, will=True)
        fresh = connection.link.fresh or session is None or self.world.now > session.expires_at
        if session is None or fresh:
            session = self.sessions[client] = Session()
        session.connection = connection
        session.expires_at = float("inf")
        connection.kept = not fresh
        connection.broker_open = True
        connection.travel(
            self.world, self.weather, "down", partial(connection.link.opened, connection)
        )
        for sent in session.queue.values():
            self._send(connection, sent)

    def close(self, connection: Connection, *, will: bool) -> None:
        """End a connection at the broker's side."""
        if not connection.broker_open:
            return
        connection.broker_open = False
        session = self.sessions[connection.link.client]
        if session.connection is connection:
            purge(session.queue, self.world.now)
            session.connection = None
            session.expires_at = self.world.now + SESSION_S
        if will and connection.link.will is not None:
            late = self.weather.late_will_s * self.world.random.random()
            self.world.after(late, self._publish_will, connection.link.will)

    def _publish_will(self, will: Message) -> None:
        if self.is_up:
            self.accept(will)

    def go_down(self, retained: dict[Topic, Message]) -> None:
        """Crash: what was retained is what `retained` says, all else is gone."""
        self.is_up = False
        for session in self.sessions.values():
            connection = session.connection
            if connection is not None:
                connection.broker_open = False
                connection.link.hung_up(connection)
        self.sessions.clear()
        self.retained = retained

    # Messages ------------------------------------------------------------------------------

    def subscribe(self, connection: Connection, topics: tuple[Topic, ...]) -> None:
        """Add subscriptions, `+` standing for every subject, and send what is retained."""
        session = self.sessions[connection.link.client]
        for kind, subject in topics:
            session.topics.add((kind, subject))
            for message in [m for t, m in self.retained.items() if t[0] == kind]:
                if subject in ("+", message.subject):
                    self._enqueue(session, message)

    def unsubscribe(self, connection: Connection, topics: tuple[Topic, ...]) -> None:
        """Take subscriptions away."""
        self.sessions[connection.link.client].topics.difference_update(topics)

    def arrived(self, connection: Connection, sent: Sent) -> None:
        """Take a message from a member, and acknowledge it."""
        if connection.broker_open:
            sent.acked_at = self.world.now + self.weather.latency_s
            self.accept(sent.message)

    def accept(self, message: Message) -> None:
        """Take a message and hand it to everyone who subscribed."""
        self._accepted(message)
        if message.retain:
            self.retained.pop(message.topic, None)
            if message.content is not None:
                self.retained[message.topic] = message
        every = (message.kind, "+")
        for session in self.sessions.values():
            if message.topic in session.topics or every in session.topics:
                self._enqueue(session, message)

    def _enqueue(self, session: Session, message: Message) -> None:
        random = self.world.random
        if message.qos == 0:
            connection = session.connection
            if connection is not None and random.random() >= self.weather.dropped:
                self._send(connection, Sent(message))
            return
        if self.world.now > session.expires_at:
            return
        if len(session.queue) >= min(PURGE_AT, self.weather.queue):
            purge(session.queue, self.world.now)
        if len(session.queue) >= self.weather.queue:
            self._overflowed()
            return
        self._count += 1
        sent = session.queue[self._count] = Sent(message)
        if session.connection is not None:
            self._send(session.connection, sent)
            if random.random() < self.weather.again:
                self._send(session.connection, sent)

    def _send(self, connection: Connection, sent: Sent) -> None:
        message = sent.message
        sent.tries += 1
        way = message.stream if self.weather.overtaking else "down"
        again = sent.tries > 1
        arrive = partial(connection.link.arrived, connection, sent, again)
        connection.travel(self.world, self.weather, way, arrive)


class Link:
    """A member's side of its connection: connects again with growing delays, resends QoS 1."""

    def __init__(self, broker: Broker, owner: Any, client: str, will: Message | None) -> None:
        self.broker = broker
        self.world = broker.world
        self.owner = owner
        self.client = client
        self.will = will
        self.fresh = True
        self.network = True
        self.connection: Connection | None = None
        self._topics: dict[Topic, None] = {}
        self._out: dict[int, Sent] = {}
        self._count = 0
        self._retry_s = FIRST_RETRY_S
        self._dead = False

    @property
    def connected(self) -> bool:
        """Whether this side takes itself for connected."""
        return self.connection is not None

    def connect(self) -> None:
        """Try to connect; try again later where that fails."""
        if self._dead or self.connection is not None:
            return
        if self.owner.frozen:
            self.owner.do(self.connect)
        elif not self.network or not self.broker.is_up:
            self.world.after(self._retry_s, self.connect)
            self._retry_s = min(2 * self._retry_s, LAST_RETRY_S)
        else:
            connection = Connection(self)
            self.world.after(self.broker.weather.latency_s, self._reach, connection)

    def _reach(self, connection: Connection) -> None:
        if self._dead:
            return
        if self.network and self.broker.is_up:
            self.broker.open(connection)
        else:
            self.connect()

    def opened(self, connection: Connection) -> None:
        """Take the broker's word that the connection stands."""
        if self._dead or not connection.broker_open:
            self.connect()
            return
        self.owner.do(partial(self._opened, connection))

    def _opened(self, connection: Connection) -> None:
        if self._dead or self.connection is not None:
            return
        first, self.fresh = self.fresh, False
        self.connection = connection
        self._retry_s = FIRST_RETRY_S
        self._ask(partial(self.broker.subscribe, connection, tuple(self._topics)))
        for sent in self._out.values():
            self._send(connection, sent)
        if not first and not connection.kept:
            self.owner.forgotten()
        self.owner.connected(first=first)

    def hung_up(self, connection: Connection) -> None:
        """Learn that the broker closed the connection, as soon as this member looks."""
        latency = self.broker.weather.latency_s
        self.world.after(latency, self.owner.do, partial(self.lost, connection))

    def lost(self, connection: Connection) -> None:
        """Take the connection for lost, and connect again."""
        if self.connection is connection and not self._dead:
            connection.node_open = False
            self.connection = None
            purge(self._out, self.world.now)
            self.world.after(self._retry_s, self.connect)
            self.world.after(NOTICED_S, partial(self.broker.close, connection, will=True))

    def end(self, *, will: bool) -> None:
        """End for good: the process is gone, politely or not."""
        self._dead = True
        connection, self.connection = self.connection, None
        if connection is None:
            return
        connection.node_open = False
        if will:
            self.broker.close(connection, will=True)
        else:
            connection.travel(
                self.world,
                self.broker.weather,
                "up",
                partial(self.broker.close, connection, will=False),
            )

    def silence(self) -> None:
        """End without a word: the power is gone, and the broker does not know it."""
        self._dead = True
        self.connection = None

    # Messages ------------------------------------------------------------------------------

    def publish(self, message: Message) -> None:
        """Publish; QoS 1 waits for a connection, unless there never was one."""
        if self._dead or self.fresh:
            return
        sent = Sent(message)
        if message.qos == 1:
            self._count += 1
            self._out[self._count] = sent
            if len(self._out) > PURGE_AT:
                purge(self._out, self.world.now)
        if self.connection is not None:
            self._send(self.connection, sent)

    def subscribe(self, *topics: Topic) -> None:
        """Subscribe now and after every new connection."""
        self._topics |= dict.fromkeys(topics)
        if self.connection is not None:
            self._ask(partial(self.broker.subscribe, self.connection, topics))

    def unsubscribe(self, *topics: Topic) -> None:
        """Undo `subscribe`."""
        for topic in topics:
            self._topics.pop(topic, None)
        if self.connection is not None:
            self._ask(partial(self.broker.unsubscribe, self.connection, topics))

    def arrived(self, connection: Connection, sent: Sent, again: bool) -> None:  # noqa: FBT001
        """Take a message from the broker."""
        if connection.node_open and not self._dead:
            self.owner.do(partial(self._take, connection, sent, again))

    def _take(self, connection: Connection, sent: Sent, again: bool) -> None:  # noqa: FBT001
        if self._dead:
            return
        if connection.broker_open:
            sent.acked_at = self.world.now + self.broker.weather.latency_s
        expires_at = sent.message.expires_at
        if expires_at is None or self.world.now < expires_at:
            self.owner.received(sent.message, again)

    def _send(self, connection: Connection, sent: Sent) -> None:
        sent.tries += 1
        arrive = partial(self.broker.arrived, connection, sent)
        connection.travel(self.world, self.broker.weather, "up", arrive)

    def _ask(self, change: Callable[[], None]) -> None:
        connection = self.connection
        if connection is not None:
            act = partial(self._if_open, connection, change)
            connection.travel(self.world, self.broker.weather, "up", act)

    @staticmethod
    def _if_open(connection: Connection, change: Callable[[], None]) -> None:
        if connection.broker_open:
            change()
