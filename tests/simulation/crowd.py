"""Clients that want more than a healthy fleet can do: a flood beside a polite one, a hasty crowd.

Played at a schedule's end, from a chance of its own, so that it changes nothing that comes before.
"""

from __future__ import annotations

from functools import partial
from random import Random
from typing import TYPE_CHECKING

from agent.wire.messages import fingerprint
from tests.simulation import compute

if TYPE_CHECKING:
    from tests.simulation.fleet import Fleet
    from tests.simulation.invariants import Asked

POLITE = 3
FLOOD_LIFE_S = 20.0
HASTY_LIFE_S = 0.3
SETTLED_S = 25.0
# How many times as long as alone a polite client may wait for an answer during a flood.
SLOWER, SLACK_S = 3.0, 0.1


class Crowd:
    """A crowd that asks `fleet` for `model`."""

    def __init__(self, fleet: Fleet, model: str) -> None:
        self.fleet = fleet
        self.world = fleet.world
        self.model = model
        self._random = Random(fleet.world.seed)
        self._count = 0

    def play(self) -> None:
        """Let all come, and judge what became of them."""
        world, bound = self.world, self.fleet.limits.max_in_flight
        chance = self._random.random
        alone = [self._alone() for _ in range(POLITE)]
        flood = [self._ask("flood", FLOOD_LIFE_S, 0.1 * chance()) for _ in range(3 * bound)]
        last = self._ask("flood", FLOOD_LIFE_S, 0.11)
        world.run(world.now + 0.12)
        polite = []
        for _ in range(POLITE):
            polite.append(self._ask("door", FLOOD_LIFE_S, 0.0))
            self._wait(polite[-1])
        world.run(world.now + SETTLED_S)
        for asked in polite:
            self._check_polite(asked, max(alone))
        # Where there is little room it may be what gives way to the polite client.
        if bound > POLITE and not (last.given and last.given[0].ok):
            self.fleet.referee.fail("the newest request of a flood has no result")
        served = sum(asked.given[0].ok for asked in flood if asked.given)
        if served < bound // 2:
            self.fleet.referee.fail(f"only {served} of a flood's requests have a result")
        # Where even one alone hardly meets its deadline, those before it are not what it lacks.
        if max(alone) < HASTY_LIFE_S / 2.0:
            self._rush()

    def _rush(self) -> None:
        world, bound = self.world, self.fleet.limits.max_in_flight
        warm = [self._ask("warm", FLOOD_LIFE_S, 0.01 * number) for number in range(4)]
        world.run(world.now + SETTLED_S)
        hasty = [self._ask(f"hasty-{n}", HASTY_LIFE_S, 0.01 * n / bound) for n in range(bound)]
        world.run(world.now + SETTLED_S)
        if len({given.epoch for asked in (*warm, *hasty) for given in asked.given}) > 1:
            # Nothing is known yet of how long the new plan takes.
            return
        codes = [asked.codes[0] for asked in hasty if asked.codes]
        if codes.count("deadline") > codes.count("overloaded") + 2:
            self.fleet.referee.fail(f"requests without a hope were worked on: {codes}")

    def _ask(self, client: str, life_s: float, after_s: float) -> Asked:
        self._count += 1
        picture = self._random.randrange(compute.PICTURES)
        name = f"{client}-{self._count}"
        content = compute.payload(picture, 10_000 + self._count)
        referee, user = self.fleet.referee, self.fleet.client
        referee.sent(self.model, name, picture, content, life_s)
        self.world.after(after_s, partial(user.ask, self.model, name, content, life_s, client))
        return referee.asked[fingerprint(content)]

    def _alone(self) -> float:
        asked = self._ask("door", FLOOD_LIFE_S, 0.0)
        self._wait(asked)
        return self.world.now - asked.at

    def _wait(self, asked: Asked) -> None:
        while not asked.given and self.world.now < asked.at + FLOOD_LIFE_S:
            self.world.run(self.world.now + 0.005)

    def _check_polite(self, asked: Asked, alone_s: float) -> None:
        if not asked.given or not asked.given[0].ok:
            self.fleet.referee.fail(f"a flood took the room of {asked.name}")
        took = asked.given[0].at - asked.at
        if took > SLOWER * alone_s + SLACK_S:
            text = f"{asked.name} took {took:.2f} s in a flood, alone {alone_s:.2f} s"
            self.fleet.referee.fail(text)
