"""Real faults on real processes under load: `python -m tests.chaos --seconds 60 --json`.

Starts a broker, a coordinator and agents of its own on loopback, sends requests at a steady rate
and lets faults strike every few seconds. The status is 0 where each request that the broker
accepted had exactly one answer, a right result or an error, and the fleet was whole in the end.
"""

from __future__ import annotations

import argparse
import json
import secrets
import signal
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

import models
from agent.errors import HaloMQError
from tests.chaos.director import Director
from tests.chaos.faults import FAULTS
from tests.chaos.load import Load
from tests.chaos.machine import ALONE, MemoryGroup, alone, why_not_alone
from tests.chaos.report import failed, figures, tables, window_of
from tests.chaos.site import Site
from tests.field.support import Reference

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MODEL = Path(models.__file__).parent / "defects.onnx"
# A device that was suspected often is held back for minutes.
WHOLE_S = 330.0
# An error may come 9.6 s after the deadline: docs/reliability.md.
GRACE_S = 12.0
QUIET_S = 1.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; return the exit status."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # A shell's background jobs are born deaf to it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    asked = _parser().parse_args(arguments)
    console = Console(stderr=True)
    asked.faults = _possible(asked, console)
    if any(FAULTS[kind].needs == "namespaces" for kind in asked.faults):
        alone(sys.argv[1:] if arguments is None else arguments)
    try:
        with _folder(asked.folder) as folder:
            told = run(asked, folder, console)
    except HaloMQError as error:
        console.print(f"chaos: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        console.print("chaos: interrupted; everything is removed")
        return 128 + signal.SIGINT
    if asked.json:
        sys.stdout.write(json.dumps(told, indent=2) + "\n")
    else:
        for table in tables(told):
            Console().print(table)
    for reason in failed(told):
        console.print(f"broken: {reason}")
    return int(bool(failed(told)))


def run(asked: argparse.Namespace, folder: Path, console: Console) -> dict[str, Any]:
    """Make a site, load it, let faults strike, and return the figures."""
    model = Reference(MODEL, MODEL.stem)
    seed: int = asked.seed
    began = time.monotonic()

    def tell(text: str) -> None:
        console.print(f"[{time.monotonic() - began:6.1f} s] {text}", highlight=False)

    tell(f"seed {seed}; starting {asked.devices} agents in {folder}")
    with Site(folder, asked.devices, alone=asked.alone) as site:
        field = site.field
        field.wait_online()
        field.deploy(model)
        field.wait_for_plan(model.name, site.names)
        address = (site.broker.host, site.broker.port)
        with Load(
            address,
            field.topics,
            model,
            seed=seed,
            rate=asked.rate,
            deadline_s=asked.deadline,
        ) as load:
            director = Director(site, asked.faults, seed=seed, every_s=asked.every, tell=tell)
            director.run(asked.seconds)
            tell("no more faults; waiting for the fleet to be whole and for the last answers")

            def is_whole() -> bool:
                return set(load.devices()) == set(site.names)

            whole = director.settle(is_whole, WHOLE_S)
            director.settle(lambda: False, QUIET_S)
            load.stop()
            director.settle(lambda: not load.open(), asked.deadline + GRACE_S)
        director.settle(lambda: False, 0.0)
    windows = [window_of(strike) for strike in director.strikes]
    told = figures(load.ledger, windows)
    return {
        "seed": seed,
        "seconds": asked.seconds,
        "devices": asked.devices,
        **told,
        "killed_by_kernel": site.killed_by_kernel,
        "whole": whole,
        "ended": site.ended,
        "examples": _examples(load, began),
    }


def _examples(load: Load, began: float) -> dict[str, list[str]]:
    """Return a few requests of each kind that must not be, with when they were sent."""
    ledger = load.ledger
    found = {"lost": ledger.lost(), "wrong": ledger.wrong(), "duplicated": ledger.duplicated()}
    return {
        what: [
            f"{name} sent at {ledger.entries[name].sent - began:.1f} s: "
            f"{', '.join(ledger.entries[name].verdicts) or 'no answer'}"
            for name in names[:5]
            if name in ledger.entries
        ]
        for what, names in found.items()
    }


@contextmanager
def _folder(kept: Path | None) -> Iterator[Path]:
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept
        return
    with tempfile.TemporaryDirectory(prefix="halomq-chaos-", ignore_cleanup_errors=True) as name:
        yield Path(name)


def _possible(asked: argparse.Namespace, console: Console) -> list[str]:
    """Return the faults that can be here; say why others cannot."""
    lacks = {} if asked.alone else {"namespaces": why_not_alone()}
    lacks["groups"] = MemoryGroup.why_not()
    possible = []
    for kind in asked.faults:
        reason = lacks.get(FAULTS[kind].needs or "")
        if reason is None:
            possible.append(kind)
        elif not asked.alone:
            console.print(f"skipped {kind}: {reason}")
    if not possible:
        raise SystemExit(2)
    return possible


def _kinds(text: str) -> list[str]:
    kinds = text.split(",")
    unknown = [kind for kind in kinds if kind not in FAULTS]
    if unknown:
        raise argparse.ArgumentTypeError(f"no fault {unknown[0]!r}; there are {', '.join(FAULTS)}")
    return kinds


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--seconds", type=float, default=60.0, help="how long faults strike")
    add("--seed", type=int, default=secrets.randbelow(10**6), help="of the faults' schedule")
    add("--faults", type=_kinds, default=list(FAULTS), help=f"some of {','.join(FAULTS)}")
    add("--every", type=float, default=4.0, help="seconds from fault to fault, about")
    add("--devices", type=int, default=4, help="how many agents, at least 2")
    add("--rate", type=float, default=4.0, help="requests a second")
    add("--deadline", type=float, default=10.0, help="seconds that a request may take")
    add("--folder", type=Path, help="keep files and logs here, where they are otherwise removed")
    add(ALONE, action="store_true", help=argparse.SUPPRESS)
    add("--json", action="store_true", help="figures for programs")
    return parser


if __name__ == "__main__":
    sys.exit(main())
