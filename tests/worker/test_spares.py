"""Spares: loaded in advance, one at a time, and at once a plan's when that is announced."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.wire.messages import PlanHeader, Ready, Standby
from agent.worker import WorkerCore
from agent.worker import events as ev
from agent.worker.spares import PATIENCE_S, QUIET_S
from tests.builders import chain, header_of, only, ref

if TYPE_CHECKING:
    from agent.wire.program import Program
    from agent.worker.events import Effect

BOTH = {"a": (0, 4), "b": (4, 8)}
ALONE = {"a": (0, 8)}
MANIFEST = object()


def programs(tiles: dict[str, tuple[int, int]]) -> dict[str, Program]:
    return chain([tiles, tiles], 8, "a", "m")


def header(epoch: int, tiles: dict[str, tuple[int, int]]) -> PlanHeader:
    return header_of(programs(tiles), epoch, model="m", coordinator="boss")


def standby(*headers: PlanHeader) -> Standby:
    kept = tuple(h.programs["a"] for h in headers)
    return Standby("m", "boss", (*kept, ref("weights")), kept, header(1, ALONE).manifest)


class Device:
    """A worker core of device "a" that serves a plan with "b"; `now` is its clock."""

    def __init__(self) -> None:
        self.core = WorkerCore("a", "s")
        self.now = 0.0
        self.serve(header(1, BOTH), programs(BOTH)["a"])

    def do(self, event: ev.Event) -> list[Effect]:
        return self.core.handle(event, self.now)

    def serve(self, plan: PlanHeader, program: Program) -> list[Effect]:
        self.do(ev.PlanAnnounced("m", plan))
        self.do(ev.Fetched(f"{plan.digest}/program"))
        self.do(ev.PlanRead(plan.digest, program, MANIFEST))
        self.do(ev.Fetched(f"{plan.digest}/blobs"))
        return self.do(ev.Loaded(plan.digest))

    def ask(self) -> list[Effect]:
        return self.do(ev.RequestArrived("m", "r", "0" * 32, b"p", ev.ReplyTo()))

    def later(self, seconds: float = QUIET_S) -> list[Effect]:
        self.now += seconds
        return self.do(ev.Tick())

    def fetched(self) -> ev.ReadPlan:
        """Have the blobs come, and nothing to do; return what is read."""
        assert only(ev.ReadPlan, self.do(ev.Fetched("spare/m"))) == []
        (job,) = only(ev.ReadPlan, self.later())
        return job

    def load(self) -> tuple[str, list[Effect]]:
        """Make the spare of the plan without "b" ready; return its name and what that led to."""
        self.do(ev.StandbyOffered(standby(header(2, ALONE))))
        job = self.fetched()
        self.do(ev.PlanRead(job.plan, programs(ALONE)["a"], MANIFEST))
        return job.plan, self.do(ev.Loaded(job.plan))


def told(effects: list[Effect]) -> list[Ready]:
    return [e.message for e in only(ev.Tell, effects) if isinstance(e.message, Ready)]


def test_a_spare_is_fetched_read_loaded_and_told() -> None:
    device, plan = Device(), header(2, ALONE)
    asked = standby(plan)
    (fetch,) = only(ev.Fetch, device.do(ev.StandbyOffered(asked)))
    assert fetch == ev.Fetch("spare/m", {r.digest: r.nbytes for r in asked.blobs}, "boss")
    job = device.fetched()
    assert (job.program, job.manifest) == (plan.programs["a"], plan.manifest)
    program = programs(ALONE)["a"]
    (load,) = only(ev.LoadSpare, device.do(ev.PlanRead(job.plan, program, MANIFEST)))
    assert load == ev.LoadSpare(job.plan, program)
    ready = Ready("a", "s", "m", plan.manifest.digest, (plan.programs["a"].digest,))
    assert told(device.do(ev.Loaded(job.plan))) == [ready]
    # A coordinator that asks again, or another one, is told at once.
    assert told(device.do(ev.StandbyOffered(asked))) == [ready]


def test_an_announced_plan_of_a_spare_serves_at_once_and_runs_what_is_in_flight() -> None:
    device, plan = Device(), header(2, ALONE)
    name, _ = device.load()
    device.ask()
    device.do(ev.Decoded(ev.RequestKey("m", "r", "0" * 32), header(1, BOTH).digest, "image", 0.0))
    effects = device.do(ev.PlanAnnounced("m", plan))
    # It must be there before its first step is run.
    assert effects[0] == ev.Adopt(plan.digest, name, programs(ALONE)["a"])
    assert device.core._plans.active["m"].header == plan
    assert not only(ev.Load, effects)
    assert not only(ev.Fetch, effects)
    assert [changed.epochs for changed in only(ev.PlansChanged, effects)][-1] == {"m": 2}


def test_the_step_under_way_is_finished_before_the_spare_plan_runs() -> None:
    device, plan = Device(), header(2, ALONE)
    device.load()
    device.ask()
    key, old = ev.RequestKey("m", "r", "0" * 32), header(1, BOTH).digest
    (run,) = only(ev.Run, device.do(ev.Decoded(key, old, "image", 0.0)))
    assert only(ev.Run, device.do(ev.PlanAnnounced("m", plan))) == []
    effects = device.do(ev.StepFinished(key, old, run.step, ("old",), 0.0, 0.0))
    assert [job.plan for job in only(ev.Run, effects)] == [plan.digest]
    assert only(ev.SendPiece, effects) == []


def test_an_offered_plan_of_a_spare_is_ready_without_being_loaded() -> None:
    device, plan = Device(), header(2, ALONE)
    name, _ = device.load()
    effects = device.do(ev.PlanOffered(plan))
    assert only(ev.Adopt, effects) == [ev.Adopt(plan.digest, name, programs(ALONE)["a"])]
    assert [e.message.epoch for e in only(ev.Tell, effects)] == [2]  # type: ignore[union-attr]
    assert device.core._plans.active["m"].header.epoch == 1
    device.do(ev.PlanAnnounced("m", plan))
    assert device.core._plans.active["m"].header == plan


def test_another_manifest_is_another_spare() -> None:
    device, plan = Device(), header(2, ALONE)
    device.load()
    other = PlanHeader(
        **{name: getattr(plan, name) for name in plan.__struct_fields__ if name != "manifest"},
        manifest=ref("other manifest"),
    )
    assert only(ev.Adopt, device.do(ev.PlanAnnounced("m", other))) == []


def test_spares_wait_for_a_quiet_moment_but_not_for_ever() -> None:
    device = Device()
    device.ask()
    device.do(ev.StandbyOffered(standby(header(2, ALONE))))
    device.do(ev.Fetched("spare/m"))
    while device.now < PATIENCE_S - 1.0:
        assert only(ev.ReadPlan, device.later(1.0)) == []
        # Between requests there is no quiet.
        device.do(ev.ResultSeen(ev.RequestKey("m", "r", "0" * 32)))
        device.ask()
    assert len(only(ev.ReadPlan, device.later(1.0))) == 1


def test_spares_are_loaded_one_at_a_time() -> None:
    device = Device()
    third = header(3, {"a": (0, 6), "b": (6, 8)})
    device.do(ev.StandbyOffered(standby(header(2, ALONE), third)))
    first = device.fetched()
    effects = device.do(ev.PlanRead(first.plan, programs(ALONE)["a"], MANIFEST))
    assert only(ev.ReadPlan, effects) == []
    device.do(ev.Loaded(first.plan))
    (second,) = only(ev.ReadPlan, device.later())
    assert second.program == third.programs["a"]


def test_a_spare_that_cannot_be_loaded_is_left_out_and_the_next_one_loaded() -> None:
    device = Device()
    third = header(3, {"a": (0, 6), "b": (6, 8)})
    device.do(ev.StandbyOffered(standby(header(2, ALONE), third)))
    first = device.fetched()
    device.do(ev.PlanRead(first.plan, programs(ALONE)["a"], MANIFEST))
    effects = device.do(ev.PlanFailed(first.plan, "no memory"))
    assert only(ev.Unload, effects) == [ev.Unload(first.plan)]
    assert told(effects) == []
    assert [job.program for job in only(ev.ReadPlan, device.later())] == [third.programs["a"]]


def test_what_is_not_asked_for_any_more_is_unloaded_and_what_still_is_stays() -> None:
    device = Device()
    name, _ = device.load()
    third = header(3, {"a": (0, 6), "b": (6, 8)})
    effects = device.do(ev.StandbyOffered(standby(header(2, ALONE), third)))
    assert only(ev.Unload, effects) == []
    assert only(ev.Unload, device.do(ev.StandbyOffered(standby(third)))) == [ev.Unload(name)]
    assert only(ev.Adopt, device.do(ev.PlanAnnounced("m", header(2, ALONE)))) == []


def test_a_removed_model_takes_its_spares_along() -> None:
    device = Device()
    name, _ = device.load()
    effects = device.do(ev.PlanAnnounced("m", None))
    assert ev.Unload(name) in effects
    assert ev.CancelFetch("spare/m") in effects


def test_what_is_loaded_late_and_unwanted_by_then_is_unloaded() -> None:
    device = Device()
    device.do(ev.StandbyOffered(standby(header(2, ALONE))))
    job = device.fetched()
    device.do(ev.PlanRead(job.plan, programs(ALONE)["a"], MANIFEST))
    device.do(ev.StandbyOffered(standby()))
    effects = device.do(ev.Loaded(job.plan))
    assert only(ev.Unload, effects) == [ev.Unload(job.plan)]
    assert told(effects) == []


def test_blobs_of_spares_stay_pinned() -> None:
    device = Device()
    device.load()
    program = programs(ALONE)["a"]
    (changed,) = only(ev.PlansChanged, device.do(ev.StandbyOffered(standby(header(2, ALONE)))))
    assert program.blobs().keys() | {ref("weights").digest} <= changed.blobs
