"""The coordinator asks devices how fast they are, and plans again where that pays."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING

import pytest

from agent.coordinator import events as ev
from agent.coordinator.calibration import PATIENCE_S
from agent.coordinator.core import BUDGET_S
from agent.coordinator.membership import SETTLE_S
from agent.wire.calibration import Figures, Timing, Timings
from agent.wire.messages import Calibrate, Calibrated, Status, runtime_of
from tests.builders import only, ref
from tests.coordinator.test_core import (
    CAPACITY,
    PACKAGE,
    Boss,
    announced,
    computed,
    offers,
    serving,
    tells,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

PROBES = ref("probes")
RUNTIME = runtime_of(CAPACITY, {})
STATUS_S = 15.0


def timings(runtime: str = RUNTIME, probes: str = PROBES.digest) -> Timings:
    return Timings(probes, runtime, (Timing(2e-3, 1e-3),))


def asks(effects: Iterable[ev.Effect]) -> list[str]:
    return [device for device, message in tells(effects) if isinstance(message, Calibrate)]


def refined(effects: Iterable[ev.Effect]) -> list[ev.ComputePlan]:
    """The plans that are to be weighed against the current one."""
    return [c for c in only(ev.ComputePlan, effects) if c.against is not None]


def measured(boss: Boss, *devices: str, runtime: str = RUNTIME) -> list[ev.Effect]:
    return [
        effect
        for device in devices
        for effect in boss.do(ev.CalibratedSeen(Calibrated(device, "m", timings(runtime))))
    ]


def weigh(
    boss: Boss, devices: Iterable[str], new_ms: float, current_ms: float | None
) -> list[ev.Effect]:
    """Answer a plan that was to be weighed."""
    made = computed(devices)
    programs = {device: ref(f"better for {device} {new_ms}") for device in made.plan.programs}
    plan = replace(made.plan, predicted_ms=new_ms, instead_of_ms=current_ms, programs=programs)
    return boss.do(ev.Computed(PACKAGE, plan))


def probing(*devices: str) -> Boss:
    """Return a coordinator that serves on `devices` and has asked them."""
    boss = serving(*devices)
    effects = boss.do(ev.ProbesMade(PACKAGE, PROBES))
    assert asks(effects) == sorted(devices)
    return boss


def settled(*devices: str) -> Boss:
    """Return a coordinator whose devices are measured, with a plan made of that."""
    boss = probing(*devices)
    measured(boss, *devices)
    weigh(boss, devices, 10.0, 20.0)
    header = offers(boss.done)[-1]
    for device in devices:
        boss.prepared(device, header.epoch)
    for lost in devices:
        boss.do(computed(set(devices) - {lost}))
    boss.done.clear()
    return boss


def test_a_model_is_served_before_anything_is_measured() -> None:
    boss = Boss()
    boss.online("a", "b")
    effects = boss.deploy()
    assert not only(ev.MakeProbes, effects)
    boss.later(SETTLE_S)
    boss.serve("a", "b")
    assert only(ev.MakeProbes, boss.done) == [ev.MakeProbes(PACKAGE)]
    effects = boss.do(ev.ProbesMade(PACKAGE, PROBES))
    ask = Calibrate("m", "boss", "boss", PROBES, BUDGET_S)
    assert tells(effects) == [("a", ask), ("b", ask)]
    assert PROBES.digest in only(ev.Persist, effects)[-1].blobs


def test_it_is_planned_again_once_all_have_answered() -> None:
    boss = probing("a", "b")
    assert not refined(measured(boss, "b"))
    (compute,) = refined(measured(boss, "a"))
    assert compute.figures == {d: Figures(timings()) for d in "ab"}


def test_who_does_not_answer_is_not_waited_for_forever() -> None:
    boss = probing("a", "b")
    measured(boss, "a")
    assert not refined(boss.later(PATIENCE_S - 1.0))
    assert boss.core.next_timer() is not None
    (compute,) = refined(boss.later(2.0))
    assert compute.figures["b"] == Figures()
    assert len(refined(measured(boss, "b"))) == 0, "the planner is at work"
    weigh(boss, "ab", 12.0, 12.0)
    assert len(refined(boss.done)) == 2, "what came late counts as well"


def test_a_plan_that_is_not_better_is_not_switched_to() -> None:
    boss = probing("a", "b")
    measured(boss, "a", "b")
    boss.done.clear()
    effects = weigh(boss, "ab", 11.9, 12.0)
    assert not offers(effects)
    assert len(only(ev.ComputePlan, effects)) == 1, "plans for losses are made anew"
    assert not refined(effects)


def test_a_better_plan_is_prepared_while_the_current_one_serves() -> None:
    boss = probing("a", "b")
    measured(boss, "a", "b")
    (header, *_) = offers(weigh(boss, "ab", 10.0, 12.0))
    assert header.epoch == 2
    effects = [e for device in "ab" for e in boss.prepared(device, 2)]
    assert announced(effects) == [header]
    (shown,) = only(ev.Show, effects)[-1].models
    assert shown.measured == ("a", "b")
    assert all(not c.against for c in only(ev.ComputePlan, effects))


def test_a_device_that_comes_back_is_not_asked_again() -> None:
    boss = settled("a", "b")
    boss.offline("b")
    boss.online("b", session="2")
    effects = boss.later(SETTLE_S)
    (compute,) = only(ev.ComputePlan, [*boss.done, *effects])[-1:]
    assert compute.figures["b"].timings == timings()


def test_a_device_with_another_runtime_is_asked_again() -> None:
    boss = settled("a", "b")
    boss.offline("b")
    newer = Status("b", "2", "online", versions={"onnxruntime": "99"}, capacity=CAPACITY)
    boss.do(ev.StatusSeen(newer))
    boss.later(SETTLE_S)
    boss.serve("a", "b")
    assert asks(boss.done) == ["b"]


def test_what_is_known_outlives_the_coordinator() -> None:
    boss = settled("a", "b")
    boss.online("c")
    boss.later(SETTLE_S)
    boss.do(computed("abc"))
    saved = only(ev.Persist, boss.done)[-1]
    again = Boss()
    again.lead(saved.records)
    again.online("a", "b")
    (compute,) = only(ev.ComputePlan, again.later(SETTLE_S))
    assert compute.figures == {d: Figures(timings()) for d in "ab"}
    again.serve("a", "b")
    assert not asks(again.do(ev.ProbesMade(PACKAGE, PROBES)))


def test_figures_of_other_probes_are_worth_nothing() -> None:
    boss = probing("a")
    other = Timings(ref("other").digest, RUNTIME, (Timing(1.0, 1.0),))
    assert not refined(boss.do(ev.CalibratedSeen(Calibrated("a", "m", other))))


def test_nobody_is_asked_where_there_is_no_budget() -> None:
    boss = Boss()
    boss.lead(budget_s=0.0)
    boss.online("a")
    boss.deploy()
    boss.later(SETTLE_S)
    boss.serve("a")
    assert not only(ev.MakeProbes, boss.done)
    (shown,) = only(ev.Show, boss.done)[-1].models
    assert not shown.calibrates


def test_a_loss_while_a_plan_is_weighed_is_acted_on() -> None:
    boss = probing("a", "b")
    measured(boss, "a", "b")
    boss.done.clear()
    effects = boss.offline("b")
    assert offers(effects), "the plan for this loss was there"
    assert not offers(weigh(boss, "ab", 10.0, 20.0))


# Drift ------------------------------------------------------------------------------------------


def drive(boss: Boss, ratios: Sequence[float], epoch: int = 2, device: str = "a") -> int:
    """Let a device tell drifts, a status each; return how often a plan was weighed."""
    plans = 0
    for ratio in ratios:
        boss.later(STATUS_S)
        boss.online("b")
        effects = boss.do(
            ev.StatusSeen(
                Status(
                    device,
                    "1",
                    "online",
                    capacity=CAPACITY,
                    plans={"m": epoch},
                    drift={"m": ratio},
                )
            )
        )
        plans += len(refined(effects))
    return plans


def test_noise_never_leads_to_another_plan() -> None:
    random = Random(1)
    assert drive(settled("a", "b"), [random.uniform(0.85, 1.2) for _ in range(500)]) == 0


def test_a_slowdown_that_lasts_leads_to_one_plan_and_its_end_to_another() -> None:
    boss = settled("a", "b")
    assert drive(boss, [2.0] * 3) == 1
    (compute,) = refined(boss.done)
    assert compute.figures["a"].factor == pytest.approx(2.0)
    assert compute.figures["b"].factor == 1.0
    header = offers(weigh(boss, "ab", 15.0, 20.0))[0]
    for name in "ab":
        boss.prepared(name, header.epoch)
    for lost in "ab":
        boss.do(computed({"a", "b"} - {lost}))
    boss.done.clear()
    # Under the new plan, which knows of it, steps take as long as predicted.
    assert drive(boss, [1.0] * 40, header.epoch) == 0
    assert drive(boss, [0.5] * 4, header.epoch) == 1
    (compute,) = refined(boss.done)
    assert compute.figures["a"].factor == pytest.approx(1.0)


def test_a_slowdown_that_no_plan_mends_changes_what_is_predicted_once() -> None:
    boss = settled("a", "b")
    assert drive(boss, [2.0] * 3) == 1
    epoch = adopt(boss, 20.0)
    assert drive(boss, [1.0] * 500, epoch) == 0


def adopt(boss: Boss, predicted_ms: float) -> int:
    """Let the plan that is weighed be no better, but take another time; return its epoch."""
    header = offers(weigh(boss, "ab", predicted_ms, predicted_ms))[0]
    for name in "ab":
        boss.prepared(name, header.epoch)
    for lost in "ab":
        boss.do(computed({"a", "b"} - {lost}))
    boss.done.clear()
    return header.epoch


def test_a_drift_under_an_older_plan_says_nothing() -> None:
    assert drive(settled("a", "b"), [2.0] * 20, epoch=1) == 0


def test_a_device_that_goes_up_and_down_is_followed_ever_more_rarely() -> None:
    boss, epoch, plans, planned = settled("a", "b"), 2, 0, 1.0
    for number in range(200):
        pace = 2.0 if number % 2 else 0.5
        for _ in range(4):
            if drive(boss, [pace / planned], epoch):
                plans, planned = plans + 1, pace
                epoch = adopt(boss, 10.0 * pace)
    assert 2 <= plans <= 12
