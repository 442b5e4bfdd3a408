"""Who is in the fleet, as statuses and last wills tell it."""

from __future__ import annotations

import msgspec
import pytest

from agent.coordinator.membership import (
    CHANGED_RATIO,
    EXCLUDE_S,
    MAX_MEMBERS,
    SETTLE_S,
    Membership,
)
from agent.wire.messages import Capacity, Health, Status

CAPACITY = Capacity("cpu", 4, 4, 1 << 30, (), 1e9, 1e9, 1e-3, 1e7)


def status(device: str, session: str = "1", **changes: object) -> Status:
    online = Status(device, session, "online", capacity=CAPACITY)
    return msgspec.structs.replace(online, **changes)


def slower(ratio: float) -> Capacity:
    return msgspec.structs.replace(CAPACITY, flops_per_s=CAPACITY.flops_per_s / ratio)


def present(members: Membership, now: float = 0.0) -> list[tuple[str, str]]:
    return [(member.device, member.session) for member in members.candidates("m", now)]


def test_devices_that_are_online_are_members_in_order() -> None:
    members = Membership()
    assert members.see(status("b"), 0.0)
    assert members.see(status("a"), 0.0)
    assert present(members) == [("a", "1"), ("b", "1")]


def test_a_device_without_a_capacity_is_no_member_yet() -> None:
    members = Membership()
    assert not members.see(status("a", capacity=None), 0.0)
    assert present(members) == []


def test_a_coordinator_is_no_member() -> None:
    members = Membership()
    assert not members.see(status("a", role="coordinator"), 0.0)
    members.see(status("b"), 0.0)
    assert not members.see(status("b", role="coordinator", state="offline"), 0.0)
    assert present(members) == [("b", "1")]


def test_a_last_will_removes_its_device() -> None:
    members = Membership()
    members.see(status("a"), 0.0)
    assert members.see(status("a", state="offline", capacity=None), 0.0)
    assert present(members) == []
    assert not members.see(status("a", state="offline", capacity=None), 0.0)


def test_a_device_that_the_broker_has_forgotten_begins_a_new_life_with_its_old_will() -> None:
    members = Membership()
    members.see(status("a", "1"), 0.0)
    assert members.see(status("a", "1.1"), 0.0)
    assert present(members) == [("a", "1.1")]
    assert not members.see(status("a", "11", state="offline", capacity=None), 0.0)
    assert members.see(status("a", "1", state="offline", capacity=None), 0.0)
    assert present(members) == []


def test_an_old_will_does_not_remove_a_new_birth() -> None:
    members = Membership()
    members.see(status("a", "1"), 0.0)
    assert members.see(status("a", "2"), 0.0)
    assert not members.see(status("a", "1", state="offline", capacity=None), 0.0)
    assert present(members) == [("a", "2")]


def test_the_same_status_again_changes_nothing() -> None:
    members = Membership()
    members.see(status("a"), 0.0)
    assert not members.see(status("a", plans={"m": 3}, health=Health(1.0, 1, 1)), 0.0)


@pytest.mark.parametrize("field", ["flops_per_s", "link_bytes_per_s"])
@pytest.mark.parametrize("up", [True, False])
def test_noise_of_the_measurement_changes_nothing(field: str, *, up: bool) -> None:
    def measured(ratio: float) -> Status:
        rate = getattr(CAPACITY, field)
        changed = rate * ratio if up else rate / ratio
        return status("a", capacity=msgspec.structs.replace(CAPACITY, **{field: changed}))

    members = Membership()
    members.see(status("a"), 0.0)
    assert not members.see(measured(CHANGED_RATIO - 0.01), 0.0)
    assert members.candidates("m", 0.0)[0].capacity == CAPACITY
    assert members.see(measured(CHANGED_RATIO + 0.01), 0.0)


def test_a_slow_drift_counts_from_what_plans_were_made_with() -> None:
    members = Membership()
    members.see(status("a"), 0.0)
    assert not members.see(status("a", capacity=slower(1.4)), 0.0)
    assert members.see(status("a", capacity=slower(1.6)), 0.0)


def test_another_memory_limit_counts_at_once() -> None:
    members = Membership()
    members.see(status("a"), 0.0)
    limited = msgspec.structs.replace(CAPACITY, memory_limit_bytes=1 << 20)
    assert members.see(status("a", capacity=limited), 0.0)


def test_a_device_that_is_held_back_returns_after_a_while() -> None:
    members = Membership()
    members.see(status("a"), 0.0)
    members.see(status("b"), 0.0)
    members.exclude("m", "a", 10.0)
    assert present(members, 10.0 + EXCLUDE_S - 0.1) == [("b", "1")]
    assert members.next_return(10.0) == 10.0 + EXCLUDE_S
    assert present(members, 10.0 + EXCLUDE_S) == [("a", "1"), ("b", "1")]
    assert members.next_return(10.0 + EXCLUDE_S) is None


def test_a_device_is_held_back_from_one_model_only() -> None:
    members = Membership()
    members.see(status("a"), 0.0)
    members.exclude("other", "a", 0.0)
    assert present(members) == [("a", "1")]
    assert members.candidates("other", 0.0) == ()


def test_the_next_return_is_the_earliest() -> None:
    members = Membership()
    assert members.next_return(0.0) is None
    members.exclude("m", "a", 5.0)
    members.exclude("m", "b", 1.0)
    assert members.next_return(2.0) == 1.0 + EXCLUDE_S


def test_only_so_many_devices_are_members() -> None:
    members = Membership()
    for number in range(3 * MAX_MEMBERS):
        members.hear(status(f"ghost-{number}"), 0.0)
        members.see(status(f"ghost-{number}"), 0.0)
    assert len(present(members)) == MAX_MEMBERS
    assert len(members._heard) <= 2 * MAX_MEMBERS
    assert not members.see(status("one-more"), 0.0)
    assert members.see(status("ghost-1", "another life"), 0.0)


def test_where_nobody_else_is_left_a_suspect_that_is_heard_again_is_planned_with() -> None:
    members = Membership()
    members.see(status("a"), 0.0)
    members.see(status("b"), 0.0)
    members.suspect("a", 1.0)
    members.heard_again("a", "1", 1.1)
    assert present(members, 1.2) == [("b", "1")]
    members.suspect("b", 1.2)
    assert present(members, 1.3) == [("a", "1")]
    members.suspect("a", 1.4)
    assert present(members, 1.5) == []
    assert members.heard_again("b", "1", 1.6)
    assert members.has_settled(1.6 + SETTLE_S)
    assert present(members, 1.7) == [("b", "1")]
