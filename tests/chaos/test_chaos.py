"""The short form of `make chaos`: the command itself, with a few kinds of fault."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.chaos.__main__ import main
from tests.conftest import need_mosquitto
from tests.field.support import clean_environment

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.field

# Those that take root are skipped without it. A broker that forgets everything while a device is
# cut off can have a second answer told (docs/reliability.md), so it is not among them.
FAULTS = "kill,cut,freeze,link-down,disk-full"


def test_faults_cost_no_answer(tmp_path: Path) -> None:
    need_mosquitto()
    timing = ["--seconds", "7", "--every", "1.5", "--rate", "6"]
    command = [sys.executable, "-m", "tests.chaos", "--json", "--seed", "5", "--faults", FAULTS]
    folder = ["--folder", str(tmp_path)]
    done = subprocess.run(
        [*command, *timing, *folder, "--devices", "3"],
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    told = json.loads(done.stdout)
    assert told["lost"] == told["wrong"] == told["duplicated"] == 0
    assert told["sent"] == told["exact"] + sum(told["errors"].values()) + told["refused"]
    assert told["exact"] > 0
    assert told["faults"].keys() <= set(FAULTS.split(","))
    assert len(told["faults"]) > 1


def test_faults_that_cannot_be_here_are_skipped_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(SystemExit) as ended:
        main(["--faults", "link-down,out-of-memory"])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert "skipped link-down: it needs root" in told
    assert "skipped out-of-memory: it needs root" in told


def test_an_unknown_fault_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--faults", "kill,flood"])
    assert "no fault 'flood'; there are kill, " in capsys.readouterr().err
