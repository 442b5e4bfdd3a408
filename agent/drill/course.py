"""What a drill is to do: which faults, where, on which devices, how often. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast, get_args

from agent.errors import ConfigError
from agent.wire.drill import Fault, Point

FAULTS: tuple[Fault, ...] = get_args(Fault)
POINTS: tuple[Point, ...] = get_args(Point)
MAX_STEP = 100_000


@dataclass(frozen=True, slots=True)
class At:
    """A point of a request: where a device is to fail. `step` counts from 1."""

    point: Point
    step: int = 1

    def __str__(self) -> str:
        """Return it as users write it."""
        return f"step:{self.step}" if self.point == "step" else self.point


@dataclass(frozen=True, slots=True)
class Case:
    """One device that fails once."""

    turn: int
    fault: Fault
    at: At
    device: str

    def __str__(self) -> str:
        """Return it in words."""
        return f"{self.fault} {self.device} at {self.at}"


@dataclass(frozen=True, slots=True)
class Course:
    """The cases of a drill, in turns, under a steady load.

    `seconds` is how long a freeze or a dropped link lasts, `pause_s` how long the fleet serves in
    peace before and after each case, `patience_s` how long a device may take to be back,
    `timeout_s` the time in which a request is to be answered, `interval_s` that between two
    requests (None: twice what one takes), `bound` the largest error that is right, relative to the
    largest output.
    """

    model: str
    devices: tuple[str, ...]
    faults: tuple[Fault, ...] = FAULTS
    points: tuple[At, ...] = (At("step", 2),)
    rounds: int = 1
    seconds: float = 5.0
    pause_s: float = 3.0
    patience_s: float = 90.0
    timeout_s: float = 10.0
    interval_s: float | None = None
    bound: float = 1e-5

    @property
    def cases(self) -> tuple[Case, ...]:
        """The cases in their order: a device's turns are as far apart as they can be."""
        return tuple(
            Case(turn, fault, at, device)
            for turn in range(1, self.rounds + 1)
            for fault in self.faults
            for at in self.points
            for device in self.devices
        )


def read_faults(text: str) -> tuple[Fault, ...]:
    """Return the faults of a list with commas.

    Raises:
        ConfigError: naming what is none.
    """
    return tuple(cast("Fault", _one_of("--faults", name, FAULTS)) for name in _parts(text))


def read_points(text: str) -> tuple[At, ...]:
    """Return the points of a list with commas; a step may have its number.

    Raises:
        ConfigError: naming what is none.
    """
    found = []
    for part in _parts(text):
        name, colon, number = part.partition(":")
        point = cast("Point", _one_of("--point", name, POINTS))
        if colon and (point != "step" or not number.isdecimal() or not 0 < int(number) <= MAX_STEP):
            raise ConfigError(f"--point {part}: a step has a number from 1 on, as in step:2")
        found.append(At(point, int(number) if colon else 1))
    return tuple(found)


def _parts(text: str) -> list[str]:
    return list(dict.fromkeys(part.strip() for part in text.split(",")))


def _one_of(option: str, name: str, names: tuple[str, ...]) -> str:
    if name not in names:
        raise ConfigError(f"{option} {name}: give one of {', '.join(names)}")
    return name
