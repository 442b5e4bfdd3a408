"""What is done to a fleet: each fault says until when it is felt, and heals by itself.

A fault is a function of the faults' state; a seed draws some of them at some times.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from agent.service.agent import STATUS_EVERY_S
from tests.simulation import compute
from tests.simulation.broker import KEEPALIVE_S, NOTICED_S
from tests.simulation.invariants import RECOVERY_S
from tests.simulation.nodes import Agent

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.simulation.broker import Connection, Link, Message, Topic
    from tests.simulation.fleet import Fleet
    from tests.simulation.nodes import Node

SILENCE_S = 80.0


class Faults:
    """Does harm to `fleet`, and undoes it."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.world = fleet.world
        self.random = fleet.world.random
        self._snapshot: dict[Topic, Message] = {}
        self._over = False
        self._dead: set[str] = set()

    def strike(self) -> None:
        """Do one thing, drawn by the seed."""
        faults = [*AGENT_FAULTS, *AGENT_FAULTS, *OTHER_FAULTS]
        self.random.choice(faults)(self)

    def heal(self, *, dead: set[str]) -> None:
        """Undo everything that does not end by itself; `dead` stay so."""
        self._over, self._dead = True, dead
        for name in [*self.fleet.bosses, *self.fleet.devices]:
            if name not in dead:
                self.fleet.start(name)

    def _felt(self, name: str, seconds: float, text: str) -> None:
        self.fleet.touch(name)
        self.fleet.struck.add(name)
        self.world.tell(f"{name}: {text}")
        self.fleet.referee.disturb(self.world.now + seconds)
        self.world.after(seconds, self._healed, name)

    def _healed(self, name: str) -> None:
        self.fleet.struck.discard(name)
        self.fleet.touch(name)

    def _victim(self, *, coordinator: bool = False) -> Node | None:
        names = self.fleet.bosses if coordinator else self.fleet.devices
        nodes = [self.fleet.nodes[n] for n in names if n in self.fleet.nodes]
        able = [n for n in nodes if n.alive and not n.leaving and n.name not in self.fleet.struck]
        return self.random.choice(able) if able else None

    # One member ----------------------------------------------------------------------------

    def crash(self, node: Node) -> None:
        """Kill the process, or take its power; it comes back, perhaps without its disk."""
        pause = self.random.choice((0.1, 1.0, 5.0, 20.0))
        wiped = self.random.random() < 0.2
        power = self.random.random() < 0.3
        what = f"crashes for {pause} s{', without its disk' * wiped}{', unnoticed' * power}"
        self._felt(node.name, pause + NOTICED_S * power, what)
        self._end(node, unnoticed=power)
        if wiped:
            self.fleet.wipe(node.name)
        self.world.after(pause, self._restart, node.name, wiped)

    def _restart(self, name: str, wiped: bool) -> None:  # noqa: FBT001
        if name in self._dead:
            return
        self.world.tell(f"{name}: starts")
        self.fleet.start(name)
        if wiped and name in self.fleet.bosses:
            self.world.after(2.0, self.fleet.client.again)

    def _end(self, node: Node, *, unnoticed: bool) -> None:
        connection = node.link.connection
        if unnoticed and connection is not None:
            connection.blocked = True
            node.alive = False
            node.link.silence()
            self.world.after(NOTICED_S, partial(self.fleet.broker.close, connection, will=True))
        else:
            node.kill()

    def reset(self, node: Node | None) -> None:
        """End a connection: both sides learn it."""
        link = self.fleet.client.link if node is None else node.link
        self._felt(node.name if node else "user", 1.0, "loses its connection")
        self._reset(link)

    def _reset(self, link: Link) -> None:
        connection = link.connection
        if connection is not None:
            self.fleet.broker.close(connection, will=True)
            link.hung_up(connection)

    def cut(self, node: Node) -> None:
        """Take the network away for a while; nobody is told."""
        seconds = self.random.choice((0.5, 3.0, 12.0, 30.0))
        self._felt(node.name, seconds + 1.0, f"has no network for {seconds} s")
        link, connection = node.link, node.link.connection
        link.network = False
        self._falls_silent(node)
        self.world.after(seconds, self._join, link, connection)
        if connection is not None:
            connection.blocked = True
            self.world.after(NOTICED_S, self._expire, connection)
            patience = KEEPALIVE_S * (1 + self.random.random())
            self.world.after(patience, self._notice, node, connection)

    def _expire(self, connection: Connection) -> None:
        if connection.blocked:
            self.fleet.broker.close(connection, will=True)

    def _notice(self, node: Node, connection: Connection) -> None:
        if connection.blocked:
            node.do(partial(node.link.lost, connection))

    def _falls_silent(self, node: Node) -> None:
        if isinstance(node, Agent):
            self.fleet.fall_silent(node.name)
            self.fleet.referee.fell_silent()

    def _join(self, link: Link, connection: Connection | None) -> None:
        link.network = True
        self.fleet.silent.pop(link.client, None)
        if connection is not None:
            connection.unblock()
            if not connection.broker_open:
                link.hung_up(connection)

    def freeze(self, node: Node) -> None:
        """Stop the process for a while; its connection lives on until the broker misses it."""
        seconds = self.random.choice((0.2, 2.0, 8.0, 25.0))
        self._felt(node.name, seconds + 1.0, f"is frozen for {seconds} s")
        node.frozen = True
        self._falls_silent(node)
        connection = node.link.connection
        self.world.after(seconds, self._thaw, node)
        if connection is not None:
            self.world.after(NOTICED_S, self._miss, node, connection)

    def _thaw(self, node: Node) -> None:
        self.fleet.silent.pop(node.name, None)
        node.thaw()

    def _miss(self, node: Node, connection: Connection) -> None:
        if node.frozen and node.link.connection is connection:
            self.fleet.broker.close(connection, will=True)
            node.link.hung_up(connection)

    def jump(self, node: Node) -> None:
        """Put a clock forward."""
        seconds = self.random.choice((1.0, 10.0, 70.0))
        self._felt(node.name, STATUS_EVERY_S + 1.0, f"its clock jumps {seconds} s")
        node.offset += seconds
        self.fleet.referee.jumped_at = self.world.now
        node.do(node.rouse)

    def slow(self, node: Node) -> None:
        """Compute slowly for a while."""
        self._felt(node.name, 10.0, "is slow")
        node.slowness = self.random.choice((5.0, 30.0))
        self.world.after(10.0, self._quicken, node)

    @staticmethod
    def _quicken(node: Node) -> None:
        node.slowness = 1.0

    def leave(self, node: Node) -> None:
        """End an agent politely; it comes back."""
        pause = self.random.choice((2.0, 10.0))
        # Leaving politely is no excuse for a request that is lost.
        self.world.tell(f"{node.name}: leaves")
        self.fleet.touch(node.name)
        self.fleet.struck.add(node.name)
        if isinstance(node, Agent):
            node.leave()
        self.world.after(pause, self._return, node)

    def _return(self, node: Node) -> None:
        if node.alive:
            self.world.after(1.0, self._return, node)
        elif node.name not in self._dead:
            self.world.tell(f"{node.name}: returns")
            self.fleet.start(node.name)
            self._healed(node.name)

    def flap(self, node: Node) -> None:
        """Lose the connection again and again."""
        times = self.random.randint(2, 6)
        self._felt(node.name, 2.0 * times, f"loses its connection {times} times")
        for number in range(times):
            self.world.after(2.0 * number, self._reset, node.link)

    # The broker ----------------------------------------------------------------------------

    def restart_broker(self) -> None:
        """Crash the broker; it comes back with what it had retained, with old news, or nothing."""
        pause = self.random.choice((0.2, 2.0, 10.0))
        broker = self.fleet.broker
        kept = self.random.choice(("nothing", "all", "old news"))
        retained = {"nothing": {}, "all": dict(broker.retained), "old news": self._snapshot}
        self._felt("broker", 2 * pause + 1.0, f"is down for {pause} s and then has {kept}")
        # What it forgot of the members that died meanwhile only their silence tells.
        self.fleet.referee.disturb(self.world.now + pause + SILENCE_S)
        broker.go_down(dict(retained[kept]))
        self.world.after(pause, self._up)

    def _up(self) -> None:
        self.fleet.broker.is_up = True
        self.fleet.touch("broker")

    def snapshot(self) -> None:
        """Have the broker save what it has retained."""
        self._snapshot = dict(self.fleet.broker.retained)

    # Models --------------------------------------------------------------------------------

    def redeploy(self) -> None:
        """Deploy another version of a model while it serves."""
        model = self.random.choice(list(self.fleet.client.wanted))
        version = self.random.choice(compute.VERSIONS)
        self.world.tell(f"{model}: version {version} is deployed")
        self.fleet.touch("models")
        self.fleet.client.want(model, version)

    def remove(self) -> None:
        """Remove a model, and deploy it again a little later."""
        model = self.random.choice(list(self.fleet.client.wanted))
        self.world.tell(f"{model}: is removed")
        now = self.world.now
        self.fleet.referee.removed(model)
        self.fleet.touch("models")
        self.fleet.referee.disturb(now + 10.0)
        self.fleet.client.want(model, None)
        if self.random.random() < 0.7:
            version = self.random.choice(compute.VERSIONS)
            self.world.after(self.random.choice((0.3, 3.0, 8.0)), self._deploy, model, version)

    def _deploy(self, model: str, version: int) -> None:
        if not self._over:
            self.fleet.touch("models")
            self.world.tell(f"{model}: version {version} is deployed")
            self.fleet.client.want(model, version)


def _on_agent(act: Callable[[Faults, Node], None]) -> Callable[[Faults], None]:
    def strike(faults: Faults) -> None:
        node = faults._victim()
        if node is not None:
            act(faults, node)

    return strike


def _on_coordinator(faults: Faults) -> None:
    node = faults._victim(coordinator=True)
    if node is not None:
        acts = (Faults.crash, Faults.reset, Faults.cut, Faults.freeze, Faults.jump)
        faults.random.choice(acts)(faults, node)


def _on_client(faults: Faults) -> None:
    faults.reset(None)


AGENT_FAULTS = [
    _on_agent(act)
    for act in (
        Faults.crash,
        Faults.crash,
        Faults.reset,
        Faults.cut,
        Faults.freeze,
        Faults.jump,
        Faults.slow,
        Faults.leave,
        Faults.flap,
    )
]
OTHER_FAULTS = [
    _on_coordinator,
    _on_coordinator,
    _on_client,
    Faults.restart_broker,
    Faults.snapshot,
    Faults.redeploy,
    Faults.redeploy,
    Faults.remove,
]
FELT_S = RECOVERY_S
