"""What does the paper's own experiment give? `python -m benchmarks.paper --json --svg FILE`.

arXiv 2207.11293 (ICC 2022) and Computer Networks 214 (2022) say that DPFP accelerates VGG-16 by up
to 73 % and is ahead of MoDNN in all their scenarios. This computes the same comparison with
HaloMQ's planner: the strategies `dpfp-paper`, `modnn` and `single` are planned for equal edge
servers by the paper's cost model (arithmetic over a nominal rate, bytes over a data rate, all
compute and then all exchange), and their programs are timed in lockstep. Nothing is run. Service
reliability is the share of requests that meet a deadline while the channel varies.

Only the abstracts of both papers and of the same authors' HALP could be checked; what they leave
out is assumed, and named in the output (docs/paper.md).
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from agent.demo.models import find_model
from agent.packaging import package_model
from agent.planner import Device
from agent.planner.lockstep import Lockstep, lockstep
from agent.planner.strategies import compile_strategy
from benchmarks.paper_figure import draw

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.planner import Graph
    from agent.wire.manifest import Strategy

STRATEGIES: tuple[Strategy, ...] = ("single", "modnn", "dpfp-paper")
# "Up to 73 %" as a speed-up: if so much less time is needed, or if so much more is done.
READINGS = {"73 % less time": 1 / (1 - 0.73), "73 % faster": 1.73}

# GTX 1080 Ti and Jetson AGX Xavier, by their data sheets: 3,584 and 512 cores that multiply and
# add at 1.582 and 1.377 GHz.
PLATFORMS = {"GTX 1080 Ti": 3584 * 2 * 1.582e9, "Jetson AGX Xavier": 512 * 2 * 1.377e9}
GBIT_PER_S = (1, 10, 40, 100)
SERVERS = (2, 4, 6, 8, 10)

PUBLISHED = (
    "VGG-16, DPFP up to 73 % and ahead of MoDNN in all scenarios (both abstracts)",
    "servers without and with different rates, GPUs, ResNet-50 up to 71 % (journal's abstract)",
    "the platforms GTX 1080 Ti and Jetson AGX Xavier (abstract of HALP, by the same authors)",
)
ASSUMED = (
    "that DPFP was tested on HALP's platforms, and that their peak rates are the nominal ones",
    f"{', '.join(map(str, SERVERS))} equal edge servers",
    f"links of {', '.join(map(str, GBIT_PER_S))} Gbit/s in each direction, free of latency",
    "VGG-16 at 224x224 in float32, its fully connected layers on one server (MoDNN shares them)",
    "a picture uploaded to all servers at once; what it takes is counted for reliability only",
    "MoDNN's servers keep the rows that they computed, which MoDNN sends to them again",
)


@dataclass(frozen=True)
class Channel:
    """A time-variant channel: each request has its own rates, that of the upload and of the links.

    Rates are normally distributed about their means, as a share of which `deviation` is given,
    and never less than `least` of it.
    """

    upload_bytes_per_s: float = 100e6 / 8
    upload_bytes: int = 224 * 224 * 3
    deviation: float = 0.3
    least: float = 0.1
    requests: int = 10_000
    seed: int = 2207_11293
    servers: int = 4
    gbit_per_s: float = 40

    def factors(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Draw the rates of every request as shares of their means; shape (2, requests)."""
        drawn = np.random.default_rng(self.seed).standard_normal((2, self.requests))
        return np.maximum(1 + self.deviation * drawn, self.least)

    def seconds(self, times: Lockstep) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return how long each request takes, the upload included; shape (requests,)."""
        upload, links = self.factors()
        sending = self.upload_bytes / self.upload_bytes_per_s
        return np.asarray(sending / upload + times.compute_s + times.exchange_s / links)

    def assumed(self) -> str:
        """Say what is assumed, for people."""
        return (
            f"reliability: {self.servers} servers at {self.gbit_per_s:g} Gbit/s; a picture of "
            f"{self.upload_bytes:,} bytes uploaded at {self.upload_bytes_per_s * 8e-6:g} Mbit/s; "
            f"both rates normally distributed for each request, with a deviation of "
            f"{self.deviation:.0%} and at least {self.least:.0%}; {self.requests:,} requests, "
            f"seed {self.seed}"
        )


class Scenario(NamedTuple):
    """One fleet of the comparison, with the milliseconds that each strategy takes."""

    platform: str
    gbit_per_s: float
    servers: int
    milliseconds: dict[str, float]
    used: int

    @property
    def speedup(self) -> float:
        """How many times faster DPFP is than a single server."""
        return self.milliseconds["single"] / self.milliseconds["dpfp-paper"]


def fleet(flops_per_s: float, gbit_per_s: float, servers: int) -> list[Device]:
    """Return equal edge servers as the paper's cost model knows them."""
    return [
        Device(
            f"server-{number + 1}",
            flops_per_s,
            memory_bytes_per_s=inf,
            link_bytes_per_s=gbit_per_s * 1e9 / 8,
            link_latency_s=0.0,
            step_overhead_s=0.0,
        )
        for number in range(servers)
    ]


def times(graph: Graph, strategy: Strategy, devices: Sequence[Device]) -> tuple[Lockstep, int]:
    """Return what a request takes in lockstep, and how many servers take part."""
    plan = compile_strategy(strategy, graph, devices, model_name="paper")
    return lockstep(plan.programs, devices), len(plan.devices)


def compare(
    graph: Graph,
    platforms: dict[str, float],
    gbit_per_s: Sequence[float],
    servers: Sequence[int],
) -> list[Scenario]:
    """Time the strategies on every fleet."""
    scenarios = []
    for platform, flops in platforms.items():
        for rate in gbit_per_s:
            for count in servers:
                found: dict[str, tuple[Lockstep, int]]
                found = {s: times(graph, s, fleet(flops, rate, count)) for s in STRATEGIES}
                taken = {name: clock.seconds * 1e3 for name, (clock, _) in found.items()}
                scenarios.append(Scenario(platform, rate, count, taken, found["dpfp-paper"][1]))
    return scenarios


def reliability(
    graph: Graph, flops_per_s: float, channel: Channel, deadlines_ms: Sequence[float]
) -> dict[str, list[float]]:
    """Return for each strategy the share of requests within each deadline."""
    devices = fleet(flops_per_s, channel.gbit_per_s, channel.servers)
    shares: dict[str, list[float]] = {}
    for strategy in STRATEGIES:
        taken = channel.seconds(times(graph, strategy, devices)[0])
        shares[strategy] = [float((taken * 1e3 <= limit).mean()) for limit in deadlines_ms]
    return shares


def run(
    graph: Graph,
    *,
    platforms: dict[str, float] | None = None,
    gbit_per_s: Sequence[float] = GBIT_PER_S,
    servers: Sequence[int] = SERVERS,
    channel: Channel | None = None,
) -> dict[str, Any]:
    """Compute all figures as plain data; the same ones every time."""
    platforms, channel = platforms or PLATFORMS, channel or Channel()
    scenarios = compare(graph, platforms, gbit_per_s, servers)
    deadlines = [2.5 * step for step in range(2, 25)]
    best = max(scenarios, key=lambda scenario: scenario.speedup)
    return {
        "published": list(PUBLISHED),
        "assumed": [*ASSUMED, channel.assumed()],
        "readings": READINGS,
        "scenarios": [_as_json(scenario) for scenario in scenarios],
        "best": _as_json(best),
        "reached_with": {name: _reached(scenarios, speedup) for name, speedup in READINGS.items()},
        "always_ahead_of_modnn": all(
            s.milliseconds["dpfp-paper"] < s.milliseconds["modnn"] for s in scenarios
        ),
        "deadlines_ms": deadlines,
        "reliability": {
            name: reliability(graph, flops, channel, deadlines) for name, flops in platforms.items()
        },
    }


def _as_json(scenario: Scenario) -> dict[str, Any]:
    return {
        "platform": scenario.platform,
        "gbit_per_s": scenario.gbit_per_s,
        "servers": scenario.servers,
        "servers_used": scenario.used,
        "ms": {name: round(taken, 4) for name, taken in scenario.milliseconds.items()},
        "speedup": round(scenario.speedup, 3),
        "less_time": round(1 - 1 / scenario.speedup, 4),
    }


def _reached(scenarios: Sequence[Scenario], speedup: float) -> dict[str, int | None]:
    """Return for each platform and rate the fewest servers that reach a speed-up, if any do."""
    reached: dict[str, int | None] = {}
    for scenario in sorted(scenarios, key=lambda scenario: scenario.servers):
        name = f"{scenario.platform}, {scenario.gbit_per_s:g} Gbit/s"
        if reached.setdefault(name, None) is None and scenario.speedup >= speedup:
            reached[name] = scenario.servers
    return reached


def _print(figures: dict[str, Any]) -> None:
    console = Console()
    table = Table(title="VGG-16 by the paper's cost model, milliseconds")
    for column in ("platform", "Gbit/s", "servers", *STRATEGIES, "speed-up"):
        justify: Literal["left", "right"] = "left" if column == "platform" else "right"
        table.add_column(column, justify=justify, no_wrap=True)
    for scenario in figures["scenarios"]:
        table.add_row(
            scenario["platform"],
            f"{scenario['gbit_per_s']:g}",
            str(scenario["servers"]),
            *(f"{scenario['ms'][name]:.2f}" for name in STRATEGIES),
            f"{scenario['speedup']:.2f}x",
        )
    console.print(table)
    for name, reached in figures["reached_with"].items():
        console.print(f"{name} ({READINGS[name]:.2f}x) takes at least this many servers:")
        for place, count in reached.items():
            console.print(f"  {place}: {count or 'not reached'}", highlight=False)
    for kind in ("published", "assumed"):
        console.print(f"{kind}:")
        for line in figures[kind]:
            console.print(f"  {line}", highlight=False)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--svg", type=Path, help="draw the figures into this file")
    arguments = parser.parse_args()
    figures = run(package_model(find_model("vgg16", None).model).graph)
    if arguments.svg is not None:
        arguments.svg.write_text(draw(figures))
    if arguments.json:
        print(json.dumps(figures, indent=2))
    else:
        _print(figures)


if __name__ == "__main__":
    main()
