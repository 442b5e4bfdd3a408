"""Jobs: spares are loaded where there is memory, and a plan runs what was loaded as one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from agent.adapters.runtime import RuntimeOptions
from agent.adapters.store import BlobStore
from agent.errors import ConfigError
from agent.service.jobs import Jobs
from agent.service.pacing import Pacer
from agent.wire.manifest import Manifest, encode_manifest
from agent.wire.program import blob_ref, encode_program
from agent.worker import events as ev
from tests.adapters.test_compute import FULL, held, program, scale_segment

if TYPE_CHECKING:
    from pathlib import Path

    from agent.wire.program import Program

KEY = ev.RequestKey("m", "r", "0" * 32)
WHOLE = ((0, 6), (0, 5))


class Bench:
    """Jobs over a store with one program; `room` is how many bytes spares may take."""

    def __init__(self, folder: Path, room: int) -> None:
        store = BlobStore(folder, 1 << 20)
        segment, blobs = scale_segment(2, 3.0)
        self.program: Program = program([segment])
        contents = [
            *blobs.values(),
            encode_program(self.program),
            encode_manifest(Manifest("tensor")),
        ]
        for content in contents:
            store.put(blob_ref(content).digest, content)
        self.refs = [blob_ref(content) for content in contents[-2:]]
        self.jobs = Jobs(
            store,
            RuntimeOptions(),
            max_payload_bytes=1 << 20,
            clock=lambda: 0.0,
            pacer=Pacer(),
            room=lambda: room,
        )

    def load(self) -> ev.Loaded:
        self.jobs.read(ev.ReadPlan("spare", *self.refs))
        return self.jobs.load_spare("spare", self.program)

    def run(self, plan: str) -> object:
        done = self.jobs.run(ev.Run(KEY, plan, 0, ((held(WHOLE),),)))
        return done.arrays[0].tolist()


def test_a_plan_runs_what_was_loaded_as_a_spare_also_once_that_is_given_up(tmp_path: Path) -> None:
    bench = Bench(tmp_path, room=20)
    assert bench.load() == ev.Loaded("spare")
    bench.jobs.adopt("plan", "spare")
    bench.jobs.unload("spare")
    assert bench.run("plan") == (FULL[:2] * 3).tolist()
    with pytest.raises(KeyError):
        bench.run("spare")


def test_a_spare_for_which_there_is_no_memory_is_not_loaded(tmp_path: Path) -> None:
    bench = Bench(tmp_path, room=19)
    with pytest.raises(ConfigError, match=r"memory.*runtime\.memory_limit_mb"):
        bench.load()


def test_a_spare_that_shares_all_with_what_is_loaded_needs_no_memory(tmp_path: Path) -> None:
    bench = Bench(tmp_path, room=0)
    bench.jobs.load("plan", bench.program)
    assert bench.load() == ev.Loaded("spare")
