"""The rig as a whole: what it reports, what it refuses, and what a killed one leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from agent.errors import ConfigError
from benchmarks.rig.__main__ import main, slowness_of
from benchmarks.rig.leftovers import LOCK, remove_leftovers, rig_folder
from benchmarks.rig.measure import OvercommittedError, refuse_overcommitted
from benchmarks.rig.subject import Subject
from models import zoo
from tests.conftest import need_mosquitto
from tests.rig.test_network import needs_network

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WAIT_S = 60.0
KEYS = {
    "emulated",
    "speedup",
    "single_ms",
    "measured_ms",
    "predicted_ms",
    "throughput_ratio",
    "max_rel_error",
    "cpu_load",
    "late_share",
    "link_up_mbit",
}


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of temporary files of this test's own."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model, quick enough for slow devices."""
    return zoo.build("espcn", tmp_path_factory.mktemp("zoo"), small=True)


def rig(model: Path, *arguments: str) -> list[str]:
    return [
        *(sys.executable, "-m", "benchmarks.rig", "--model", str(model), "--json"),
        *("--rate", "100mbit", "--requests", "2", *arguments),
    ]


@needs_network
def test_a_run_reports_exact_answers_of_an_emulated_fleet(scratch: Path, model: Path) -> None:
    need_mosquitto()
    done = subprocess.run(
        rig(model, "--slowness", "20,30", "--in-flight", "2"),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == OvercommittedError.exit_code:
        # What a busy machine must answer, and nothing else.
        assert "overcommitted" in done.stderr
        assert not done.stdout
        return
    assert done.returncode == 0, done.stderr
    figures: dict[str, Any] = json.loads(done.stdout)
    assert figures.keys() >= KEYS
    assert figures["emulated"] is True
    assert figures["slowness"] == [20, 30]
    assert figures["devices"] == 2
    assert figures["max_rel_error"] <= 1e-5
    assert figures["speedup"] == pytest.approx(
        figures["single_ms"] / figures["measured_ms"], rel=0.01
    )
    assert figures["throughput_ratio"] > 0
    assert 0 < figures["cpu_load"] <= 0.85
    assert figures["late_share"] <= 0.02
    assert figures["link_up_mbit"] <= 100
    assert not list(scratch.glob("halomq-*"))


@needs_network
def test_a_killed_rig_takes_everything_along_but_its_folder(scratch: Path, model: Path) -> None:
    need_mosquitto()
    process = subprocess.Popen(rig(model, "--slowness", "20"), stdout=subprocess.DEVNULL)
    try:
        started = list(_children(process.pid, 4))
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    gone, alive = psutil.wait_procs(started, WAIT_S)
    assert not alive
    assert len(gone) == 4
    (folder,) = scratch.glob("halomq-rig-*")
    assert main(["--clean"]) == 0
    assert not folder.exists()


def _children(pid: int, count: int) -> Iterator[psutil.Process]:
    """Yield a rig's first `count` processes, once they run what they are to run."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        children = [c for c in psutil.Process(pid).children(recursive=True) if _serves(c)]
        if len(children) >= count:
            yield from children[:count]
            return
        time.sleep(0.05)
    raise AssertionError("the rig starts no fleet")


def _serves(process: psutil.Process) -> bool:
    try:
        return bool({"agent", "-c"} & set(process.cmdline())) and process.name() != "setpriv"
    except psutil.NoSuchProcess:
        # The rig's tools come and go meanwhile.
        return False


def test_a_folder_is_left_over_only_when_its_rig_is_gone(tmp_path: Path) -> None:
    dead = tmp_path / "halomq-rig-dead"
    dead.mkdir()
    (dead / LOCK).touch()
    other = tmp_path / "halomq-demo"
    other.mkdir()
    with rig_folder(tmp_path) as mine:
        assert remove_leftovers(tmp_path) == [dead]
        assert mine.is_dir()
        assert not dead.exists()
    assert not mine.exists()
    assert other.is_dir()


def test_figures_of_an_overcommitted_machine_are_refused() -> None:
    refuse_overcommitted(0.84, 0.019)
    with pytest.raises(OvercommittedError, match="load 86%") as told:
        refuse_overcommitted(0.86, 0.0)
    assert told.value.exit_code == 3
    with pytest.raises(OvercommittedError, match=r"steps too late 3\.0%"):
        refuse_overcommitted(0.1, 0.03)


def test_slowness_is_one_for_all_or_one_each() -> None:
    assert slowness_of("5", None) == (5, 5, 5, 5)
    assert slowness_of("5", 2) == (5, 5)
    assert slowness_of("2,2.5,4", None) == (2, 2.5, 4)
    for text, devices in (("2,4", 3), ("1", 2), ("fast", 2), ("2,,4", None), ("1001", 1)):
        with pytest.raises(ConfigError, match="slowness"):
            slowness_of(text, devices)


def test_a_wish_that_cannot_be_met_is_refused() -> None:
    with pytest.raises(ConfigError, match="--strategy"):
        Subject.find("defects", strategy="by-astrology")
    assert Subject.find("defects", strategy="dpfp", objective="latency").name == "defects"
