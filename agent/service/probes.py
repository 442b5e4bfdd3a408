"""What an agent's threads do for a calibration: read probes, run them, keep what they took.

Timings are kept in files, named by what they hold for, so that a device measures a model once.
"""

from __future__ import annotations

import os
from hashlib import blake2b
from typing import TYPE_CHECKING

import msgspec

from agent.adapters.mapping import trim_heap
from agent.adapters.probing import Prober
from agent.wire.calibration import Timing, Timings, decode_probes
from agent.worker import events as ev

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agent.adapters.runtime import RuntimeOptions
    from agent.adapters.store import BlobStore
    from agent.service.pacing import Pacer
    from agent.wire.calibration import Probe

KEPT_FILES = 256


class ProbeJobs:
    """The probes that are read, and the timings in `folder`.

    `run` belongs to the executor's thread, `read` and `keep` to the loader's; probes are run once
    they are read.
    """

    def __init__(
        self,
        store: BlobStore,
        folder: Path,
        options: RuntimeOptions,
        clock: Callable[[], float],
        pacer: Pacer,
    ) -> None:
        self._store = store
        self._folder = folder
        self._prober = Prober(options, clock)
        self._clock = clock
        self._pacer = pacer
        self._probes: dict[str, tuple[Probe, ...]] = {}

    def read(self, job: ev.ReadProbes, runtime: str) -> ev.ProbesRead:
        """Read and check a model's probes, and look for what they took here before."""
        digest = job.probes.digest
        probes = decode_probes(self._store.read(digest)).probes
        known = self._known(digest, runtime)
        if known is None:
            self._probes[digest] = probes
        return ev.ProbesRead(job.model, digest, len(probes), runtime, known)

    def run(self, job: ev.RunProbe) -> ev.ProbeRan:
        """Run one probe; its timing is that of the device which this one plays."""
        started = self._clock()
        with self._pacer.alone():
            timing = self._prober.run(self._probes[job.probes][job.index])
        slowness = self._pacer.slowness
        timing = Timing(timing.run_s * slowness, timing.kernels_s * slowness)
        return ev.ProbeRan(job.model, job.probes, job.index, timing, self._clock() - started)

    def keep(self, timings: Timings) -> None:
        """Forget the probes and write down their timings; the oldest files make room."""
        self._probes.pop(timings.probes, None)
        trim_heap()
        self._folder.mkdir(parents=True, exist_ok=True)
        file = self._file(timings.probes, timings.runtime)
        partial = file.with_suffix(".tmp")
        with partial.open("wb") as stream:
            stream.write(msgspec.json.encode(timings))
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(file)
        files = sorted(self._folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
        for old in files[:-KEPT_FILES]:
            old.unlink()

    def _known(self, probes: str, runtime: str) -> Timings | None:
        # A file that is damaged, or of another version, is as good as none: probes run again.
        try:
            content = self._file(probes, runtime).read_bytes()
            found = msgspec.json.decode(content, type=Timings)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            return None
        return found if (found.probes, found.runtime) == (probes, runtime) else None

    def _file(self, probes: str, runtime: str) -> Path:
        name = blake2b(
            f"{probes} {runtime} {self._pacer.slowness}".encode(), digest_size=16
        ).hexdigest()
        return self._folder / f"{name}.json"
