"""`halomq bench` on a fleet of real agents: what it measures, and that it leaves nothing behind."""

from __future__ import annotations

import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from models.vgg16 import build
from tests.field.support import WAIT_S, Field, clean_environment, command, halomq, wait_until

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.field


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("tiny"), size=64, width=8, classes=10)


def benched(field: Field) -> set[str]:
    """Return the strategies for which a model is deployed now."""
    with field.client() as client:
        names = [plan.model for plan in client.plans()]
    return {name.partition("-bench-")[2] for name in names if "-bench-" in name}


def test_bench_measures_every_strategy_and_removes_it(home: Field, tiny: Path) -> None:
    strategies = ["single", "modnn", "deepthings", "halp", "dpfp-paper", "dpfp"]
    told = halomq("bench", tiny, "--requests", 3, "--json", broker=home.broker)
    assert told.status == 0, told.err
    figures = told.json["strategies"]
    assert list(figures) == strategies
    for strategy, found in figures.items():
        assert found["failure"] is None
        assert len(found["devices"]) == (1 if strategy == "single" else len(found["devices"]))
        assert 0 < found["median_ms"] <= found["p95_ms"]
        assert found["throughput_per_s"] > 0
        assert found["predicted_ms"] > 0
        assert found["max_rel_error"] <= 1e-5
        assert found["identical"] == (found["max_rel_error"] == 0)
    assert len(figures["modnn"]["devices"]) == 3
    assert figures["single"]["speedup"] == figures["single"]["throughput_ratio"] == 1
    assert told.json["verdict"]
    assert benched(home) == set()


def test_bench_keeps_several_in_flight_and_tells_it_in_a_table(home: Field, tiny: Path) -> None:
    told = halomq(
        "bench", tiny, "--strategies", "dpfp", "--requests", 5, "--in-flight", 3,
        broker=home.broker,
    )  # fmt: skip
    assert told.status == 0, told.err
    for word in ("3 request(s) in flight", "single", "dpfp", "one device"):
        assert word in told.out


def test_bench_removes_what_it_deployed_when_it_is_interrupted(home: Field, tiny: Path) -> None:
    line = command("bench", tiny, "--strategies", "dpfp", "--requests", 10**6, broker=home.broker)
    with subprocess.Popen(
        line, env=clean_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as running:
        try:
            wait_until(lambda: benched(home) == {"single", "dpfp"}, "the bench's deployments")
            running.send_signal(signal.SIGINT)
            assert running.wait(WAIT_S) == 130
        finally:
            running.kill()
    assert benched(home) == set()


def test_bench_says_when_there_is_nobody(home: Field, tiny: Path) -> None:
    told = halomq("bench", tiny, "--fleet", "elsewhere", broker=home.broker)
    told.check_refused(7, "coordinator")
