"""The simulated fleet: one broker, its members and a client, and how long their work takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.simulation.broker import Broker, Weather
from tests.simulation.client import NAME, Client
from tests.simulation.invariants import Referee
from tests.simulation.nodes import Agent, Coordinator, Disk

if TYPE_CHECKING:
    from tests.simulation.nodes import Node
    from tests.simulation.world import World

BOSSES = ("boss", "boss-2", "boss-0")
STEADY_S = 5.0


@dataclass(frozen=True, slots=True)
class Limits:
    """The agents' configuration, and the chance that a device has memory for a spare."""

    deadline_s: float = 20.0
    max_in_flight: int = 16
    room: float = 1.0


class Fleet:
    """`devices` are the agents' names, `bosses` the coordinators'; none runs before `start`."""

    def __init__(
        self,
        world: World,
        weather: Weather,
        devices: list[str],
        bosses: tuple[str, ...],
        limits: Limits,
    ) -> None:
        self.world = world
        self.weather = weather
        self.limits = limits
        self.devices = devices
        self.bosses = bosses
        self.referee = Referee(self)
        self.broker = Broker(world, weather, self.referee.accepted, self._overflowed)
        self.nodes: dict[str, Node] = {}
        self.announced: dict[str, tuple[int, str]] = {}
        self.client = Client(self)
        self.struck: set[str] = set()
        self.silent: dict[str, frozenset[str]] = {}
        self._disks: dict[str, Disk] = {}
        self._touched: dict[str, float] = {}
        self._lives = 0

    def coordinators(self) -> list[Coordinator]:
        """The coordinators that run."""
        return [n for n in self.nodes.values() if isinstance(n, Coordinator) and n.alive]

    def agents(self) -> list[Agent]:
        """The agents that run."""
        return [n for n in self.nodes.values() if isinstance(n, Agent) and n.alive]

    # Lives ---------------------------------------------------------------------------------

    def start(self, name: str) -> None:
        """Start a member, unless it runs."""
        if name in self.nodes and self.nodes[name].alive:
            return
        self._lives += 1
        disk = self._disks.setdefault(name, Disk())
        kind = Coordinator if name in self.bosses else Agent
        node = self.nodes[name] = kind(self, name, disk, f"{name}-{self._lives}")
        self.touch(name)
        node.link.connect()
        node.schedule()

    def wipe(self, name: str) -> None:
        """Lose a member's disk."""
        self._disks[name] = Disk()

    def left(self, agent: Agent) -> None:
        """Note that an agent ended as it was told to."""
        self.world.tell(f"{agent.name} has left")

    def touch(self, name: str) -> None:
        """Note that something was done to a member."""
        self._touched[name] = self.world.now

    def fall_silent(self, name: str) -> None:
        """Note that a device is frozen or cut off, and of which models that is prepared for."""
        leaders = [node for node in self.coordinators() if node.core._leadership.leads]
        shown = [model for node in leaders for model in node.shown.models]
        ready = [m.name for m in shown if m.state == "serving" and name in m.covered]
        self.silent[name] = frozenset(ready if len(leaders) == 1 else ())

    def is_prepared(self, model: str) -> bool:
        """Whether one device is silent, its loss was prepared for, and all else is as it was."""
        if len(self.silent) != 1:
            return False
        ((name, covered),) = self.silent.items()
        others = {*self.bosses, NAME, "models", *self.devices} - {name}
        alive = all(n.alive and not n.leaving for d, n in self.nodes.items() if d in others)
        return model in covered and alive and all(self.steady(other) for other in others)

    def steady(self, name: str) -> bool:
        """Whether nothing was done to a member, nor to the broker, for a while."""
        if self.struck & {name, "broker"}:
            return False
        last = max(self._touched.get(name, 0.0), self._touched.get("broker", 0.0))
        return self.world.now - last > STEADY_S

    def holder(self, name: str) -> set[str] | None:
        """Return the blobs that a member can send now, None if it is not there."""
        if not self.broker.is_up:
            return None
        if name == NAME:
            return self.client.blobs if self.client.link.connected else None
        node = self.nodes.get(name)
        there = node is not None and node.alive and node.link.connected and not node.frozen
        return node.disk.blobs if node is not None and there else None

    def _overflowed(self) -> None:
        self.world.note("broker: a queue is full")
        self.referee.disturb(self.world.now)

    def has_room(self) -> bool:
        """Whether a device has memory for what is only kept ready."""
        return self.world.random.random() < self.limits.room

    # How long things take ------------------------------------------------------------------

    def job_s(self) -> float:
        """Seconds that an executor's job takes."""
        return 0.01 * self.world.random.random()

    def load_s(self) -> float:
        """Seconds that a loader's job takes."""
        return 0.02 + 0.2 * self.world.random.random()

    def planning_s(self) -> float:
        """Seconds that the planner takes."""
        return 0.05 + self.world.random.random()

    def transfer_s(self) -> float:
        """Seconds until blobs have come."""
        return 0.02 + 0.5 * self.world.random.random()
