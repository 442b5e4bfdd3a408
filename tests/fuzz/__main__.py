"""Attack live services for a while: `python -m tests.fuzz --seconds 600 [--seed N]`."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from random import Random

import psutil

from tests.fuzz.attack import SHOTS, Attack

TOLD_EVERY_S = 30.0
MIB = 1 << 20


def main() -> int:
    """Run what the command line asks for; return 1 where something went wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long")
    parser.add_argument("--seed", type=int, default=0, help="of the first volley")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Attack(Path(folder)) as attack:
        return _soak(attack, arguments.seed, arguments.seconds)


def _soak(attack: Attack, seed: int, seconds: float) -> int:
    process = psutil.Process()
    began = told = time.monotonic()
    while time.monotonic() - began < seconds:
        random = Random(seed)
        try:
            for _ in range(SHOTS):
                attack.shoot(random)
            attack.check_serves()
            attack.check_answered()
        except AssertionError as error:
            _say(f"seed {seed}, after {attack.shots} messages: {error}")
            return 1
        seed += 1
        if time.monotonic() - told > TOLD_EVERY_S:
            told = time.monotonic()
            rss = process.memory_info().rss // MIB
            _say(f"{attack.shots} messages in {told - began:.0f} s, {rss} MiB")
    rss = process.memory_info().rss // MIB
    _say(f"{attack.shots} messages up to seed {seed - 1}: nothing broke; {rss} MiB")
    return 0


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
