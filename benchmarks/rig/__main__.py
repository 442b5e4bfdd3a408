"""Measure a fleet of emulated devices on this machine: `python -m benchmarks.rig --devices 4`.

Needs Linux and root. See docs/rig.md for what is emulated and how to read the figures. The status
is 3 where this machine was too busy to play the devices: then there are no figures.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from typing import TYPE_CHECKING, Any

from agent.errors import ConfigError, HaloMQError
from benchmarks.rig.leftovers import remove_leftovers, rig_folder
from benchmarks.rig.measure import Setup, measure
from benchmarks.rig.network import LINKS

if TYPE_CHECKING:
    from collections.abc import Sequence

DEVICES = 4


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; return the exit status."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    parsed = _parser().parse_args(arguments)
    try:
        for folder in remove_leftovers():
            sys.stderr.write(f"removed {folder} of a rig that was killed\n")
        if parsed.clean:
            return 0
        setup = _setup(parsed)
        with rig_folder() as folder:
            figures = measure(setup, folder)
    except HaloMQError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    print(json.dumps(figures, indent=2) if parsed.json else table(figures))
    return 0


def table(figures: dict[str, Any]) -> str:
    """Return figures for people."""
    return "\n".join(f"{name:22} {value}" for name, value in figures.items())


def slowness_of(text: str, devices: int | None) -> tuple[float, ...]:
    """Return each device's slowness from "5" or "1,1,2,4".

    Raises:
        ConfigError: if it is no such list, or not one for this number of devices.
    """
    try:
        factors = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--slowness {text}: numbers of at least 1, with commas") from None
    if not all(1 < factor <= 1000 for factor in factors):  # noqa: PLR2004 - as in agent/config.py
        raise ConfigError(f"--slowness {text}: each must be above 1, at most 1000")
    if len(factors) == 1:
        return factors * (DEVICES if devices is None else devices)
    if devices not in {None, len(factors)}:
        raise ConfigError(f"--slowness names {len(factors)} devices, --devices {devices}")
    return factors


def _setup(parsed: argparse.Namespace) -> Setup:
    return Setup(
        model=parsed.model,
        slowness=slowness_of(parsed.slowness, parsed.devices),
        rate=parsed.rate,
        strategy=parsed.strategy,
        objective=parsed.objective,
        halos=parsed.halos,
        in_flight=parsed.in_flight,
        requests=parsed.requests,
    )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rig",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", default="vgg16", help="vgg16, defects, a model of the zoo, or an ONNX file")
    add("--devices", type=_positive, help=f"how many, by default {DEVICES} or as in --slowness")
    add("--rate", choices=list(LINKS), default="1gbit", help="of every link, each direction")
    add("--slowness", default="10", help="how many times slower each is: 5, or 1,1,2,4")
    add("--strategy", default="dpfp", help="how the model is split")
    add("--objective", default="latency", help="latency or throughput")
    add("--halos", default="lossless", help="lossless, plain or half: how halos may travel")
    add("--in-flight", type=_positive, default=1, help="requests at a time, for throughput")
    add("--requests", type=_positive, default=8, help="requests that are measured")
    add("--json", action="store_true", help="figures for programs")
    add("--clean", action="store_true", help="only remove what killed rigs left")
    return parser


if __name__ == "__main__":
    sys.exit(main())
