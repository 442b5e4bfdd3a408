"""Plans: prepared beside the one that serves, switched to when announced, the newest one wins."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from agent.wire.messages import PlanHeader, Prepared, Standby
from agent.worker import events as ev
from agent.worker.plans import Plan, Plans
from tests.builders import chain, digest_of, header_of, only, ref

if TYPE_CHECKING:
    from agent.wire.program import Program
    from agent.worker.events import Effect

HALVES = {"a": (0, 4), "b": (4, 8)}
MANIFEST = object()


def programs(devices: tuple[str, ...] = ("a", "b"), model: str = "m") -> dict[str, Program]:
    rows = 8 // len(devices)
    tiles = {device: (n * rows, (n + 1) * rows) for n, device in enumerate(devices)}
    return chain([tiles, tiles], 8, devices[0], model)


def header(epoch: int, *devices: str, model: str = "m", coordinator: str = "boss") -> PlanHeader:
    made = programs(devices or ("a", "b"), model)
    return header_of(made, epoch, model=model, coordinator=coordinator)


def prepare(plans: Plans, plan: PlanHeader) -> list[Effect]:
    """Take a plan that was offered through its stages; return what the last one led to."""
    plans.fetched(f"{plan.digest}/program")
    plans.read(plan.digest, programs(plan.devices, plan.model)["a"], MANIFEST)
    plans.fetched(f"{plan.digest}/blobs")
    return plans.loaded(plan.digest)


def serving(epoch: int = 1) -> tuple[Plans, PlanHeader]:
    plans, plan = Plans("a", "s"), header(epoch)
    plans.offer(plan, announced=True)
    prepare(plans, plan)
    assert plans.active["m"].header == plan
    return plans, plan


def told(effects: list[Effect]) -> list[Prepared]:
    return [e.message for e in only(ev.Tell, effects) if isinstance(e.message, Prepared)]


def test_a_plan_goes_through_its_stages_and_the_coordinator_is_told() -> None:
    plans, plan = Plans("a", "s"), header(3)
    program = programs()["a"]
    assert plans.offer(plan, announced=False) == [
        ev.Watch("m"),
        ev.Fetch(
            f"{plan.digest}/program",
            {r.digest: r.nbytes for r in (plan.programs["a"], plan.manifest)},
            "boss",
        ),
    ]
    read = ev.ReadPlan(plan.digest, plan.programs["a"], plan.manifest)
    assert plans.fetched(f"{plan.digest}/program") == [read]
    blobs = ev.Fetch(f"{plan.digest}/blobs", program.blobs(), "boss")
    assert plans.read(plan.digest, program, MANIFEST) == [blobs]
    load = ev.Load(plan.digest, program)
    assert only(ev.Load, plans.fetched(f"{plan.digest}/blobs")) == [load]
    assert plans.loaded(plan.digest) == [ev.Tell("boss", Prepared("a", "m", 3, ok=True))]


def test_what_is_prepared_is_pinned_before_it_is_loaded() -> None:
    plans, plan = Plans("a", "s"), header(1)
    program = programs()["a"]
    plans.offer(plan, announced=False)
    plans.fetched(f"{plan.digest}/program")
    plans.read(plan.digest, program, MANIFEST)
    changed, load = plans.fetched(f"{plan.digest}/blobs")
    assert isinstance(load, ev.Load)
    assert isinstance(changed, ev.PlansChanged)
    needed = {*program.blobs(), plan.programs["a"].digest, plan.manifest.digest}
    assert changed == ev.PlansChanged({}, frozenset(needed))


def test_events_out_of_order_do_nothing() -> None:
    plans, plan = Plans("a", "s"), header(1)
    program = programs()["a"]
    plans.offer(plan, announced=True)
    assert plans.loaded(plan.digest) == []
    assert plans.read(plan.digest, program, MANIFEST) == []
    plans.fetched(f"{plan.digest}/program")
    assert plans.fetched(f"{plan.digest}/program") == []
    assert plans.loaded(plan.digest) == []
    assert plans.active == {}


def test_events_of_an_unknown_plan_do_nothing() -> None:
    plans, _ = serving()
    other = digest_of("other plan")
    assert plans.fetched(f"{other}/program") == []
    assert plans.read(other, programs()["a"], MANIFEST) == []
    assert plans.loaded(other) == []


def test_a_prepared_plan_does_not_serve_before_it_is_announced() -> None:
    plans, plan = Plans("a", "s"), header(1)
    plans.offer(plan, announced=False)
    prepare(plans, plan)
    assert plans.active == {}
    effects = plans.offer(plan, announced=True)
    assert plans.active["m"].header == plan
    assert [changed.epochs for changed in only(ev.PlansChanged, effects)] == [{"m": 1}]


def test_a_plan_that_is_announced_while_it_is_prepared_serves_once_loaded() -> None:
    plans, plan = Plans("a", "s"), header(1)
    plans.offer(plan, announced=False)
    assert plans.offer(plan, announced=True) == []
    effects = prepare(plans, plan)
    assert plans.active["m"].header == plan
    assert told(effects) == [Prepared("a", "m", 1, ok=True)]


def test_the_current_plan_serves_while_the_next_one_is_prepared() -> None:
    plans, old = serving(1)
    new = header(2)
    effects = plans.offer(new, announced=False)
    effects += prepare(plans, new)
    assert plans.active["m"].header == old
    assert only(ev.Unload, effects) == []
    assert only(ev.Unwatch, effects) == []


def test_a_switch_unloads_the_old_plan_and_keeps_the_subscription() -> None:
    plans, old = serving(1)
    new = header(2)
    plans.offer(new, announced=False)
    prepare(plans, new)
    effects = plans.offer(new, announced=True)
    assert plans.active["m"].header == new
    assert only(ev.Unload, effects) == [ev.Unload(old.digest)]
    assert only(ev.Unwatch, effects) == []


def test_an_announced_plan_makes_the_older_one_void_at_once() -> None:
    plans, old = serving(1)
    effects = plans.offer(header(2), announced=True)
    assert plans.active == {}
    assert ev.Unload(old.digest) in effects


@pytest.mark.parametrize("announced", [False, True])
@pytest.mark.parametrize(
    "older", [header(4), header(5, coordinator="able"), header(5, "a", "b", "c", "d")]
)
def test_an_older_plan_is_ignored(older: PlanHeader, *, announced: bool) -> None:
    plans, current = serving(5)
    effects = plans.offer(older, announced=announced)
    assert only(ev.Log, effects) == effects
    assert len(effects) == 1
    assert plans.active["m"].header == current


def test_old_news_of_a_broker_are_ignored_by_a_device_that_the_newest_plan_leaves_out() -> None:
    plans, old = serving(5)
    plans.offer(header(6, "b", "c"), announced=True)
    assert plans.active == {}
    (log,) = only(ev.Log, plans.offer(old, announced=True))
    assert "older" in log.text
    # What is offered is never old: its coordinator may have lost all that it knew.
    assert only(ev.Fetch, plans.offer(old, announced=False)) != []


def test_after_its_removal_a_model_may_begin_with_any_epoch() -> None:
    plans, _ = serving(5)
    plans.remove("m")
    assert only(ev.Fetch, plans.offer(header(1), announced=True)) != []


def test_a_plan_of_the_same_epoch_wins_by_its_coordinator() -> None:
    plans, _ = serving(5)
    newer = header(5, coordinator="chief")
    plans.offer(newer, announced=True)
    prepare(plans, newer)
    assert plans.active["m"].header == newer


def test_another_coordinators_offer_takes_the_place_of_one_that_may_be_given_up() -> None:
    plans, _ = serving(1)
    old = header(3)
    plans.offer(old, announced=False)
    effects = plans.offer(header(2, coordinator="other"), announced=False)
    assert ev.Unload(old.digest) in effects
    assert [fetch.holder for fetch in only(ev.Fetch, effects)] == ["other"]


def test_a_plan_older_than_one_that_is_announced_is_ignored() -> None:
    plans, _ = serving(1)
    plans.offer(header(3), announced=True)
    assert only(ev.Fetch, plans.offer(header(2, coordinator="other"), announced=False)) == []


def test_a_newer_offer_takes_the_place_of_the_one_in_preparation() -> None:
    plans, _ = serving(1)
    old, new = header(2), header(3)
    plans.offer(old, announced=False)
    effects = plans.offer(new, announced=False)
    cancelled = {cancel.ticket for cancel in only(ev.CancelFetch, effects)}
    assert cancelled == {f"{old.digest}/program", f"{old.digest}/blobs"}
    assert ev.Unload(old.digest) in effects
    assert plans.fetched(f"{old.digest}/program") == []
    assert told(prepare(plans, new)) == [Prepared("a", "m", 3, ok=True)]


def test_an_offer_that_comes_again_is_answered_again() -> None:
    plans, plan = Plans("a", "s"), header(1)
    plans.offer(plan, announced=False)
    assert plans.offer(plan, announced=False) == []
    prepare(plans, plan)
    assert told(plans.offer(plan, announced=False)) == [Prepared("a", "m", 1, ok=True)]
    plans.offer(plan, announced=True)
    assert told(plans.offer(plan, announced=False)) == [Prepared("a", "m", 1, ok=True)]


def test_an_announcement_that_comes_again_changes_nothing() -> None:
    plans, plan = serving()
    before = plans.active["m"]
    assert plans.offer(plan, announced=True) == []
    assert plans.active["m"] is before


def test_a_plan_without_this_device_ends_its_part() -> None:
    plans, old = serving(1)
    effects = plans.offer(header(2, "b", "c"), announced=True)
    assert plans.active == {}
    assert ev.Unload(old.digest) in effects
    assert ev.Unwatch("m") in effects
    assert only(ev.Fetch, effects) == []


def test_an_offer_without_this_device_leaves_the_current_plan() -> None:
    plans, old = serving(1)
    assert plans.offer(header(2, "b", "c"), announced=False) == []
    assert plans.active["m"].header == old


@pytest.mark.parametrize("ticket", ["/program", "/blobs", ""])
def test_a_failure_is_reported_with_its_reason(ticket: str) -> None:
    plans, plan = Plans("a", "s"), header(2)
    plans.offer(plan, announced=True)
    effects = plans.failed(plan.digest + ticket, "no space left")
    assert told(effects) == [Prepared("a", "m", 2, ok=False, reason="no space left")]
    assert "no space left" in only(ev.Log, effects)[0].text
    assert ev.Unload(plan.digest) in effects
    assert ev.Unwatch("m") in effects
    assert prepare(plans, plan) == []
    assert plans.active == {}


def test_a_failure_leaves_the_current_plan() -> None:
    plans, old = serving(1)
    new = header(2)
    plans.offer(new, announced=False)
    effects = plans.failed(new.digest, "refused by onnxruntime")
    assert plans.active["m"].header == old
    assert only(ev.Unwatch, effects) == []


def test_a_long_reason_fits_into_the_message() -> None:
    plans, plan = Plans("a", "s"), header(1)
    plans.offer(plan, announced=False)
    assert len(told(plans.failed(plan.digest, "x" * 10_000))[0].reason) <= 4096


@pytest.mark.parametrize(
    "program", [programs()["b"], programs(model="other")["a"]], ids=["device", "model"]
)
def test_a_program_for_somebody_else_is_a_failure(program: Program) -> None:
    plans, plan = Plans("a", "s"), header(1)
    plans.offer(plan, announced=False)
    plans.fetched(f"{plan.digest}/program")
    effects = plans.read(plan.digest, program, MANIFEST)
    assert [message.ok for message in told(effects)] == [False]


def test_a_plan_can_be_offered_again_after_a_failure() -> None:
    plans, plan = Plans("a", "s"), header(1)
    plans.offer(plan, announced=False)
    plans.failed(plan.digest, "no space left")
    plans.offer(plan, announced=False)
    assert told(prepare(plans, plan)) == [Prepared("a", "m", 1, ok=True)]


def test_models_have_plans_of_their_own() -> None:
    plans, first = serving(7)
    second = header(1, model="other")
    plans.offer(second, announced=True)
    prepare(plans, second)
    assert {model: plan.header for model, plan in plans.active.items()} == {
        "m": first,
        "other": second,
    }


def test_a_removed_model_is_forgotten() -> None:
    plans, plan = serving(5)
    effects = plans.remove("m")
    assert plans.active == {}
    assert {type(effect) for effect in effects} == {ev.Unload, ev.PlansChanged}
    assert only(ev.PlansChanged, effects)[-1] == ev.PlansChanged({}, frozenset())
    # What comes after is a new deployment, whatever its epoch.
    assert only(ev.Fetch, plans.offer(header(1), announced=False)) != []
    assert plan.epoch == 5


def test_a_removed_model_is_watched_until_its_requests_have_ended() -> None:
    plans, _ = serving(5)
    plans.remove("m")
    assert plans.watches("m")
    assert not plans.admits("m")
    assert plans.ended({"m"}) == []
    assert plans.ended({"other"}) == [ev.Unwatch("m")]
    assert plans.ended(set()) == []


def test_a_removed_model_that_is_deployed_again_stays_watched() -> None:
    plans, _ = serving(5)
    plans.remove("m")
    assert only(ev.Watch, plans.offer(header(1), announced=False)) == []
    assert plans.ended(set()) == []
    assert plans.watches("m")


def test_removing_a_model_stops_its_preparation() -> None:
    plans, plan = Plans("a", "s"), header(1)
    plans.offer(plan, announced=False)
    effects = plans.remove("m")
    assert len(only(ev.CancelFetch, effects)) == 2
    assert prepare(plans, plan) == []


def test_standby_blobs_are_fetched_and_pinned_with_the_plan() -> None:
    plans, plan = serving()
    extra = (ref("after a loss", 7), ref("other", 8))
    fetch, changed = plans.keep_ready(Standby("m", "boss", extra))
    assert fetch == ev.Fetch("spare/m", {r.digest: r.nbytes for r in extra}, "boss")
    assert isinstance(changed, ev.PlansChanged)
    assert {r.digest for r in extra} | {plan.manifest.digest} <= changed.blobs
    assert changed.epochs == {"m": 1}


def test_new_standby_blobs_take_the_place_of_the_old() -> None:
    plans, _ = serving()
    plans.keep_ready(Standby("m", "boss", (ref("old"),)))
    changed = only(ev.PlansChanged, plans.keep_ready(Standby("m", "boss", (ref("new"),))))[0]
    assert digest_of("new") in changed.blobs
    assert digest_of("old") not in changed.blobs


def test_standby_blobs_that_cannot_be_had_harm_nothing() -> None:
    plans, _ = serving()
    plans.keep_ready(Standby("m", "boss", (ref("extra"),)))
    effects = plans.spares.handle(ev.FetchFailed("spare/m", "its holder is gone"), 0.0)
    assert [log.level for log in only(ev.Log, effects)] == ["warning"]
    assert told(effects) == []
    assert isinstance(plans.active["m"], Plan)
    assert plans.spares.handle(ev.Fetched("spare/m"), 0.0) == []


def test_an_offer_replaces_another_of_its_epoch_from_a_coordinator_that_lost_its_disk() -> None:
    plans, _ = serving(1)
    plans.offer(header(2), announced=False)
    assert only(ev.Fetch, plans.offer(header(2, "a", "c"), announced=False))


def test_only_so_many_models_are_taken_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.worker.plans.MAX_MODELS", 2)
    plans, _ = serving()
    assert only(ev.Watch, plans.keep_ready(Standby("s", "boss", ())))
    assert only(ev.Fetch, plans.offer(header(1, model="more"), announced=False)) == []
    assert plans.keep_ready(Standby("more", "boss", ())) == []
    assert not plans.watches("more")
    assert only(ev.Fetch, plans.offer(header(2), announced=False))


def test_a_plan_with_the_digest_of_another_models_is_ignored() -> None:
    plans, plan = serving()
    forged = msgspec.structs.replace(plan, model="ghost", epoch=2)
    for announced in (False, True):
        assert only(ev.Log, plans.offer(forged, announced=announced))
        assert not plans.watches("ghost")
    assert plans.active["m"].header == plan
