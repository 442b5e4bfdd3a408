"""Run seeds: `python -m tests.simulation --seed N --trace`, or `--seeds A:B --jobs 2` for hours."""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING

from tests.simulation.schedule import Outcome, play

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

CHUNK = 50
TOLD_EVERY_S = 30.0


def main() -> int:
    """Run what the command line asks for; return the number of seeds that broke a promise."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--seed", type=int, help="run one seed and print its schedule")
    which.add_argument("--seeds", metavar="A:B", help="run seeds A to B - 1")
    parser.add_argument("--trace", action="store_true", help="print every message of the seed")
    parser.add_argument("--jobs", type=int, default=1, help="how many processes")
    parser.add_argument("--keep-going", action="store_true", help="go on after a failure")
    arguments = parser.parse_args()
    if arguments.seed is not None:
        outcome = play(arguments.seed, trace=arguments.trace)
        _say(outcome.trace if arguments.trace else outcome.story)
        _say([f"broken: {outcome.broken}" if outcome.broken else "every promise was kept"])
        return int(outcome.broken is not None)
    start, _, stop = arguments.seeds.partition(":")
    return _soak(range(int(start), int(stop)), arguments.jobs, keep_going=arguments.keep_going)


def _soak(seeds: range, jobs: int, *, keep_going: bool) -> int:
    began = told = time.monotonic()
    failures = done = answers = 0
    for outcome in _outcomes(seeds, jobs):
        done += 1
        answers += outcome.answers
        if outcome.broken is not None:
            failures += 1
            _say([f"seed {outcome.seed}: {outcome.broken}", *outcome.story])
            if not keep_going:
                break
        now = time.monotonic()
        if now - told > TOLD_EVERY_S:
            told = now
            _say([f"{done} seeds in {now - began:.0f} s, {failures} broke a promise"])
    took = time.monotonic() - began
    _say([f"{done} seeds, {answers} answers, {took:.0f} s: {failures} broke a promise"])
    return failures


def _outcomes(seeds: range, jobs: int) -> Iterator[Outcome]:
    if jobs == 1:
        yield from map(play, seeds)
        return
    with ProcessPoolExecutor(jobs) as pool:
        try:
            yield from pool.map(play, seeds, chunksize=CHUNK)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _say(lines: Iterable[str]) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(min(main(), 1))
