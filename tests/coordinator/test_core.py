"""The coordinator by scripted events: one decision each, with no broker, planner or clock."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from agent.coordinator import CoordinatorCore, flapping, leadership
from agent.coordinator import events as ev
from agent.coordinator.catalog import MAX_EPOCH, MAX_RETIRED
from agent.coordinator.clients import MAX_DEPLOYS, MAX_WAITING
from agent.coordinator.core import BUDGET_S, RETAINED_S
from agent.coordinator.leadership import LISTEN_S
from agent.coordinator.membership import EXCLUDE_S, FIRST_HOLD_S, SETTLE_S, SILENT_S
from agent.coordinator.offers import PREPARE_S, REMIND_S
from agent.coordinator.planning import CALM_S
from agent.wire.messages import (
    BEAT_S,
    Beat,
    Capacity,
    Deploy,
    Deployed,
    ModelState,
    PlanHeader,
    Prepare,
    Prepared,
    Progress,
    Ready,
    Remove,
    Standby,
    Status,
)
from agent.wire.model import ModelPackage
from tests.builders import digest_of, only, ref

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

CAPACITY = Capacity("cpu", 4, 4, 1 << 30, (), 1e9, 1e9, 1e-3, 1e7)
PACKAGE = ModelPackage("m", ref("graph"), (), ref("manifest"))


def computed(
    devices: Iterable[str],
    *,
    used: Iterable[str] = (),
    package: ModelPackage | None = None,
    graph: str = "graph",
) -> ev.Computed:
    """Return what a planner makes for a fleet; `used` are the devices that get a part."""
    fleet = frozenset(devices)
    order = tuple(used) or tuple(sorted(fleet))
    name = "+".join(order)
    programs = {device: ref(f"{graph}: {device} of {name}") for device in order}
    blobs = {device: {digest_of(f"segments of {name}"): 20} for device in order}
    package = package or msgspec.structs.replace(PACKAGE, graph=ref(graph))
    return ev.Computed(package, ev.ComputedPlan(fleet, order, programs, blobs, 12.5))


class Boss:
    """A coordinator core; the events that tests need most have methods of their own."""

    def __init__(self, *saved: tuple[ModelPackage, int]) -> None:
        self.now = 0.0
        self.lead([Deployed(package.name, package, epoch) for package, epoch in saved])

    def lead(self, saved: Sequence[Deployed] = (), budget_s: float = BUDGET_S) -> None:
        """Begin a life: nobody else leads, so this coordinator does, and has settled."""
        self.done: list[ev.Effect] = []
        self.core = CoordinatorCore("boss", "1", saved, self.now - LISTEN_S, budget_s=budget_s)
        own = Status("boss", "1", "online", "coordinator")
        found: list[ev.Event] = [ev.Fetched(f"deployed/{record.model}") for record in saved]
        for event in (ev.Connected(), *found, ev.StatusSeen(own)):
            self.core.handle(event, self.now - LISTEN_S)
        self.core.handle(ev.Tick(), self.now)
        self.core.handle(ev.Tick(), self.now)

    def do(self, event: ev.Event) -> list[ev.Effect]:
        effects = self.core.handle(event, self.now)
        self.done += effects
        return effects

    def online(
        self, *devices: str, session: str = "1", capacity: Capacity = CAPACITY
    ) -> list[ev.Effect]:
        return [
            effect
            for device in devices
            for effect in self.do(
                ev.StatusSeen(Status(device, session, "online", capacity=capacity))
            )
        ]

    def offline(self, device: str, session: str = "1") -> list[ev.Effect]:
        return self.do(ev.StatusSeen(Status(device, session, "offline")))

    def later(self, seconds: float) -> list[ev.Effect]:
        """Let time pass, as it does: with a tick for each beat."""
        until = self.now + seconds
        effects: list[ev.Effect] = []
        while self.now < until:
            self.now = min(until, self.now + leadership.BEAT_S)
            effects += self.do(ev.Tick())
        return effects

    def deploy(self, package: ModelPackage = PACKAGE, reference: str = "1") -> list[ev.Effect]:
        effects = self.do(ev.DeployAsked(Deploy("alice", reference, package)))
        return effects + self.do(ev.Fetched(f"deploy/alice/{reference}"))

    def prepared(self, device: str, epoch: int, reason: str = "") -> list[ev.Effect]:
        message = Prepared(device, "m", epoch, not reason, reason)
        return self.do(ev.PreparedSeen(message))

    def serve(self, *devices: str, used: Iterable[str] = ()) -> PlanHeader:
        """Bring the fleet to a plan that is announced; return its header."""
        self.do(computed(devices, used=used))
        header = offers(self.done)[-1]
        effects = [e for device in header.devices for e in self.prepared(device, header.epoch)]
        assert announced(effects) == [header]
        return header


def serving(*devices: str, used: Iterable[str] = (), spare: bool = True) -> Boss:
    """Return a coordinator whose model is served, with the plans for each loss computed."""
    boss = Boss()
    boss.online(*devices)
    boss.deploy()
    boss.later(SETTLE_S)
    header = boss.serve(*devices, used=used)
    for lost in header.devices if spare and len(devices) > 1 else ():
        boss.do(computed(set(devices) - {lost}))
    boss.done.clear()
    return boss


def computes(effects: Iterable[ev.Effect]) -> list[list[str]]:
    return [[m.device for m in compute.members] for compute in only(ev.ComputePlan, effects)]


def tells(effects: Iterable[ev.Effect]) -> list[tuple[str, object]]:
    return [(tell.device, tell.message) for tell in only(ev.Tell, effects)]


def offers(effects: Iterable[ev.Effect]) -> list[PlanHeader]:
    plans = [message.plan for _, message in tells(effects) if isinstance(message, Prepare)]
    return [header for number, header in enumerate(plans) if header not in plans[:number]]


def announced(effects: Iterable[ev.Effect]) -> list[PlanHeader]:
    return [announce.header for announce in only(ev.Announce, effects)]


def progress(effects: Iterable[ev.Effect]) -> list[Progress]:
    messages = [message for device, message in tells(effects) if device == "alice"]
    return [message for message in messages if isinstance(message, Progress)]


def shown(boss: Boss) -> ModelState:
    (state,) = only(ev.Show, boss.done)[-1].models
    return state


# Making plans -----------------------------------------------------------------------------------


def test_a_deployment_waits_for_devices() -> None:
    boss = Boss()
    assert computes(boss.deploy()) == []
    assert shown(boss).state == "waiting for devices"
    assert computes(boss.online("a") + boss.later(SETTLE_S)) == [["a"]]
    assert shown(boss).state == "planning"


def test_a_plan_is_made_for_the_devices_that_are_there() -> None:
    boss = Boss()
    boss.online("b", "a", "c")
    boss.offline("c")
    (compute,) = only(ev.ComputePlan, boss.deploy())
    assert compute.package == PACKAGE
    assert [(m.device, m.session, m.capacity) for m in compute.members] == [
        ("a", "1", CAPACITY),
        ("b", "1", CAPACITY),
    ]


def test_a_plan_is_prepared_by_all_of_its_devices() -> None:
    boss = Boss()
    boss.online("a", "b")
    boss.deploy()
    effects = boss.do(computed("ab"))
    told = [(device, message) for device, message in tells(effects) if device != "alice"]
    (header,) = offers(effects)
    assert told == [("a", Prepare(header)), ("b", Prepare(header))]
    assert (header.epoch, header.coordinator, header.source) == (1, "boss", "boss")
    assert (header.model, header.devices, header.joined) == ("m", ("a", "b"), ())
    assert (header.manifest, header.predicted_ms) == (PACKAGE.manifest, 12.5)
    assert announced(effects) == []


def test_a_plan_is_announced_once_every_device_is_prepared() -> None:
    boss = Boss()
    boss.online("a", "b")
    boss.deploy()
    boss.do(computed("ab"))
    assert announced(boss.prepared("b", 1) + boss.prepared("b", 1)) == []
    assert shown(boss).state == "preparing"
    assert announced(boss.prepared("a", 1)) == offers(boss.done)
    assert shown(boss) == ModelState("m", "serving", 1, ("a", "b"))


def test_the_epoch_is_saved_before_a_plan_is_offered() -> None:
    boss = Boss()
    boss.online("a")
    boss.deploy()
    effects = boss.do(computed("a"))
    kinds = [type(effect) for effect in effects]
    assert kinds.index(ev.Persist) < kinds.index(ev.Tell)
    (persist,) = only(ev.Persist, effects)
    assert persist.records == (Deployed("m", PACKAGE, 1, 1, "boss"),)
    plan = computed("a").plan
    wanted = {*PACKAGE.blobs(), plan.programs["a"].digest, *plan.blobs["a"]}
    assert persist.blobs >= wanted


def test_a_word_of_another_epoch_does_not_count() -> None:
    boss = Boss()
    boss.online("a")
    boss.deploy()
    boss.do(computed("a"))
    assert boss.prepared("a", 7) == []
    assert boss.prepared("a", 7, "no space left") == []
    assert announced(boss.prepared("a", 1)) != []


def test_one_plan_is_computed_at_a_time() -> None:
    boss = Boss()
    boss.online("a")
    assert computes(boss.deploy()) == [["a"]]
    assert computes(boss.online("b") + boss.later(SETTLE_S)) == []
    # The result is for a fleet that is no more: another one is computed, and this one not offered.
    effects = boss.do(computed("a"))
    assert computes(effects) == [["a", "b"]]
    assert offers(effects) == []


def test_notes_of_the_planner_are_logged() -> None:
    boss = Boss()
    boss.online("a")
    boss.deploy()
    event = computed("a")
    plan = ev.ComputedPlan(
        event.plan.fleet, ("a",), event.plan.programs, event.plan.blobs, 1.0, ("c is too slow",)
    )
    logs = only(ev.Log, boss.do(ev.Computed(PACKAGE, plan)))
    assert ("info", "c is too slow") in [(log.level, log.text) for log in logs]


def test_a_model_that_cannot_be_planned_is_refused_and_forgotten() -> None:
    boss = Boss()
    boss.online("a")
    boss.deploy()
    effects = boss.do(ev.ComputeFailed(PACKAGE, frozenset("a"), "Loop is not supported"))
    (last,) = progress(effects)
    assert (last.done, last.ok, last.text) == (True, False, "Loop is not supported")
    assert only(ev.Persist, effects)[-1].records == (Deployed("m", None, 0, 1, "boss"),)
    assert only(ev.Show, effects)[-1].models == ()


def test_a_model_that_is_served_stays_when_it_cannot_be_planned_anew() -> None:
    boss = serving("a", "b", spare=False)
    boss.do(ev.ComputeFailed(PACKAGE, frozenset("b"), "too large"))
    boss.do(ev.ComputeFailed(PACKAGE, frozenset("a"), "too large"))
    boss.offline("b")
    effects = boss.do(ev.ComputeFailed(PACKAGE, frozenset("a"), "too large"))
    assert shown(boss).state == "cannot be planned: too large"
    assert only(ev.Log, effects)[0].level == "error"
    assert only(ev.Withdraw, effects) == []
    assert computes(boss.online("c") + boss.later(SETTLE_S)) == [["a", "c"]]


# Losses and joins -------------------------------------------------------------------------------


def test_a_lost_device_is_planned_for_at_once() -> None:
    boss = serving("a", "b", "c", spare=False)
    boss.do(computed("bc"))
    boss.do(computed("ac"))
    effects = boss.offline("c")
    assert computes(effects) == []  # the planner is busy with this very plan
    assert [header.devices for header in offers(boss.do(computed("ab")))] == [("a", "b")]


def test_a_plan_for_a_loss_that_was_computed_in_advance_is_offered_without_computing() -> None:
    boss = serving("a", "b", "c")
    effects = boss.offline("b")
    assert computes(effects) == []
    (header,) = offers(effects)
    assert (header.devices, header.epoch, header.joined) == (("a", "c"), 2, ())
    assert {device for device, _ in tells(effects)} == {"a", "c"}


def test_plans_for_each_loss_are_computed_one_after_another() -> None:
    boss = Boss()
    boss.online("a", "b", "c")
    boss.deploy()
    boss.serve("a", "b", "c")
    order = computes(boss.done)[1:]
    while len(order) < 3:
        order += computes(boss.do(computed(order[-1])))
    assert sorted(order) == [["a", "b"], ["a", "c"], ["b", "c"]]
    assert computes(boss.do(computed(order[-1]))) == []


def test_what_a_loss_would_need_is_brought_to_the_devices() -> None:
    boss = Boss()
    boss.online("a", "b")
    boss.deploy()
    boss.serve("a", "b")
    boss.do(computed("b"))
    effects = boss.do(computed("a"))
    standby = {d: message for d, message in tells(effects) if isinstance(message, Standby)}
    for device in "ab":
        plan = computed(device).plan
        blobs = {blob.digest: blob.nbytes for blob in standby[device].blobs}
        program = plan.programs[device]
        manifest = standby[device].manifest
        assert manifest is not None
        own = {ref.digest: ref.nbytes for ref in (program, manifest)}
        assert blobs == {**plan.blobs[device], **own}
        assert standby[device].programs == (program,)
        assert standby[device].source == "boss"
        assert only(ev.Persist, effects)[-1].blobs >= blobs.keys()


def test_a_plan_for_a_loss_that_cannot_be_made_is_passed_over() -> None:
    boss = serving("a", "b", spare=False)
    effects = boss.do(ev.ComputeFailed(PACKAGE, frozenset("b"), "too large"))
    assert computes(effects) == [["a"]]
    assert computes(boss.later(100.0)) == []


def test_a_device_lost_while_it_prepares_is_planned_for_at_once() -> None:
    boss = Boss()
    boss.online("a", "b")
    boss.deploy()
    boss.do(computed("ab"))
    boss.prepared("a", 1)
    assert computes(boss.offline("b")) == [["a"]]
    assert [header.epoch for header in offers(boss.do(computed("a")))] == [2]


def test_a_device_that_started_anew_is_planned_for_at_once() -> None:
    boss = serving("a", "b")
    assert computes(boss.online("b", session="2")) == [["a", "b"]]
    # The programs are the same, but this agent has lost them and the requests in flight.
    (header,) = offers(boss.do(computed("ab")))
    assert (header.epoch, header.joined) == (2, ("b",))


def test_the_loss_of_a_device_outside_the_plan_changes_nothing() -> None:
    boss = serving("a", "b", "c", used="ab")
    assert computes(boss.offline("c")) == []
    assert computes(boss.later(SETTLE_S)) == [["a", "b"]]
    effects = boss.do(computed("ab"))
    assert offers(effects) == []
    assert announced(effects) == []
    assert shown(boss) == ModelState("m", "serving", 1, ("a", "b"))


def test_the_loss_of_all_devices_waits_for_new_ones() -> None:
    boss = serving("a")
    boss.offline("a")
    assert shown(boss).state == "waiting for devices"
    assert computes(boss.online("b") + boss.later(SETTLE_S)) == [["b"]]


def test_a_join_is_acted_on_when_the_fleet_was_quiet() -> None:
    boss = serving("a", "b")
    assert computes(boss.online("c")) == []
    assert computes(boss.later(SETTLE_S - 0.1)) == []
    boss.online("d")
    assert boss.core.next_timer() == boss.now + SETTLE_S
    assert computes(boss.later(0.2)) == []
    assert computes(boss.later(0.3)) == [["a", "b", "c", "d"]]


def test_devices_that_joined_are_named_in_the_plan() -> None:
    boss = serving("a", "b")
    boss.online("c")
    boss.later(SETTLE_S)
    (header,) = offers(boss.do(computed("abc")))
    assert header.joined == ("c",)


def test_all_have_joined_a_model_that_was_removed_before() -> None:
    # Devices that were offered the plan before may have requests which the others lack.
    boss = serving("a", "b")
    boss.do(ev.RemoveAsked(Remove("alice", "9", "m")))
    boss.deploy()
    boss.do(computed("ab"))
    assert offers(boss.done)[-1].joined == ("a", "b")


def test_a_joined_device_does_not_disturb_while_the_plan_is_made() -> None:
    boss = serving("a", "b")
    boss.online("c")
    boss.later(SETTLE_S)
    assert announced(boss.done) == []
    assert shown(boss) == ModelState("m", "planning", 1, ("a", "b"))
    boss.serve("a", "b", "c")
    assert shown(boss) == ModelState("m", "serving", 2, ("a", "b", "c"))


def test_a_plan_that_comes_out_the_same_is_not_announced_again() -> None:
    boss = serving("a", "b")
    boss.online("c")
    boss.later(SETTLE_S)
    effects = boss.do(computed("abc", used="ab"))
    assert offers(effects) == []
    assert announced(effects) == []
    assert shown(boss) == ModelState("m", "serving", 1, ("a", "b"))


def test_capacity_noise_does_not_plan_again() -> None:
    boss = serving("a", "b")
    boss.online("a", capacity=msgspec.structs.replace(CAPACITY, flops_per_s=1.4e9))
    assert computes(boss.later(SETTLE_S)) == []
    boss.online("a", capacity=msgspec.structs.replace(CAPACITY, flops_per_s=1.6e9))
    assert computes(boss.later(SETTLE_S)) == [["a", "b"]]


def test_statuses_of_coordinators_are_ignored() -> None:
    boss = serving("a", "b")
    for state in ("online", "offline"):
        status = Status("b", "1", "online", role="coordinator", capacity=CAPACITY)
        assert boss.do(ev.StatusSeen(msgspec.structs.replace(status, state=state))) == []
    assert computes(boss.later(SETTLE_S)) == []


def test_an_old_will_does_not_remove_a_new_birth() -> None:
    boss = serving("a", "b")
    boss.online("b", session="2")
    boss.serve("a", "b")
    assert boss.offline("b", session="1") == []
    assert computes(boss.later(SETTLE_S)) == []


# Devices that cannot ----------------------------------------------------------------------------


def test_a_device_that_cannot_prepare_is_held_back_and_tried_again() -> None:
    boss = Boss()
    boss.online("a", "b")
    boss.deploy()
    boss.do(computed("ab"))
    effects = boss.prepared("b", 1, "out of memory")
    assert computes(effects) == [["a"]]
    assert "b cannot serve: out of memory" in [p.text for p in progress(effects)]
    assert only(ev.Log, effects)[0].level == "error"
    assert announced(boss.prepared("a", 1)) == []
    boss.serve("a")
    boss.later(SETTLE_S)
    assert computes(boss.later(EXCLUDE_S - boss.now - 0.1)) == []
    assert computes(boss.later(0.1)) == [["a", "b"]]


def preparing() -> Boss:
    """Return a coordinator that waits for b; a is prepared."""
    boss = Boss()
    boss.online("a", "b")
    boss.deploy()
    boss.later(SETTLE_S)
    boss.do(computed("ab"))
    boss.prepared("a", 1)
    return boss


def test_a_device_that_prepares_is_reminded() -> None:
    boss = preparing()
    for _ in range(3):
        assert tells(boss.later(REMIND_S - 0.1)) == []
        assert tells(boss.later(0.1)) == [("b", Prepare(offers(boss.done)[0]))]
    assert len(offers(boss.done)) == 1
    assert announced(boss.prepared("b", 1)) == offers(boss.done)
    assert tells(boss.later(REMIND_S)) == []


def test_a_device_that_prepares_for_too_long_is_held_back() -> None:
    boss = preparing()
    end = boss.now + PREPARE_S
    while boss.now < end - REMIND_S:
        assert computes(boss.later(REMIND_S)) == []
    effects = boss.later(REMIND_S)
    assert computes(effects) == [["a"]]
    assert ("warning", "b prepares for too long") in [
        (log.level, log.text) for log in only(ev.Log, effects)
    ]
    assert announced(boss.prepared("b", 1)) == []
    assert [header.epoch for header in offers(boss.do(computed("a")))] == [2]


def test_after_a_tick_no_timer_is_due() -> None:
    boss = preparing()
    boss.do(ev.Connected())
    for _ in range(50):
        boss.now = max(boss.now, boss.core.next_timer())
        boss.do(ev.Tick())
        assert boss.core.next_timer() > boss.now
    assert boss.now > REMIND_S


def test_a_device_that_comes_and_goes_is_held_back_for_a_while() -> None:
    boss = serving("a", "b")
    for _ in range(flapping.FREE + 1):
        boss.offline("b")
        boss.online("b")
    assert only(ev.Show, boss.done)[-1].held == ("b",)
    text = f"b comes and goes: held back for {flapping.FIRST_HOLD_S:.0f} s"
    assert ("warning", text) in [(log.level, log.text) for log in only(ev.Log, boss.done)]
    header = offers(boss.done)[-1]
    assert announced(boss.prepared("a", header.epoch)) == [header]
    assert header.devices == ("a",)
    boss.done.clear()
    assert computes(boss.later(flapping.FIRST_HOLD_S - 0.1)) == []
    assert computes(boss.later(0.1)) == [["a", "b"]]
    assert only(ev.Show, boss.done)[-1].held == ()


def test_where_there_is_no_other_a_device_that_comes_and_goes_is_used() -> None:
    boss = serving("a")
    for _ in range(flapping.FREE + 2):
        boss.offline("a")
        boss.online("a")
    assert computes(boss.done + boss.later(SETTLE_S))[-1] == ["a"]


# Restart and epochs -----------------------------------------------------------------------------


def restarted(header: PlanHeader, *devices: str, epoch: int | None = None) -> Boss:
    boss = Boss((PACKAGE, header.epoch if epoch is None else epoch))
    boss.online(*devices)
    boss.do(ev.HeaderSeen(header))
    boss.later(SETTLE_S)
    return boss


def plan_of(*devices: str, epoch: int, coordinator: str = "boss") -> PlanHeader:
    plan = computed(devices).plan
    return PlanHeader(
        epoch=epoch,
        coordinator=coordinator,
        model="m",
        digest=digest_of(f"plan {epoch}"),
        devices=plan.devices,
        programs=plan.programs,
        manifest=PACKAGE.manifest,
        source=coordinator,
    )


def test_a_restart_adopts_the_retained_plan_and_does_not_announce_an_equal_one() -> None:
    boss = restarted(plan_of("a", "b", epoch=5), "a", "b")
    assert computes(boss.done) == [["a", "b"]]
    effects = boss.do(computed("ab"))
    assert offers(effects) == []
    assert announced(effects) == []
    assert shown(boss) == ModelState("m", "serving", 5, ("a", "b"))


def test_after_a_restart_another_plan_gets_a_higher_epoch() -> None:
    boss = restarted(plan_of("a", "b", epoch=5), "a", "b", "c")
    assert [header.epoch for header in offers(boss.do(computed("abc")))] == [6]


def test_epochs_go_on_from_the_highest_that_was_saved_or_seen() -> None:
    for saved, retained in ((9, 5), (5, 9)):
        boss = restarted(plan_of("a", "b", epoch=retained), "a", "b", "c", epoch=saved)
        assert [header.epoch for header in offers(boss.do(computed("abc")))] == [10]


def test_the_plan_of_another_coordinator_is_taken_over_with_a_higher_epoch() -> None:
    # Its programs are its own blobs: they are offered anew, from here.
    boss = restarted(plan_of("a", "b", epoch=5, coordinator="other"), "a", "b")
    (header,) = offers(boss.do(computed("ab")))
    assert (header.epoch, header.coordinator, header.source) == (6, "boss", "boss")


def test_an_older_header_is_ignored() -> None:
    boss = serving("a", "b")
    boss.do(ev.HeaderSeen(plan_of("a", epoch=1, coordinator="anna")))
    boss.online("c")
    boss.later(SETTLE_S)
    (header,) = offers(boss.do(computed("abc")))
    assert (header.epoch, header.joined) == (2, ("c",))


def test_a_header_of_an_unknown_model_is_logged() -> None:
    boss = Boss()
    assert [log.level for log in only(ev.Log, boss.do(ev.HeaderSeen(plan_of("a", epoch=1))))] == [
        "warning"
    ]


def test_epochs_only_grow() -> None:
    boss = serving("a", "b", "c")
    boss.offline("c")
    boss.prepared("a", 2, "out of memory")
    boss.do(computed("b"))
    boss.online("c", session="2")
    boss.later(SETTLE_S)
    boss.do(computed("bc"))
    epochs = [header.epoch for header in offers(boss.done)]
    assert len(epochs) >= 3
    assert epochs == sorted(set(epochs))


# Clients ----------------------------------------------------------------------------------------


def test_a_deploy_fetches_the_model_from_its_client() -> None:
    boss = Boss()
    effects = boss.do(ev.DeployAsked(Deploy("alice", "7", PACKAGE)))
    assert only(ev.Fetch, effects) == [ev.Fetch("deploy/alice/7", PACKAGE.blobs(), "alice")]
    (first,) = progress(effects)
    assert (first.reference, first.text, first.done) == ("7", "fetching the model", False)


def test_the_progress_of_a_deploy_reaches_its_client() -> None:
    boss = Boss()
    boss.online("a")
    boss.do(ev.DeployAsked(Deploy("alice", "7", PACKAGE)))
    (half,) = progress(boss.do(ev.Fetching("deploy/alice/7", 0.5)))
    assert (half.reference, half.fraction, half.done) == ("7", 0.5, False)
    boss.do(ev.Fetched("deploy/alice/7"))
    assert [p.text for p in progress(boss.do(computed("a")))] == ["preparing on a"]
    (last,) = progress(boss.prepared("a", 1))
    assert (last.reference, last.done, last.ok, last.fraction) == ("7", True, True, 1.0)
    assert last.plan == announced(boss.done)[0]


def test_a_fetch_that_fails_reaches_the_client() -> None:
    boss = Boss()
    boss.do(ev.DeployAsked(Deploy("alice", "7", PACKAGE)))
    (last,) = progress(boss.do(ev.FetchFailed("deploy/alice/7", "the disk is full")))
    assert (last.reference, last.done, last.ok) == ("7", True, False)
    assert last.text == "the disk is full"
    assert only(ev.Show, boss.done) == []


def test_events_of_an_unknown_fetch_do_nothing() -> None:
    boss = Boss()
    for event in (ev.Fetched("x"), ev.Fetching("x", 0.1), ev.FetchFailed("x", "gone")):
        assert boss.do(event) == []


def test_the_same_package_again_is_done_at_once() -> None:
    boss = serving("a", "b")
    effects = boss.deploy(reference="2")
    assert computes(effects) == []
    assert offers(effects) == []
    last = progress(effects)[-1]
    assert (last.reference, last.done, last.ok) == ("2", True, True)
    assert last.plan is not None
    assert last.plan.epoch == 1


def test_both_clients_that_deploy_one_package_are_told() -> None:
    boss = Boss()
    boss.online("a")
    boss.deploy(reference="1")
    boss.deploy(reference="2")
    boss.do(computed("a"))
    header = offers(boss.done)[-1]
    done = [p.reference for p in progress(boss.prepared("a", header.epoch)) if p.done]
    assert sorted(done) == ["1", "2"]


def test_another_package_of_the_name_takes_its_place_with_a_higher_epoch() -> None:
    boss = serving("a", "b")
    newer = msgspec.structs.replace(PACKAGE, graph=ref("better"), manifest=ref("better manifest"))
    (compute,) = only(ev.ComputePlan, boss.deploy(newer, "2"))
    assert compute.package == newer
    (header,) = offers(boss.do(computed("ab", package=newer, graph="better")))
    assert (header.epoch, header.manifest) == (2, newer.manifest)


def test_a_model_is_removed() -> None:
    boss = serving("a", "b")
    effects = boss.do(ev.RemoveAsked(Remove("alice", "9", "m")))
    assert only(ev.Withdraw, effects) == [ev.Withdraw("m")]
    gone = Deployed("m", None, 1, 1, "boss")
    assert only(ev.Persist, effects) == [ev.Persist((gone,), frozenset())]
    assert only(ev.Record, effects) == [ev.Record(gone)]
    assert [(p.reference, p.done, p.ok) for p in progress(effects)] == [("9", True, True)]
    assert only(ev.Show, effects)[-1].models == ()
    assert computes(boss.offline("b") + boss.later(SETTLE_S)) == []


def test_what_was_under_way_for_a_removed_model_is_dropped() -> None:
    boss = serving("a", "b")
    boss.do(ev.RemoveAsked(Remove("alice", "9", "m")))
    assert boss.do(computed("ab")) == []
    assert boss.do(ev.ComputeFailed(PACKAGE, frozenset("ab"), "late")) == []
    # An offer that was heard after the removal is taken back.
    assert boss.prepared("a", 1) == [ev.Withdraw("m")]


def test_removing_an_unknown_model_is_refused() -> None:
    boss = serving("a")
    effects = boss.do(ev.RemoveAsked(Remove("alice", "9", "other")))
    assert [(p.done, p.ok, p.text) for p in progress(effects)] == [(True, False, "no such model")]
    assert only(ev.Withdraw, effects) == []


def test_models_are_planned_independently() -> None:
    boss = serving("a", "b")
    other = ModelPackage("other", ref("graph 2"), (), ref("manifest 2"))
    assert computes(boss.deploy(other, "2")) == [["a", "b"]]
    effects = boss.do(computed("ab", package=other))
    assert [(header.model, header.epoch) for header in offers(effects)] == [("other", 1)]
    assert [model.state for model in only(ev.Show, effects)[-1].models] == ["serving", "preparing"]


def test_a_plan_that_the_broker_lost_is_announced_again() -> None:
    boss = serving("a", "b")
    boss.do(ev.Connected())
    (header,) = announced(boss.later(RETAINED_S))
    assert header.epoch == 1
    assert announced(boss.later(RETAINED_S)) == []


def test_a_plan_that_the_broker_kept_is_not_announced_again() -> None:
    boss = serving("a", "b")
    boss.do(ev.Connected())
    boss.do(ev.HeaderSeen(plan_of("a", "b", epoch=1)))
    assert announced(boss.later(RETAINED_S)) == []


def test_another_coordinators_newer_plan_is_not_written_over() -> None:
    boss = serving("a", "b")
    boss.do(ev.Connected())
    boss.do(ev.HeaderSeen(plan_of("a", epoch=7, coordinator="other")))
    assert announced(boss.later(RETAINED_S)) == []


def test_a_device_that_tells_nothing_for_long_is_planned_around() -> None:
    boss = serving("a", "b")
    boss.later(SILENT_S - 1)
    assert boss.online("a") == []
    boss.later(2)
    boss.online("a")
    assert [header.devices for header in offers(boss.done)][-1] == ("a",)


def test_the_coordinators_own_break_makes_no_device_silent() -> None:
    boss = serving("a", "b")
    boss.now += 2 * SILENT_S
    boss.do(ev.Connected())
    assert boss.online("a") == []


def test_a_coordinator_that_lost_its_disk_goes_on_with_newer_epochs() -> None:
    boss = Boss()
    boss.do(ev.StatusSeen(Status("a", "1", "online", capacity=CAPACITY, plans={"m": 7})))
    boss.deploy()
    boss.later(SETTLE_S)
    assert boss.serve("a").epoch == 8


def test_a_device_that_serves_a_removed_model_is_told_again() -> None:
    boss = serving("a", "b")
    boss.do(ev.RemoveAsked(Remove("alice", "9", "m")))
    seen = boss.do(ev.StatusSeen(Status("a", "1", "online", capacity=CAPACITY, plans={"m": 1})))
    assert only(ev.Withdraw, seen) == [ev.Withdraw("m")]


def test_after_a_restart_a_device_with_a_new_life_has_joined() -> None:
    before = serving("a", "b")
    header = before.core._catalog.deployments["m"].current
    assert header is not None
    boss = Boss((PACKAGE, header.epoch))
    boss.do(ev.HeaderSeen(header))
    boss.online("a", "b")
    boss.later(SETTLE_S)
    boss.do(computed("ab"))
    boss.online("b", session="2")
    boss.later(SETTLE_S)
    boss.do(computed("ab"))
    assert offers(boss.done)[-1].joined == ("b",)


def ready(boss: Boss, *devices: str, session: str = "1") -> list[ev.Effect]:
    """Have devices say that they have loaded all that the last standby named."""
    named = {d: m for d, m in tells(boss.done) if isinstance(m, Standby)}
    effects = []
    for device in devices:
        manifest, refs = named[device].manifest, named[device].programs
        assert manifest is not None
        programs = tuple(program.digest for program in refs)
        message = Ready(device, session, "m", manifest.digest, programs)
        effects += boss.do(ev.ReadySeen(message))
    return effects


def covering(*devices: str) -> Boss:
    """Return a coordinator whose devices have the plans for each loss ready."""
    boss = Boss()
    boss.online(*devices)
    boss.deploy()
    boss.later(SETTLE_S)
    header = boss.serve(*devices)
    for lost in header.devices:
        boss.do(computed(set(devices) - {lost}))
    ready(boss, *devices)
    return boss


def test_a_loss_that_all_are_ready_for_is_answered_by_one_announcement() -> None:
    boss = covering("a", "b", "c")
    effects = boss.offline("b")
    (header,) = announced(effects)
    assert (header.epoch, header.devices) == (2, ("a", "c"))
    assert offers(effects) == []
    # What waits for the plan does not wait for the disk.
    kinds = [type(effect) for effect in effects]
    assert kinds.index(ev.Announce) < kinds.index(ev.Persist)
    assert shown(boss).state == "serving"
    assert boss.prepared("a", 2) == []


def test_the_losses_that_are_covered_are_shown() -> None:
    boss = covering("a", "b", "c")
    assert shown(boss).covered == ("a", "b", "c")
    boss = covering("a", "b", "c")
    boss.do(ev.ReadySeen(Ready("c", "1", "m", ref("manifest").digest, ())))
    assert shown(boss).covered == ("c",)


def test_a_loss_that_one_is_not_ready_for_is_offered_first() -> None:
    boss = serving("a", "b", "c", spare=False)
    for lost in "abc":
        boss.do(computed(set("abc") - {lost}))
    ready(boss, "a", "b")
    effects = boss.offline("b")
    assert announced(effects) == []
    assert [header.devices for header in offers(effects)] == [("a", "c")]


def test_what_another_life_of_a_device_had_ready_does_not_count() -> None:
    boss = covering("a", "b", "c")
    boss.do(ev.ReadySeen(Ready("c", "0", "m", ref("manifest").digest, ())))
    assert len(announced(boss.offline("b"))) == 1
    boss = serving("a", "b", "c", spare=False)
    for lost in "abc":
        boss.do(computed(set("abc") - {lost}))
    ready(boss, "a", "b")
    ready(boss, "c", session="0")
    assert announced(boss.offline("b")) == []


def test_what_another_manifest_was_of_is_not_ready() -> None:
    boss = serving("a", "b", "c", spare=False)
    for lost in "abc":
        boss.do(computed(set("abc") - {lost}))
    ready(boss, "a", "b")
    for device in "ac":
        programs = tuple(r.digest for r in computed("ac").plan.programs.values())
        boss.do(ev.ReadySeen(Ready(device, "1", "m", digest_of("other"), programs)))
    assert announced(boss.offline("b")) == []


def test_the_next_losses_are_computed_once_requests_had_time() -> None:
    boss = covering("a", "b", "c")
    assert computes(boss.offline("b")) == []
    assert computes(boss.later(CALM_S - 0.1)) == []
    assert computes(boss.later(0.1)) == [["c"]]


# Silence -----------------------------------------------------------------------------------------


def beat(boss: Boss, *devices: str, seconds: float, waits: bool = True) -> list[ev.Effect]:
    """Have devices beat for a while, one after another."""
    effects: list[ev.Effect] = []
    end = boss.now + seconds
    while boss.now < end:
        boss.now += BEAT_S
        for device in devices:
            message = Beat(device, "1", ("m",) if waits else ())
            effects += boss.do(ev.BeatSeen(message))
    return effects


def beating(*devices: str) -> Boss:
    """Return a coordinator that covers the loss of each of its devices, all of which beat."""
    boss = Boss()
    for device in devices:
        status = Status(device, "1", "online", capacity=CAPACITY, beats=True)
        boss.do(ev.StatusSeen(status))
    boss.deploy()
    boss.later(SETTLE_S)
    header = boss.serve(*devices)
    for lost in header.devices:
        boss.do(computed(set(devices) - {lost}))
    ready(boss, *devices)
    beat(boss, *devices, seconds=1.0)
    return boss


def test_a_device_that_is_silent_while_others_wait_is_planned_around() -> None:
    boss = beating("a", "b", "c")
    (header,) = announced(beat(boss, "a", "c", seconds=1.0))
    assert header.devices == ("a", "c")


def test_nobody_is_planned_around_while_nobody_waits() -> None:
    boss = beating("a", "b", "c")
    assert announced(beat(boss, "a", "c", seconds=5.0, waits=False)) == []


def test_agents_that_never_beat_are_not_missed() -> None:
    boss = covering("a", "b", "c")
    assert announced(beat(boss, "a", "c", seconds=5.0)) == []


def test_a_suspect_that_is_heard_again_comes_back_after_a_while_and_later_each_time() -> None:
    boss, held = beating("a", "b", "c"), []
    for epoch in (2, 4):
        assert len(announced(beat(boss, "a", "c", seconds=3.0))) == 1
        # All have seen the answer by now; the device tells its status as it thaws.
        beat(boss, "a", "b", "c", seconds=BEAT_S, waits=False)
        heard = boss.now
        fleets = computes(boss.later(0.5))
        while ["a", "b", "c"] not in fleets:
            assert boss.now < heard + 10 * FIRST_HOLD_S
            done = [effect for fleet in fleets for effect in boss.do(computed(fleet))]
            fleets = computes([*done, *boss.later(0.5)])
        held.append(boss.now - heard)
        boss.serve("a", "b", "c")
        assert shown(boss).epoch == epoch + 1
        for lost in "abc":
            boss.do(computed(set("abc") - {lost}))
        ready(boss, "a", "b", "c")
    assert held[0] >= FIRST_HOLD_S
    assert held[1] >= 2 * FIRST_HOLD_S


def test_what_a_suspect_waits_for_suspects_nobody() -> None:
    boss = beating("a", "b")
    assert [h.devices for h in announced(beat(boss, "a", seconds=1.0))] == [("a",)]
    assert announced(beat(boss, "b", seconds=1.0)) == []


def test_a_new_life_of_a_suspect_is_used_at_once() -> None:
    boss = beating("a", "b", "c")
    beat(boss, "a", "c", seconds=1.0)
    boss.online("b", session="2")
    assert computes(boss.later(SETTLE_S)) == [["a", "b", "c"]]


# Bounds -----------------------------------------------------------------------------------------


def test_only_so_many_models_are_fetched_at_a_time() -> None:
    boss = Boss()
    for number in range(MAX_DEPLOYS):
        boss.do(ev.DeployAsked(Deploy("alice", f"{number}", PACKAGE)))
    effects = boss.do(ev.DeployAsked(Deploy("alice", "more", PACKAGE)))
    assert only(ev.Fetch, effects) == []
    (refused,) = [tell.message for tell in only(ev.Tell, effects)]
    assert isinstance(refused, Progress)
    assert (refused.reference, refused.ok, refused.done) == ("more", False, True)
    # The same wish again is no further one.
    assert only(ev.Fetch, boss.do(ev.DeployAsked(Deploy("alice", "1", PACKAGE))))


def test_only_so_many_clients_wait_for_a_model() -> None:
    boss = Boss()
    for number in range(MAX_WAITING + 2):
        boss.deploy(reference=f"{number}")
    boss.deploy(reference=f"{MAX_WAITING}")
    deployment = boss.core._catalog.deployments["m"]
    assert len(deployment.waiting) == MAX_WAITING
    assert len(set(deployment.waiting)) == MAX_WAITING


def test_an_epoch_that_nobody_could_go_on_from_is_not_believed() -> None:
    boss = serving("a", "b")
    header = boss.core._catalog.deployments["m"].current
    assert header is not None
    far = msgspec.structs.replace(header, epoch=MAX_EPOCH)
    boss.do(ev.HeaderSeen(far))
    boss.do(ev.StatusSeen(Status("a", "1", "online", capacity=CAPACITY, plans={"m": MAX_EPOCH})))
    assert boss.core._catalog.deployments["m"].epoch == header.epoch


def test_only_so_many_models_of_the_past_are_remembered() -> None:
    boss = Boss()
    plans = {f"m{number}": 7 for number in range(MAX_RETIRED + 10)}
    boss.do(ev.StatusSeen(Status("a", "1", "online", capacity=CAPACITY, plans=plans)))
    assert len(boss.core._catalog.retired) == MAX_RETIRED


def test_a_device_that_is_in_no_plan_cannot_fail_it() -> None:
    boss = serving("a", "b")
    epoch = boss.core._catalog.deployments["m"].epoch
    assert boss.prepared("ghost", epoch, "it does not want to") == []
