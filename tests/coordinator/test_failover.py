"""Several coordinators, by scripted events: what a standby keeps, and what a new leader does."""

from __future__ import annotations

import msgspec

from agent.coordinator import CoordinatorCore
from agent.coordinator import events as ev
from agent.coordinator.core import UNREADY_S
from agent.coordinator.following import RETRY_S
from agent.coordinator.leadership import LISTEN_S, MISSED_S
from agent.coordinator.membership import SETTLE_S
from agent.wire.calibration import Figures
from agent.wire.messages import (
    Deploy,
    Deployed,
    ModelState,
    PlanHeader,
    Prepare,
    Prepared,
    Remove,
    Status,
)
from tests.builders import only, ref
from tests.coordinator.test_core import (
    CAPACITY,
    PACKAGE,
    Boss,
    announced,
    computed,
    computes,
    offers,
    serving,
    tells,
)

RECORD = Deployed("m", PACKAGE, 1, term=1, coordinator="boss")
GONE = Deployed("m", None, 1, term=2, coordinator="boss")
SERVING = (ModelState("m", "serving", 1, ("a", "b")),)


def leader(
    term: int = 1, models: tuple[ModelState, ...] = SERVING, name: str = "boss"
) -> ev.StatusSeen:
    return ev.StatusSeen(Status(name, "1", "online", "coordinator", term=term, models=models))


WILL = ev.StatusSeen(Status("boss", "1", "offline", "coordinator"))


class Standby(Boss):
    """A coordinator `next` that stands by while `boss` leads."""

    def __init__(self, *saved: Deployed, term: int = 1) -> None:
        self.now = 0.0
        self.done = []
        self.core = CoordinatorCore("next", "1", saved, self.now, budget_s=0.0)
        self.do(ev.Connected())
        self.do(leader(term))
        self.do(ev.StatusSeen(Status("next", "1", "online", "coordinator")))

    def serves(self, *devices: str, epoch: int = 1) -> None:
        for device in devices:
            self.do(
                ev.StatusSeen(Status(device, "1", "online", capacity=CAPACITY, plans={"m": epoch}))
            )


def standby(*devices: str) -> tuple[Standby, PlanHeader]:
    """Return a coordinator that has all that `boss` serves on `devices`, and the plan's header."""
    (header,) = announced_by_boss(*devices)
    seat = Standby()
    seat.do(ev.RecordSeen(RECORD))
    seat.do(ev.Fetched("deployed/m"))
    seat.do(ev.HeaderSeen(header))
    seat.serves(*devices)
    seat.done.clear()
    return seat, header


def announced_by_boss(*devices: str) -> list[PlanHeader]:
    boss = Boss()
    boss.online(*devices)
    boss.deploy()
    boss.later(SETTLE_S)
    return [boss.serve(*devices)]


def test_on_standby_a_model_is_fetched_and_nobody_is_told_anything() -> None:
    seat = Standby()
    seat.done.clear()
    effects = seat.do(ev.RecordSeen(RECORD))
    assert only(ev.Fetch, effects) == [ev.Fetch("deployed/m", PACKAGE.blobs(), "boss")]
    (saved,) = only(ev.Persist, effects)
    assert [record.package for record in saved.records] == [PACKAGE]
    assert saved.blobs >= PACKAGE.blobs().keys()
    seat.do(ev.Fetched("deployed/m"))
    seat.online("a", "b")
    seat.offline("b")
    seat.do(ev.DeployAsked(Deploy("alice", "1", PACKAGE)))
    seat.do(ev.RemoveAsked(Remove("alice", "2", "m")))
    seat.later(2.0)
    told = (ev.Tell, ev.Record, ev.Announce, ev.Withdraw, ev.ComputePlan)
    assert [effect for effect in seat.done if isinstance(effect, told)] == []
    assert only(ev.Show, seat.done)[-1] == ev.Show((), 0)


def test_a_new_leader_leaves_a_plan_that_is_still_right() -> None:
    seat, header = standby("a", "b")
    effects = seat.do(WILL) + seat.later(0.1)
    assert computes(effects) == [["a", "b"]]
    assert only(ev.Record, effects) == [ev.Record(Deployed("m", PACKAGE, 1, 2, "next"))]
    effects = seat.do(computed("ab"))
    assert (offers(effects), announced(effects)) == ([], [])
    assert only(ev.Show, effects)[-1] == ev.Show(
        (ModelState("m", "serving", 1, header.devices, (), calibrates=False),), 2
    )


def test_a_new_leader_leaves_no_plan_that_a_device_does_not_serve() -> None:
    seat, _ = standby("a", "b")
    seat.do(ev.StatusSeen(Status("b", "2", "online", capacity=CAPACITY)))
    seat.do(WILL)
    seat.later(0.1)
    (header,) = offers(seat.do(computed("ab")))
    assert (header.epoch, header.coordinator, header.source) == (2, "next", "next")


def test_a_device_lost_meanwhile_is_planned_around() -> None:
    seat, _ = standby("a", "b")
    seat.offline("b")
    assert computes(seat.do(WILL) + seat.later(0.1)) == [["a"]]
    (header,) = offers(seat.do(computed("a")))
    assert (header.devices, header.epoch) == (("a",), 2)


def test_a_silent_leader_is_followed_too() -> None:
    seat, _ = standby("a", "b")
    assert computes(seat.later(MISSED_S - 0.1)) == []
    assert computes(seat.later(0.2)) == [["a", "b"]]


def test_plans_are_newer_than_all_that_the_last_leader_offered() -> None:
    seat, _ = standby("a", "b")
    seat.do(ev.RecordSeen(msgspec.structs.replace(RECORD, epoch=7)))
    seat.offline("b")
    seat.do(WILL)
    seat.later(0.1)
    (header,) = offers(seat.do(computed("a")))
    assert header.epoch == 8


def test_the_figures_of_the_last_leader_are_planned_with() -> None:
    seat, _ = standby("a", "b")
    seat.do(ev.RecordSeen(msgspec.structs.replace(RECORD, figures={"a": Figures(None, 2.0)})))
    (compute,) = only(ev.ComputePlan, seat.do(WILL) + seat.later(0.1))
    assert compute.figures["a"].factor == 2.0


def test_what_was_removed_while_it_was_away_is_forgotten() -> None:
    seat = Standby(RECORD, term=2)
    effects = seat.do(ev.RecordSeen(GONE))
    assert only(ev.Persist, effects)[-1].records == (
        msgspec.structs.replace(GONE, coordinator="next"),
    )
    seat.online("a")
    seat.do(WILL)
    assert computes(seat.later(SETTLE_S)) == []


def test_what_was_deployed_while_it_was_away_is_what_it_serves() -> None:
    seat = Standby(RECORD, term=2)
    newer = msgspec.structs.replace(PACKAGE, graph=ref("better"))
    effects = seat.do(ev.RecordSeen(Deployed("m", newer, 5, term=2, coordinator="boss")))
    assert only(ev.Fetch, effects) == [ev.Fetch("deployed/m", newer.blobs(), "boss")]
    assert [r.package for r in only(ev.Persist, effects)[-1].records] == [newer]


def test_an_old_record_changes_nothing() -> None:
    seat = Standby(GONE, term=2)
    assert seat.do(ev.RecordSeen(RECORD)) == []


def test_a_leader_is_told_of_what_it_never_heard_of() -> None:
    seat = Standby(RECORD, term=2)
    effects = seat.do(leader(term=2, models=()))
    assert only(ev.Record, effects) == [
        ev.Record(msgspec.structs.replace(RECORD, coordinator="next"))
    ]
    assert only(ev.Record, seat.do(leader(term=2))) == []


def test_a_leader_deploys_what_it_never_heard_of() -> None:
    boss = Boss()
    boss.online("a")
    effects = boss.do(ev.RecordSeen(Deployed("m", PACKAGE, 3, term=0, coordinator="next")))
    assert only(ev.Fetch, effects) == [ev.Fetch("deployed/m", PACKAGE.blobs(), "next")]
    assert only(ev.Record, effects) == [ev.Record(Deployed("m", PACKAGE, 3, 1, "boss"))]
    assert computes(boss.later(SETTLE_S)) == []
    boss.do(ev.Fetched("deployed/m"))
    assert computes(boss.later(SETTLE_S)) == [["a"]]


def test_a_leader_does_not_deploy_again_what_it_removed() -> None:
    boss = serving("a")
    boss.do(ev.RemoveAsked(Remove("alice", "9", "m")))
    assert boss.do(ev.RecordSeen(msgspec.structs.replace(RECORD, term=0))) == []


def test_a_leader_that_is_led_changes_nothing_any_more() -> None:
    boss = serving("a", "b")
    boss.do(leader(term=2, name="next"))
    assert only(ev.Show, boss.done)[-1] == ev.Show((), 0)
    boss.done.clear()
    boss.offline("b")
    boss.later(SETTLE_S)
    assert (computes(boss.done), tells(boss.done)) == ([], [])


def test_a_leader_that_slept_looks_at_everything_anew() -> None:
    boss = serving("a", "b")
    boss.now += 2 * MISSED_S
    assert boss.offline("b") == [
        ev.Log("info", "stands by; nobody known leads"),
        ev.Show((), 0),
    ]
    boss.do(ev.StatusSeen(Status("boss", "1", "online", "coordinator")))
    assert computes(boss.later(LISTEN_S + 0.1)) == [["a"]]


def test_another_coordinators_plan_is_planned_over() -> None:
    boss = serving("a", "b")
    (header,) = announced_by_boss("a", "b")
    newer = msgspec.structs.replace(header, epoch=5, coordinator="zzz", source="zzz")
    assert computes(boss.do(ev.HeaderSeen(newer))) == [["a", "b"]]
    (mine,) = offers(boss.do(computed("ab")))
    assert (mine.epoch, mine.coordinator) == (6, "boss")


def test_what_one_coordinator_cannot_send_another_is_asked_for() -> None:
    seat = Standby()
    seat.do(leader(term=0, models=(), name="third"))
    seat.do(ev.RecordSeen(RECORD))
    holders = []
    for _ in range(4):
        seat.do(ev.FetchFailed("deployed/m", "it is gone"))
        for _ in range(int(RETRY_S)):
            seat.do(leader())
            seat.do(leader(term=0, models=(), name="third"))
            holders += [fetch.holder for fetch in only(ev.Fetch, seat.later(1.0))]
    assert set(holders) == {"boss", "third"}


def test_what_its_own_disk_lacks_it_fetches_from_another() -> None:
    seat = Standby(RECORD)
    assert only(ev.Fetch, seat.done) == [ev.Fetch("deployed/m", PACKAGE.blobs(), "next")]
    seat.do(ev.FetchFailed("deployed/m", "it is damaged"))
    for _ in range(int(RETRY_S)):
        seat.do(leader())
        seat.later(1.0)
    assert [fetch.holder for fetch in only(ev.Fetch, seat.done)] == ["next", "boss"]


def test_who_lacks_a_model_lets_others_lead() -> None:
    seat = Standby(RECORD)
    seat.do(leader(term=0, models=(), name="third"))
    seat.do(WILL)
    assert seat.core._leadership.handicap_s == 0.0
    seat.later(0.1)
    assert seat.core._leadership.handicap_s == UNREADY_S
    seat.do(ev.Fetched("deployed/m"))
    seat.later(0.1)
    assert seat.core._leadership.handicap_s == 0.0


def test_an_offer_that_came_late_is_taken_back() -> None:
    seat, header = standby("a", "b")
    effects = seat.do(ev.PreparedSeen(Prepared("b", "m", 2, ok=True)))
    assert tells(effects) == [("b", Prepare(header))]


def test_a_device_that_started_anew_since_the_last_plan_has_joined_the_next() -> None:
    seat, _ = standby("a", "b")
    # It has loaded the plan again, but may have missed requests.
    seat.do(ev.StatusSeen(Status("b", "2", "online", capacity=CAPACITY, plans={"m": 1})))
    seat.serves("c", epoch=0)
    seat.do(WILL)
    seat.later(0.1)
    (header,) = offers(seat.do(computed("abc")))
    assert header.joined == ("b", "c")


def test_who_joined_the_last_leaders_plan_is_told_again() -> None:
    seat, header = standby("a", "b")
    seat.do(ev.HeaderSeen(msgspec.structs.replace(header, epoch=2, joined=("b",))))
    seat.serves("a", "b", epoch=2)
    seat.serves("c", epoch=0)
    seat.do(WILL)
    seat.later(0.1)
    (header,) = offers(seat.do(computed("abc")))
    assert header.joined == ("b", "c")


def test_a_word_of_the_plan_that_serves_is_not_answered_for_ever() -> None:
    boss = serving("a", "b")
    boss.do(leader(term=2, name="next"))
    assert tells(boss.prepared("b", 1)) == []
