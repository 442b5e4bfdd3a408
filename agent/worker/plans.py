"""The plans of a worker: prepared beside the one that serves, and switched to when announced.

Rules: (epoch, coordinator) orders a model's plans and the highest wins; a plan is fetched, read
and loaded before it can serve; an announced plan makes older ones void at once, and serves as
soon as it is loaded. Preparation moves through the states of `Stage` in their order.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from agent.wire.messages import Prepared
from agent.worker.events import (
    Adopt,
    CancelFetch,
    Effect,
    Fetch,
    Load,
    Log,
    PlansChanged,
    ReadPlan,
    Tell,
    Unload,
    Unwatch,
    Watch,
)
from agent.worker.pace import Pace
from agent.worker.spares import Spares

if TYPE_CHECKING:
    from agent.wire.messages import PlanHeader, Standby
    from agent.wire.program import Program
    from agent.worker.spares import Spare


# Longer than a coordinator waits for the others of a plan.
LAPSE_S = 150.0
MAX_NEWEST = 4096
MAX_MODELS = 256


class Stage(Enum):
    """How far the preparation of a plan is."""

    PROGRAM = "fetching the program"
    READING = "reading the program"
    BLOBS = "fetching segments and weights"
    LOADING = "loading segments"
    READY = "ready"


@dataclass(slots=True)
class Plan:
    """A plan that this device prepares or serves."""

    header: PlanHeader
    stage: Stage
    announced: bool
    offered_at: float = 0.0
    program: Program | None = None
    manifest: Any = None
    pace: Pace = field(default_factory=Pace)

    @property
    def digest(self) -> str:
        """The plan's name in messages and effects."""
        return self.header.digest


class Plans:
    """The active and the pending plan of each model on device `device`, in its life `session`.

    `removed` are models that are deployed no more, whose results are watched all the same.
    """

    def __init__(self, device: str, session: str) -> None:
        self._device = device
        self.active: dict[str, Plan] = {}
        self._pending: dict[str, Plan] = {}
        self.spares = Spares(device, session)
        self.removed: set[str] = set()
        self._newest: dict[str, tuple[int, str]] = {}

    @property
    def preparing(self) -> bool:
        """Whether a plan is being fetched or loaded."""
        return any(plan.stage is not Stage.READY for plan in self._pending.values())

    def offer(self, header: PlanHeader, *, announced: bool, now: float = 0.0) -> list[Effect]:
        """Consider a plan that a coordinator prepares or has announced."""
        if self._is_anothers(header):
            return [_log("warning", "ignored a plan with the digest of another model's", header)]
        withdrawn = [] if announced else self._withdraw(header)
        effects = withdrawn + self._consider(header, announced=announced)
        plan = self._of(header.digest)
        if plan is not None:
            plan.offered_at = now
        return effects

    def lapses_at(self) -> float | None:
        """Return when the oldest offer lapses that was not announced."""
        offers = [plan.offered_at for plan in self._pending.values() if not plan.announced]
        return min(offers) + LAPSE_S if offers else None

    def lapse(self, now: float) -> list[Effect]:
        """Forget the plans whose coordinator has not announced them, nor offered them again."""
        lapsed = [
            model
            for model, plan in self._pending.items()
            if not plan.announced and now >= plan.offered_at + LAPSE_S
        ]
        return [effect for model in lapsed for effect in self._give_up(model)]

    def _withdraw(self, header: PlanHeader) -> list[Effect]:
        # The last word counts: what was offered before, and given up, may be newer. Its coordinator
        # may be gone, and the one that leads now not know of it.
        plan = self._pending.get(header.model)
        if plan is None or plan.announced:
            return []
        given_up = plan.digest != header.digest and plan.header.order >= header.order
        return self._give_up(header.model) if given_up else []

    def _consider(self, header: PlanHeader, *, announced: bool) -> list[Effect]:
        known = (self.active.get(header.model), self._pending.get(header.model))
        for plan in known:
            if plan is not None and plan.header.digest == header.digest:
                return self._again(plan, announced=announced)
        if self._is_old(header, announced=announced):
            return [_log("info", "ignored an older plan", header)]
        if not self.watches(header.model) and not self._has_room():
            return [_log("warning", "ignored a plan: more models than a device serves", header)]
        # The new plan takes its place before the others go, so that the subscription stays.
        replaced = self._pending.pop(header.model, None)
        watched = replaced is not None or self.watches(header.model)
        effects = [] if replaced is None else _cancel(replaced)
        mine = self._device in header.devices
        spare = self.spares.find(header) if mine else None
        if mine:
            self._pending[header.model] = Plan(header, Stage.PROGRAM, announced)
        if spare is not None:
            watch = [] if watched else [Watch(header.model)]
            return [*effects, *watch, *self._adopt(self._pending[header.model], spare)]
        if announced:
            effects += self._end(header.model)
        if not mine:
            gone = watched and not self.watches(header.model)
            return [*effects, Unwatch(header.model)] if gone else effects
        program = header.programs[self._device]
        blobs = {ref.digest: ref.nbytes for ref in (program, header.manifest)}
        effects.append(Fetch(f"{header.digest}/program", blobs, header.source))
        return effects if watched else [Watch(header.model), *effects]

    def _is_old(self, header: PlanHeader, *, announced: bool) -> bool:
        known = (self.active.get(header.model), self._pending.get(header.model))
        if any(plan is not None and plan.header.order >= header.order for plan in known):
            return True
        # A broker may come back with old news, to a device that the newest plan leaves out too.
        if announced and header.order < self._newest.get(header.model, header.order):
            return True
        if announced and (header.model in self._newest or len(self._newest) < MAX_NEWEST):
            self._newest[header.model] = header.order
        return False

    def keep_ready(self, standby: Standby) -> list[Effect]:
        """Fetch blobs for the plan after a loss, and watch requests: it may have to answer them."""
        if not self.watches(standby.model) and not self._has_room():
            return []
        watch = [] if self.watches(standby.model) else [Watch(standby.model)]
        return [*watch, *self.spares.keep(standby), self._changed()]

    def fetched(self, ticket: str) -> list[Effect]:
        """Go on with the plan whose blobs have come."""
        plan = self._of(ticket.partition("/")[0])
        if plan is None:
            return []
        if plan.stage is Stage.PROGRAM:
            plan.stage = Stage.READING
            header = plan.header
            return [ReadPlan(plan.digest, header.programs[self._device], header.manifest)]
        if plan.stage is Stage.BLOBS and plan.program is not None:
            plan.stage = Stage.LOADING
            return [self._changed(), Load(plan.digest, plan.program)]
        return []

    def read(self, digest: str, program: Program, manifest: Any) -> list[Effect]:
        """Take a plan's program and fetch what it needs."""
        plan = self._of(digest)
        if plan is None or plan.stage is not Stage.READING:
            return []
        if (program.model, program.device) != (plan.header.model, self._device):
            return self.failed(digest, "its program is for another model or device")
        plan.program, plan.manifest, plan.stage = program, manifest, Stage.BLOBS
        return [Fetch(f"{digest}/blobs", program.blobs(), plan.header.source)]

    def loaded(self, digest: str) -> list[Effect]:
        """Note that a plan can serve; it does from now on if it was announced."""
        plan = self._of(digest)
        if plan is None or plan.stage is not Stage.LOADING:
            return []
        plan.stage = Stage.READY
        effects: list[Effect] = [self._prepared(plan, ok=True)]
        return effects + (self._activate(plan) if plan.announced else [])

    def failed(self, digest: str, reason: str) -> list[Effect]:
        """Give up a plan that cannot be fetched, read or loaded."""
        plan = self._of(digest.partition("/")[0])
        if plan is None:
            return []
        log = _log("error", f"cannot prepare the plan: {reason}", plan.header)
        told = self._prepared(plan, ok=False, reason=reason)
        return [log, told, *self._give_up(plan.header.model)]

    def remove(self, model: str) -> list[Effect]:
        """Forget a model that is no longer deployed; its results are watched until `ended`."""
        self._newest.pop(model, None)
        if self.watches(model):
            self.removed.add(model)
        effects = self.spares.remove(model)
        pending = self._pending.pop(model, None)
        effects += _cancel(pending) if pending else []
        return [*effects, *self._end(model)]

    def ended(self, in_flight: set[str]) -> list[Effect]:
        """Watch removed models no longer, unless they are deployed again or `in_flight`."""
        ended = sorted(self.removed - in_flight)
        self.removed &= in_flight
        return [Unwatch(model) for model in ended if not self.admits(model)]

    def admits(self, model: str) -> bool:
        """Tell whether this device takes on a model's requests."""
        return model in self.active or model in self._pending or model in self.spares

    def watches(self, model: str) -> bool:
        """Tell whether this device subscribes to a model's requests and results."""
        return self.admits(model) or model in self.removed

    def _is_anothers(self, header: PlanHeader) -> bool:
        # What is done to a plan is done by its digest: giving this one up would unload the other.
        plans = [*self.active.values(), *self._pending.values()]
        return any(
            plan.digest == header.digest and plan.header.model != header.model for plan in plans
        )

    def _has_room(self) -> bool:
        known = self.active.keys() | self._pending.keys() | self.spares.models
        return len(known) < MAX_MODELS

    def header(self, model: str) -> PlanHeader | None:
        """Return the header of the plan that serves a model, else of the one being prepared."""
        plan = self.active.get(model) or self._pending.get(model)
        return plan.header if plan else None

    def _again(self, plan: Plan, *, announced: bool) -> list[Effect]:
        ready = plan.stage is Stage.READY
        if not announced:
            return [self._prepared(plan, ok=True)] if ready else []
        plan.announced = True
        if ready and self.active.get(plan.header.model) is not plan:
            return self._activate(plan)
        return []

    def _adopt(self, plan: Plan, spare: Spare) -> list[Effect]:
        """Take what is loaded already for a plan: it is ready, and serves if it was announced."""
        if spare.program is None:
            raise AssertionError("a spare is ready without its program")
        plan.program, plan.manifest, plan.stage = spare.program, spare.manifest, Stage.READY
        adopt = Adopt(plan.digest, spare.name, spare.program)
        then = self._activate(plan) if plan.announced else [self._changed()]
        return [adopt, self._prepared(plan, ok=True), *then]

    def _activate(self, plan: Plan) -> list[Effect]:
        model = plan.header.model
        effects = self._end(model)
        self._pending.pop(model, None)
        self.active[model] = plan
        return [*effects, self._changed(), _log("info", "serving", plan.header)]

    def _end(self, model: str) -> list[Effect]:
        plan = self.active.pop(model, None)
        return [] if plan is None else [Unload(plan.digest), self._changed()]

    def _give_up(self, model: str) -> list[Effect]:
        plan = self._pending.pop(model, None)
        if plan is None:
            return []
        effects = _cancel(plan)
        return effects if self.watches(model) else [*effects, Unwatch(model)]

    def _of(self, digest: str) -> Plan | None:
        return next((p for p in self._pending.values() if p.digest == digest), None)

    def _prepared(self, plan: Plan, *, ok: bool, reason: str = "") -> Tell:
        header = plan.header
        message = Prepared(self._device, header.model, header.epoch, ok, reason[:4000])
        return Tell(header.coordinator, message)

    def _changed(self) -> PlansChanged:
        plans = [*self.active.values(), *self._pending.values()]
        blobs = {plan.header.manifest.digest for plan in plans}
        blobs |= {plan.header.programs[self._device].digest for plan in plans}
        blobs |= {digest for plan in plans if plan.program for digest in plan.program.blobs()}
        blobs |= self.spares.blobs()
        epochs = {model: plan.header.epoch for model, plan in self.active.items()}
        return PlansChanged(epochs, frozenset(blobs))


def _cancel(plan: Plan) -> list[Effect]:
    fetches = [CancelFetch(f"{plan.digest}/{what}") for what in ("program", "blobs")]
    return [*fetches, Unload(plan.digest)]


def _log(level: str, text: str, header: PlanHeader) -> Log:
    return Log(level, text, model=header.model, epoch=header.epoch)
