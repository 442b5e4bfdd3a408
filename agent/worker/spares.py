"""Spares: programs that are loaded in advance, for the plans after a device's loss.

Rules: their blobs are fetched first; then one at a time is read and loaded, once nothing was to be
done for `QUIET_S`, or after `PATIENCE_S` all the same; each that is ready is told to the
coordinator, which may then announce a plan of it without asking. A spare is known by its program
and manifest, not by a plan: whatever plan has it is ready at once. One that cannot be loaded, for
want of memory perhaps, is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from agent.wire.messages import Ready
from agent.worker.events import (
    CancelFetch,
    Effect,
    Event,
    Fetch,
    Fetched,
    FetchFailed,
    Loaded,
    LoadSpare,
    Log,
    PlanFailed,
    PlanRead,
    ReadPlan,
    Tell,
    Unload,
)

if TYPE_CHECKING:
    from agent.wire.messages import PlanHeader, Standby
    from agent.wire.program import BlobRef, Program

QUIET_S = 0.5
PATIENCE_S = 30.0
_NAMES = "spare/"


class Stage(Enum):
    """How far a spare is."""

    BLOBS = "fetching blobs"
    WAITING = "waiting for its turn"
    READING = "reading the program"
    LOADING = "loading segments"
    READY = "ready"


@dataclass(slots=True)
class Spare:
    """A program that is kept ready; `name` is what it is called in effects."""

    name: str
    ref: BlobRef
    stage: Stage = Stage.BLOBS
    program: Program | None = None
    manifest: Any = None


class Spares:
    """What device `device` is to keep ready of each model, in its life `session`."""

    def __init__(self, device: str, session: str) -> None:
        self._device = device
        self._session = session
        self._standby: dict[str, Standby] = {}
        self._spares: dict[str, list[Spare]] = {}
        self._due = 0.0
        self._idle_since: float | None = None

    @property
    def models(self) -> set[str]:
        """The models that spares are kept for."""
        return set(self._standby)

    def __contains__(self, model: str) -> bool:
        return model in self._standby

    @property
    def loading(self) -> bool:
        """Whether one is being read or loaded."""
        return any(s.stage in (Stage.READING, Stage.LOADING) for s in self._all())

    def owns(self, event: Event) -> bool:
        """Tell whether what was fetched, read or loaded is a spare."""
        match event:
            case (
                Fetched(name) | FetchFailed(name) | PlanRead(name) | Loaded(name) | PlanFailed(name)
            ):
                return name.startswith(_NAMES)
        return False

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take an event that `owns` tells to be of a spare."""
        match event:
            case Fetched(ticket):
                return self._fetched(ticket, now)
            case PlanRead(name, program, manifest):
                return self._read(name, program, manifest)
            case Loaded(name):
                return self._loaded(name)
            case FetchFailed(name, reason) | PlanFailed(name, reason):
                return self._failed(name, reason)
        raise AssertionError(f"{event} is of no spare")

    def blobs(self) -> set[str]:
        """Return the blobs that must stay."""
        kept = {ref.digest for standby in self._standby.values() for ref in standby.blobs}
        return kept | {d for spare in self._all() if spare.program for d in spare.program.blobs()}

    def keep(self, standby: Standby) -> list[Effect]:
        """Take what a coordinator wants kept ready for a model from now on."""
        model = standby.model
        self._standby[model] = standby
        before = {spare.name: spare for spare in self._spares.get(model, [])}
        programs = () if standby.manifest is None else standby.programs
        named = {_name(standby, ref): ref for ref in programs}
        self._spares[model] = [before.get(n) or Spare(n, ref) for n, ref in named.items()]
        dropped = [Unload(name) for name in before if name not in named]
        blobs = {ref.digest: ref.nbytes for ref in standby.blobs}
        fetch = Fetch(f"{_NAMES}{model}", blobs, standby.source)
        return [*dropped, fetch, *self._tell(model)]

    def _fetched(self, ticket: str, now: float) -> list[Effect]:
        """Note that a model's blobs are here."""
        for spare in self._spares.get(ticket.removeprefix(_NAMES), []):
            if spare.stage is Stage.BLOBS:
                spare.stage = Stage.WAITING
                self._due = now + PATIENCE_S
        return []

    def due(self) -> float | None:
        """Return when the next one is to be loaded, as far as is known now."""
        if self._next() is None:
            return None
        if self._idle_since is None:
            return self._due
        return min(self._due, self._idle_since + QUIET_S)

    def follow(self, now: float, *, idle: bool) -> None:
        """Take whether there is anything else to do now."""
        if not idle:
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = now

    def next_job(self, now: float) -> list[Effect]:
        """Begin with the one whose turn it is, if its time has come."""
        found, due = self._next(), self.due()
        if found is None or due is None or now < due:
            return []
        model, spare = found
        manifest = self._standby[model].manifest
        if manifest is None:
            raise AssertionError("a spare without a manifest")
        spare.stage = Stage.READING
        self._due = now + PATIENCE_S
        return [ReadPlan(spare.name, spare.ref, manifest)]

    def _read(self, name: str, program: Program, manifest: Any) -> list[Effect]:
        """Take the program of a spare."""
        model, spare = self._find(name)
        if spare is None or spare.stage is not Stage.READING:
            return []
        if (program.model, program.device) != (model, self._device):
            return self._failed(name, "its program is for another model or device")
        spare.program, spare.manifest, spare.stage = program, manifest, Stage.LOADING
        return [LoadSpare(name, program)]

    def _loaded(self, name: str) -> list[Effect]:
        """Note that a spare is ready, and tell the coordinator."""
        model, spare = self._find(name)
        if spare is None or spare.stage is not Stage.LOADING:
            # It was given up while it was loaded.
            return [Unload(name)] if spare is None else []
        spare.stage = Stage.READY
        return self._tell(model)

    def _failed(self, name: str, reason: str) -> list[Effect]:
        """Do without what cannot be fetched, read or loaded."""
        model, spare = self._find(name)
        if spare is None:
            log = Log("warning", f"could not fetch {name}: {reason}")
            return [log] if name.removeprefix(_NAMES) in self._standby else []
        self._spares[model].remove(spare)
        text = f"a plan after a loss is not kept ready: {reason}"
        return [Log("info", text, model=model), Unload(name)]

    def remove(self, model: str) -> list[Effect]:
        """Forget a model that is no longer deployed."""
        if self._standby.pop(model, None) is None:
            return []
        dropped = [Unload(spare.name) for spare in self._spares.pop(model, [])]
        return [CancelFetch(f"{_NAMES}{model}"), *dropped]

    def find(self, header: PlanHeader) -> Spare | None:
        """Return the spare that is this device's part of a plan, if it is ready."""
        mine = header.programs.get(self._device)
        standby = self._standby.get(header.model)
        if mine is None or standby is None or standby.manifest != header.manifest:
            return None
        spares = [s for s in self._spares[header.model] if s.ref == mine]
        return spares[0] if spares and spares[0].stage is Stage.READY else None

    def _tell(self, model: str) -> list[Effect]:
        standby = self._standby[model]
        ready = [s.ref.digest for s in self._spares[model] if s.stage is Stage.READY]
        if not ready or standby.manifest is None:
            return []
        manifest = standby.manifest.digest
        message = Ready(self._device, self._session, model, manifest, tuple(ready))
        return [Tell(standby.source, message)]

    def _next(self) -> tuple[str, Spare] | None:
        if self.loading:
            return None
        waiting = [
            (model, spare)
            for model, spares in self._spares.items()
            for spare in spares
            if spare.stage is Stage.WAITING
        ]
        return waiting[0] if waiting else None

    def _find(self, name: str) -> tuple[str, Spare | None]:
        found = [(m, s) for m, spares in self._spares.items() for s in spares if s.name == name]
        return found[0] if found else ("", None)

    def _all(self) -> list[Spare]:
        return [spare for spares in self._spares.values() for spare in spares]


def _name(standby: Standby, program: BlobRef) -> str:
    manifest = "" if standby.manifest is None else standby.manifest.digest
    return f"{_NAMES}{standby.model}/{program.digest}/{manifest}"
