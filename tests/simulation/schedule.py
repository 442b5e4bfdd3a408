"""One seed, one schedule: the network's weather, the fleet, requests, faults, and the end.

The end is the same for all: everything heals but what stays dead, the fleet has time to notice,
new requests are answered, and after a long quiet nothing is left over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.simulation import compute
from tests.simulation.broker import Weather
from tests.simulation.client import NAME
from tests.simulation.crowd import Crowd
from tests.simulation.faults import SILENCE_S, Faults
from tests.simulation.fleet import BOSSES, Fleet, Limits
from tests.simulation.invariants import RECOVERY_S
from tests.simulation.world import Violation, World

if TYPE_CHECKING:
    from random import Random

FIRST_S = 4.0
LOAD_S = 30.0
ANSWER_S = 8.0
QUIET_S = 160.0
# One seed of so many ends with a crowd.
CROWDED = 5


@dataclass(frozen=True)
class Outcome:
    """What became of a seed; `broken` is the promise that was, if one was."""

    seed: int
    broken: str | None
    story: list[str]
    trace: list[str]
    events: int
    answers: int


def play(seed: int, *, trace: bool = False) -> Outcome:
    """Run the schedule of a seed from its first to its last event."""
    world = World(seed, trace=trace)
    schedule = Schedule(world)
    broken = None
    try:
        schedule.run()
    except Violation as violation:
        broken = str(violation)
    except Exception as error:
        error.add_note("\n".join([f"seed {seed}", *world.story]))
        raise
    given = sum(len(asked.given) for asked in schedule.fleet.referee.asked.values())
    told = world.trace if world.trace is not None else []
    return Outcome(seed, broken, world.story, told, world.count, given)


class Schedule:
    """The schedule that a world's seed draws."""

    def __init__(self, world: World) -> None:
        self.world = world
        random = world.random
        devices = [f"dev-{'abcd'[n]}" for n in range(random.choice((1, 2, 2, 3, 3, 4)))]
        bosses = BOSSES[: random.choice((1, 1, 2, 2, 3))]
        self.fleet = Fleet(world, _weather(random), devices, bosses, _limits(random))
        self.models = compute.MODELS[: random.choice((1, 1, 1, 2))]
        self.faults = Faults(self.fleet)
        self._marks = 0

    def run(self) -> None:
        """Run it.

        Raises:
            Violation: with the promise that was broken.
        """
        world, fleet = self.world, self.fleet
        random = world.random
        self._begin()
        for _ in range(random.choice((0, 1, 2, 2, 3, 4, 6, 9))):
            world.at(FIRST_S + random.uniform(0.5, LOAD_S), self.faults.strike)
        for _ in range(random.choice((3, 6, 10))):
            world.at(FIRST_S + LOAD_S * random.random(), self._ask)
        world.run(FIRST_S + LOAD_S)
        dead = self._bury()
        self.faults.heal(dead=dead)
        healed = max(world.now + RECOVERY_S, fleet.referee.disturbed_until) + RECOVERY_S
        world.run(healed + SILENCE_S * bool(dead))
        self._finish()

    def _begin(self) -> None:
        world, fleet = self.world, self.fleet
        for name in [*fleet.bosses, *fleet.devices]:
            world.at(world.random.random(), fleet.start, name)
        fleet.client.link.connect()
        for model in self.models:
            version = world.random.choice(compute.VERSIONS)
            world.at(0.5 + world.random.random(), fleet.client.want, model, version)

    def _bury(self) -> set[str]:
        # With at least one working device, service goes on.
        random, devices, bosses = self.world.random, self.fleet.devices, self.fleet.bosses
        count = random.choice((0, 0, 0, 1, 2))
        dead = set(random.sample(devices, min(count, len(devices) - 1)))
        count = random.choice((0, 0, 1, 2))
        buried = set(random.sample(bosses, min(count, len(bosses) - 1)))
        dead |= buried
        if buried:
            # They may have been the only ones that had the newest model's blobs.
            self.world.after(RECOVERY_S, self.fleet.client.again)
        for name in sorted(dead):
            self.world.tell(f"{name}: stays dead")
            if name in self.fleet.nodes and self.fleet.nodes[name].alive:
                self.fleet.nodes[name].kill()
        self.fleet.referee.disturb(self.world.now)
        return dead

    def _ask(self) -> None:
        random = self.world.random
        model = random.choice(list(self.fleet.client.wanted))
        self._marks += 1
        number: int | None = random.randrange(compute.PICTURES)
        content = compute.payload(number or 0, self._marks)
        if random.random() < 0.1:
            number, content = None, f"nonsense {self._marks} ".encode()
        name: str | None = random.choice((f"r{self._marks}", f"r{self._marks}", None, "same"))
        life = random.choice((40.0, 40.0, 40.0, 3.0, 0.5))
        copies = random.choice((1, 1, 2)) if name is None else 1
        for _ in range(copies):
            self.fleet.referee.sent(model, name, number, content, life)
            self.fleet.client.ask(model, name, content, life)

    def _finish(self) -> None:
        world, fleet = self.world, self.fleet
        served = [m for m, version in fleet.client.wanted.items() if version is not None]
        contents = []
        for model in served:
            for name in (f"last-{model}", None):
                self._marks += 1
                content = compute.payload(self._marks % compute.PICTURES, self._marks)
                fleet.referee.sent(model, name, self._marks % compute.PICTURES, content, ANSWER_S)
                fleet.client.ask(model, name, content, ANSWER_S)
                contents.append(content)
                world.run(world.now + 1.0)
        world.run(world.now + ANSWER_S)
        fleet.referee.check_results(contents)
        fleet.referee.check_offers()
        if world.seed % CROWDED == 0 and served:
            Crowd(fleet, served[0]).play()
        world.run(world.now + QUIET_S)
        fleet.referee.check_answered()
        for agent in fleet.agents():
            fleet.referee.check_agent(agent)
        fleet.referee.check_plans(fleet.client.wanted)


def _weather(random: Random) -> Weather:
    return Weather(
        latency_s=random.choice((0.0005, 0.002, 0.01)),
        spike=random.choice((0.0, 0.02, 0.2)),
        again=random.choice((0.0, 0.02, 0.2)),
        dropped=random.choice((0.0, 0.3)),
        overtaking=random.random() < 0.7,
        queue=random.choice((1000, 1000, 60)),
        late_will_s=random.choice((0.0, 0.0, 2.0)),
    )


def _limits(random: Random) -> Limits:
    return Limits(deadline_s=20.0, max_in_flight=random.choice((16, 16, 3)), room=0.9)


__all__ = ["NAME", "Outcome", "Schedule", "play"]
