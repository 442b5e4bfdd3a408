"""The table of faults: what each does to its victim, for how long, and how it is undone."""

from __future__ import annotations

from dataclasses import dataclass
from signal import SIGCONT, SIGKILL, SIGSTOP, SIGTERM, Signals
from typing import TYPE_CHECKING, Literal

from tests.chaos.machine import MemoryGroup, grant_memory, refuse_memory

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from tests.chaos.site import Site

    Undo = Callable[[], None]

Target = Literal["agent", "coordinator", "broker"]
Need = Literal["namespaces", "groups"]


@dataclass(frozen=True)
class Fault:
    """A kind of fault: `strike` begins it on a victim and returns how it is ended.

    `hold_s` is the range of its length. `returns`: service is interrupted until the end of the
    fault, so recovery counts from there. `needs` is what of tests/chaos/machine.py it takes.
    """

    kind: str
    target: Target
    hold_s: tuple[float, float]
    strike: Callable[[Site, str, Random], Undo]
    returns: bool = False
    needs: Need | None = None


def _kill(site: Site, victim: str, _random: Random) -> Undo:
    site.hold_down(victim, SIGKILL)
    return lambda: site.let_go(victim)


def _leave(site: Site, victim: str, _random: Random) -> Undo:
    site.hold_down(victim, SIGTERM)
    return lambda: site.let_go(victim)


def _upgrade(site: Site, victim: str, _random: Random) -> Undo:
    # Started again the moment it has ended, as `systemctl restart` does.
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


def _pull(site: Site, victim: str, _random: Random) -> Undo:
    site.cables[victim].pull()
    return site.cables[victim].plug


def _fill(site: Site, victim: str, _random: Random) -> Undo:
    site.disks[victim].fill()
    return site.disks[victim].empty


def _out_of_memory(site: Site, victim: str, _random: Random) -> Undo:
    group = MemoryGroup(victim)
    site.excused.add(victim)
    process = site.fleet.processes[victim]
    if process.poll() is None:
        group.take(process.pid)

    def undo() -> None:
        if group.killed:
            site.killed_by_kernel += 1
        else:
            site.excused.discard(victim)
        group.remove()

    return undo


def _no_memory(site: Site, victim: str, _random: Random) -> Undo:
    process = site.fleet.processes[victim]
    if process.poll() is not None:
        return lambda: None
    # To end is one way to cope with it.
    site.excused.add(victim)
    refuse_memory(process.pid)

    def undo() -> None:
        site.tend()
        site.excused.discard(victim)
        grant_memory(process.pid)

    return undo


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
        Fault("link-down", "agent", (0.5, 8.0), _pull, needs="namespaces"),
        Fault("link-down-long", "agent", (16.0, 20.0), _pull, needs="namespaces"),
        Fault("disk-full", "agent", (4.0, 10.0), _fill, needs="namespaces"),
        Fault("out-of-memory", "agent", (3.0, 5.0), _out_of_memory, needs="groups"),
        Fault("no-memory", "agent", (1.0, 4.0), _no_memory),
        Fault("coordinator", "coordinator", (0.5, 6.0), _kill),
        Fault(
            "broker-restart", "broker", (0.2, 3.0), _broker(SIGTERM, keeps_state=True), returns=True
        ),
        Fault(
            "broker-kill", "broker", (0.2, 3.0), _broker(SIGKILL, keeps_state=True), returns=True
        ),
        Fault(
            "broker-lost", "broker", (0.2, 3.0), _broker(SIGKILL, keeps_state=False), returns=True
        ),
    )
}
