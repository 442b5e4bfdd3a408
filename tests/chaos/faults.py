"""The table of faults: what each does to its victim, for how long, and how it is undone."""

from __future__ import annotations

from dataclasses import dataclass
from signal import SIGCONT, SIGKILL, SIGSTOP, SIGTERM, Signals
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from tests.chaos.site import Site

    Undo = Callable[[], None]

Target = Literal["agent", "coordinator", "broker"]


@dataclass(frozen=True)
class Fault:
    """A kind of fault: `strike` begins it on a victim and returns how it is ended.

    `hold_s` is the range of its length. `returns`: service is interrupted until the end of the
    fault, so recovery counts from there.
    """

    kind: str
    target: Target
    hold_s: tuple[float, float]
    strike: Callable[[Site, str, Random], Undo]
    returns: bool = False


def _kill(site: Site, victim: str, _random: Random) -> Undo:
    site.hold_down(victim, SIGKILL)
    return lambda: site.let_go(victim)


def _leave(site: Site, victim: str, _random: Random) -> Undo:
    site.hold_down(victim, SIGTERM)
    return lambda: site.let_go(victim)


def _upgrade(site: Site, victim: str, _random: Random) -> Undo:
    # Started again the moment it has ended, as `systemctl restart` does.
    site.excused.add(victim)
    site.send(victim, SIGTERM)
    return lambda: None


def _freeze(site: Site, victim: str, _random: Random) -> Undo:
    site.send(victim, SIGSTOP)
    return lambda: site.send(victim, SIGCONT)


def _delay(site: Site, victim: str, random: Random) -> Undo:
    site.proxies[victim].delay(random.uniform(0.05, 0.4))
    return site.proxies[victim].heal


def _stall(site: Site, victim: str, random: Random) -> Undo:
    up, down = random.choice([(True, True), (True, False), (False, True)])
    site.proxies[victim].stall(up=up, down=down)
    return site.proxies[victim].heal


def _cut(site: Site, victim: str, _random: Random) -> Undo:
    site.proxies[victim].cut()
    return site.proxies[victim].heal


def _half_close(site: Site, victim: str, _random: Random) -> Undo:
    site.proxies[victim].half_close()
    return site.proxies[victim].heal


def _broker(how: Signals, *, keeps_state: bool) -> Callable[[Site, str, Random], Undo]:
    def strike(site: Site, _victim: str, _random: Random) -> Undo:
        site.end_broker(how)
        return lambda: site.start_broker(keeps_state=keeps_state)

    return strike


FAULTS: dict[str, Fault] = {
    fault.kind: fault
    for fault in (
        Fault("kill", "agent", (1.0, 5.0), _kill),
        Fault("leave", "agent", (1.0, 5.0), _leave),
        Fault("upgrade", "agent", (1.0, 1.0), _upgrade),
        Fault("freeze", "agent", (0.3, 4.0), _freeze),
        Fault("freeze-long", "agent", (16.0, 18.0), _freeze),
        Fault("delay", "agent", (1.0, 4.0), _delay),
        Fault("stall", "agent", (0.5, 6.0), _stall),
        Fault("cut", "agent", (0.0, 4.0), _cut),
        Fault("half-close", "agent", (0.5, 4.0), _half_close),
        Fault("coordinator", "coordinator", (0.5, 6.0), _kill),
        Fault("broker-restart", "broker", (0.2, 3.0), _broker(SIGTERM, keeps_state=True), True),
        Fault("broker-kill", "broker", (0.2, 3.0), _broker(SIGKILL, keeps_state=True), True),
        Fault("broker-lost", "broker", (0.2, 3.0), _broker(SIGKILL, keeps_state=False), True),
    )
}
