"""The simulation finds what it is there for: without any one rule of the protocol a seed fails.

Each mutation takes one rule out of a core. The seeds beside it are tried first: they noticed when
they were written down, and may not once plans or cores have changed; then up to `BOUND` others are.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

import msgspec
import pytest

from agent.coordinator import core as coordinating
from agent.coordinator import leadership as leading
from agent.coordinator import planning, pulses
from agent.coordinator.catalog import Catalog
from agent.coordinator.core import CoordinatorCore
from agent.coordinator.flapping import Flapping
from agent.coordinator.leadership import Leadership
from agent.coordinator.membership import Membership
from agent.coordinator.planning import Planning
from agent.coordinator.pulses import Pulses
from agent.coordinator.readiness import Readiness
from agent.wire.messages import PlanHeader
from agent.worker import admission, core, endings, overload
from agent.worker import events as ev
from agent.worker.admission import Admission
from agent.worker.core import WorkerCore
from agent.worker.early import EarlyPieces
from agent.worker.endings import Endings
from agent.worker.plans import Plans
from agent.worker.requests import Request, State
from agent.worker.runs import Runs
from agent.worker.spares import Spares
from agent.worker.turns import Turns
from agent.worker.unclaimed import Unclaimed
from tests.simulation.schedule import play

BOUND = 1500
Patch = pytest.MonkeyPatch


def pieces_of_another_plan_are_taken(patch: Patch) -> None:
    whole = Runs.piece_arrived

    def arrived(runs: Runs, event: ev.PieceArrived, now: float) -> list[ev.Effect]:
        keys = [(k, r) for k, r in runs._requests.items() if k.request == event.piece.request]
        plans = [r.plan.digest for k, r in keys if r.plan and k.input == event.piece.input]
        plan = plans[0] if plans else event.piece.plan
        return whole(runs, _changed(event, plan=plan), now)

    patch.setattr(Runs, "piece_arrived", arrived)


def the_fingerprint_of_the_payload_is_ignored(patch: Patch) -> None:
    whole = Runs.piece_arrived

    def arrived(runs: Runs, event: ev.PieceArrived, now: float) -> list[ev.Effect]:
        inputs = [k.input for k in runs._requests if k.request == event.piece.request]
        mark = inputs[0] if inputs else event.piece.input
        return whole(runs, _changed(event, input=mark), now)

    patch.setattr(Runs, "piece_arrived", arrived)


def _changed(event: ev.PieceArrived, **fields: Any) -> ev.PieceArrived:
    return ev.PieceArrived(msgspec.structs.replace(event.piece, **fields), event.nbytes)


def an_announced_plan_leaves_the_old_one_serving(patch: Patch) -> None:
    whole = Plans._consider

    def consider(plans: Plans, header: Any, *, announced: bool) -> list[ev.Effect]:
        active = plans.active.get(header.model)
        effects = whole(plans, header, announced=announced)
        if announced and active is not None and header.model not in plans.active:
            plans.active[header.model] = active
            effects = [e for e in effects if not isinstance(e, ev.Unload | ev.PlansChanged)]
        return effects

    patch.setattr(Plans, "_consider", consider)


def older_plans_are_taken(patch: Patch) -> None:
    whole = Plans._consider

    def consider(plans: Plans, header: Any, *, announced: bool) -> list[ev.Effect]:
        patch.setattr(PlanHeader, "order", property(lambda _: _Least()))
        try:
            return whole(plans, header, announced=announced)
        finally:
            patch.setattr(PlanHeader, "order", property(lambda h: (h.epoch, h.coordinator)))

    patch.setattr(Plans, "_consider", consider)


class _Least:
    """Is neither newer nor older than another."""

    def __ge__(self, _other: object) -> bool:
        return False

    def __lt__(self, _other: object) -> bool:
        return False


def a_new_plan_does_not_start_requests_again(patch: Patch) -> None:
    patch.setattr(WorkerCore, "_switch", lambda *_: [])


def redelivered_requests_run_again(patch: Patch) -> None:
    patch.setattr(Admission, "remember", lambda *_: None)


def every_device_claims_requests_without_an_id(patch: Patch) -> None:
    patch.setattr(Endings, "answers", lambda *_: True)


def nobody_claims_requests_without_an_id(patch: Patch) -> None:
    patch.setattr(Endings, "answers", lambda *_: False)


def requests_without_an_id_are_kept_by_payload(patch: Patch) -> None:
    def add(unclaimed: Unclaimed, request: Any) -> None:
        for other in unclaimed:
            if other.key == request.key:
                unclaimed.remove(other)
        unclaimed._requests[request.number] = request

    patch.setattr(Unclaimed, "add", add)


def ranks_do_not_wait(patch: Patch) -> None:
    patch.setattr(core, "RANK_DELAY_S", 0.0)
    patch.setattr(endings, "RANK_DELAY_S", 0.0)


def devices_that_join_are_not_told_of_requests(patch: Patch) -> None:
    patch.setattr(WorkerCore, "_pass_on", lambda *_: [])


def early_pieces_are_thrown_away(patch: Patch) -> None:
    patch.setattr(EarlyPieces, "add", lambda *_: 0)


def deadlines_pass_unnoticed(patch: Patch) -> None:
    whole = WorkerCore._timer_of

    def timer_of(core: WorkerCore, request: Request) -> float:
        return whole(core, request) if request.state in (State.FAILED, State.ANSWERED) else 1e18

    patch.setattr(WorkerCore, "_timer_of", timer_of)


def answered_requests_are_not_forgotten(patch: Patch) -> None:
    patch.setattr(WorkerCore, "_result_seen", lambda *_: [])


def an_old_will_ends_a_new_life(patch: Patch) -> None:
    whole = Membership.see

    def see(members: Membership, status: Any, now: float) -> bool:
        if status.role == "agent" and status.state == "offline":
            return members._members.pop(status.device, None) is not None
        return whole(members, status, now)

    patch.setattr(Membership, "see", see)


def silence_is_no_sign(patch: Patch) -> None:
    patch.setattr(Membership, "expire", lambda *_: [])


def what_the_broker_lost_stays_lost(patch: Patch) -> None:
    patch.setattr(CoordinatorCore, "_announce_lost", lambda *_: [])


def a_plan_is_announced_once_one_device_has_it(patch: Patch) -> None:
    whole = Planning.prepared_seen

    def seen(planning: Planning, event: Any, now: float) -> list[Any]:
        deployment = planning._catalog.get(event.prepared.model)
        if deployment is not None and event.prepared.ok:
            deployment.awaited.clear()
        return whole(planning, event, now)

    patch.setattr(Planning, "prepared_seen", seen)


def a_loss_is_not_planned_around(patch: Patch) -> None:
    patch.setattr(CoordinatorCore, "_has_lost", lambda *_: False)
    patch.setattr(CoordinatorCore, "_is_outdated", lambda *_: False)


def offers_that_were_given_up_stay(patch: Patch) -> None:
    patch.setattr(planning, "take_back", lambda *_: [])
    patch.setattr(coordinating, "take_back", lambda *_: [])


def devices_that_come_and_go_are_planned_with(patch: Patch) -> None:
    patch.setattr(Flapping, "holds", lambda *_: 0.0)


def a_new_leader_does_not_know_what_is_deployed(patch: Patch) -> None:
    patch.setattr(Catalog, "hear", lambda *_: False)


def two_may_lead(patch: Patch) -> None:
    patch.setattr(Leadership, "_look", _look_without_stepping_down)


def _look_without_stepping_down(leadership: Leadership, now: float) -> None:
    if leadership.leader is not None or leadership._listens:
        leadership._vacant_at = None
    elif leadership._vacant_at is None:
        leadership._vacant_at = now


def nobody_takes_over(patch: Patch) -> None:
    whole = Leadership._claims_at

    def claims_at(leadership: Leadership) -> float | None:
        return None if leadership._highest else whole(leadership)

    patch.setattr(Leadership, "_claims_at", claims_at)


def a_silent_leader_is_waited_for(patch: Patch) -> None:
    patch.setattr(leading, "MISSED_S", 1e9)


def what_an_old_disk_has_is_served(patch: Patch) -> None:
    whole = Catalog.hear

    def hear(catalog: Catalog, record: Any) -> bool:
        return record.model not in catalog._terms and whole(catalog, record)

    patch.setattr(Catalog, "hear", hear)


def a_removal_is_not_told(patch: Patch) -> None:
    whole = Catalog._records

    def records(catalog: Catalog) -> tuple[Any, ...]:
        return tuple(r for r in whole(catalog) if r.package is not None)

    patch.setattr(Catalog, "_records", records)


def requests_are_admitted_without_a_bound(patch: Patch) -> None:
    patch.setattr(admission, "fits", lambda *_: True)


def a_removed_model_is_watched_no_more(patch: Patch) -> None:
    whole = Plans.ended
    patch.setattr(Plans, "ended", lambda plans, _in_flight: whole(plans, set()))


def epochs_begin_again_with_a_new_disk(patch: Patch) -> None:
    patch.setattr(Catalog, "note_epoch", lambda *_: None)


def silence_of_one_device_is_no_sign(patch: Patch) -> None:
    patch.setattr(Pulses, "suspects", lambda *_: [])


def whoever_pauses_is_taken_for_dead(patch: Patch) -> None:
    patch.setattr(pulses, "SILENCE_S", 0.0)
    patch.setattr(pulses, "TIMES", 0.0)
    patch.setattr(pulses, "OUTLYING", 0.0)


def who_was_taken_for_dead_never_comes_back(patch: Patch) -> None:
    whole = Membership.heard_again

    def heard(members: Membership, device: str, session: str, now: float) -> bool:
        return device not in members._suspects and whole(members, device, session, now)

    patch.setattr(Membership, "heard_again", heard)


def a_plan_is_announced_though_nobody_has_it_ready(patch: Patch) -> None:
    patch.setattr(Readiness, "has", lambda *_: True)


def what_is_kept_ready_stays_loaded_for_ever(patch: Patch) -> None:
    whole = Spares.keep

    def keep(spares: Spares, standby: Any) -> list[ev.Effect]:
        return [e for e in whole(spares, standby) if not isinstance(e, ev.Unload)]

    patch.setattr(Spares, "keep", keep)


def a_flood_takes_the_room_of_others(patch: Patch) -> None:
    patch.setattr(admission, "surplus", lambda _, newcomer: (newcomer, overload.FULL))


def a_flood_takes_the_turns_of_others(patch: Patch) -> None:
    patch.setattr(Turns, "take", lambda *_: 0)


def requests_that_are_too_late_are_worked_on(patch: Patch) -> None:
    patch.setattr(admission, "late", lambda *_: [])


def the_newest_request_of_a_client_gives_way(patch: Patch) -> None:
    whole = overload.surplus

    def surplus(waiting: Any, newcomer: Request) -> tuple[Request, str]:
        request, why = whole(waiting, newcomer)
        return (newcomer if request.client == newcomer.client else request), why

    patch.setattr(admission, "surplus", surplus)


MUTATIONS: dict[Any, tuple[int, ...]] = {
    a_plan_is_announced_though_nobody_has_it_ready: (0,),
    silence_of_one_device_is_no_sign: (79,),
    what_is_kept_ready_stays_loaded_for_ever: (0,),
    who_was_taken_for_dead_never_comes_back: (20,),
    whoever_pauses_is_taken_for_dead: (5,),
    a_flood_takes_the_room_of_others: (0, 5),
    a_flood_takes_the_turns_of_others: (0, 5, 10),
    a_loss_is_not_planned_around: (0, 1),
    a_new_leader_does_not_know_what_is_deployed: (0, 3),
    a_new_plan_does_not_start_requests_again: (17,),
    a_plan_is_announced_once_one_device_has_it: (0,),
    a_removal_is_not_told: (27,),
    a_removed_model_is_watched_no_more: (2535,),
    a_silent_leader_is_waited_for: (745,),
    an_announced_plan_leaves_the_old_one_serving: (29,),
    an_old_will_ends_a_new_life: (8,),
    answered_requests_are_not_forgotten: (0, 1),
    deadlines_pass_unnoticed: (47,),
    devices_that_come_and_go_are_planned_with: (8,),
    devices_that_join_are_not_told_of_requests: (2535,),
    early_pieces_are_thrown_away: (0,),
    epochs_begin_again_with_a_new_disk: (632,),
    every_device_claims_requests_without_an_id: (0,),
    nobody_claims_requests_without_an_id: (0, 1),
    nobody_takes_over: (2,),
    offers_that_were_given_up_stay: (448, 567),
    older_plans_are_taken: (1355,),
    pieces_of_another_plan_are_taken: (1640,),
    ranks_do_not_wait: (5,),
    requests_that_are_too_late_are_worked_on: (0, 5, 10),
    the_newest_request_of_a_client_gives_way: (0, 5),
    redelivered_requests_run_again: (0,),
    requests_are_admitted_without_a_bound: (0,),
    requests_without_an_id_are_kept_by_payload: (95,),
    silence_is_no_sign: (41,),
    the_fingerprint_of_the_payload_is_ignored: (562,),
    two_may_lead: (2161,),
    what_an_old_disk_has_is_served: (27,),
    what_the_broker_lost_stays_lost: (1070,),
}


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: str(mutation.__name__))
def test_a_seed_notices_that(mutation: Any, monkeypatch: Patch) -> None:
    mutation(monkeypatch)
    seeds = chain(MUTATIONS[mutation], range(BOUND))
    assert any(play(seed).broken is not None for seed in seeds)
