"""One test for each defect that was found in the cores, the codecs and the store.

Named w (worker), c (coordinator), t (transfer), p (wire) and a (adapters).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgpack
import msgspec
import numpy as np
import pytest

from agent.adapters.compute import gather
from agent.adapters.store import BlobStore
from agent.coordinator import events as cev
from agent.coordinator.membership import SETTLE_S
from agent.errors import StoreError, WireError
from agent.transfer import Fetcher, Provider
from agent.transfer import events as tr
from agent.transfer.fetcher import GIVE_UP_S
from agent.verification import relative_error
from agent.wire import messages as wire
from agent.wire.program import blob_ref, decode_program
from agent.wire.tensors import decode_tensor
from agent.wire.topics import Topics
from agent.worker import events as ev
from tests.builders import chain, digest_of, header_of, only, ref
from tests.coordinator import test_core as boss_tests
from tests.coordinator.test_core import (
    PACKAGE,
    announced,
    computed,
    computes,
    offers,
    progress,
    serving,
)
from tests.worker import test_core as worker_tests
from tests.worker.test_core import KEY, answers, plan, running

if TYPE_CHECKING:
    from pathlib import Path


def test_w1_bad_input_is_not_decoded_again_and_again_by_others() -> None:
    device = worker_tests.serving("b")
    device.ask()
    effects = device.do(ev.DecodeRefused(KEY, plan()[0].digest, "not a picture"))
    assert only(ev.Decode, effects) == []


def test_w1_bad_input_does_not_hold_up_other_requests() -> None:
    device = worker_tests.serving("b")
    device.ask()
    device.ask("r2", b"good")
    effects = device.do(ev.DecodeRefused(KEY, plan()[0].digest, "not a picture"))
    assert [job.key.request for job in only(ev.Decode, effects)] == ["r2"]


def test_w2_a_removed_model_is_answered_by_the_answering_device_only() -> None:
    device = running("b")
    effects = device.do(ev.PlanAnnounced("m", None))
    # It watches results until it has seen that a has answered.
    assert only(ev.Unwatch, effects) == []
    assert only(ev.Unwatch, device.do(ev.ResultSeen(KEY)))
    assert answers(effects + device.tick(100.0)) == []


def test_w3_a_device_that_left_the_plan_does_not_answer() -> None:
    device = running("b")
    newer, _ = plan(2, without="b")
    effects = device.do(ev.PlanAnnounced("m", newer))
    assert only(ev.Unwatch, effects)
    assert answers(device.tick(100.0)) == []


def test_w3_a_device_that_left_the_plan_keeps_no_requests() -> None:
    device = running("b")
    newer, _ = plan(2, without="b")
    device.do(ev.PlanAnnounced("m", newer))
    assert device.core.in_flight == 0


def test_w4_a_device_that_only_prepares_leaves_the_deadline_to_those_that_serve() -> None:
    device = worker_tests.Device("c")
    header, programs = plan(2, joined=("c",))
    device.prepare(header, programs["c"])
    device.ask()
    assert answers(device.tick(30.0)) == []


def test_w5_no_timer_stays_due_after_a_tick() -> None:
    second = running("b")
    second.tick(30.0)
    due = second.core.next_timer()
    assert due is None or due > 30.0
    first = running("a")
    first.tick(30.0)  # answers "deadline", and the answer is not seen
    due = first.core.next_timer()
    assert due is None or due > 30.0


def test_w6_a_step_that_fails_on_two_devices_is_answered_once() -> None:
    header, _ = plan()
    said = []
    for name in ("b", "c"):
        device = running(name)
        said += answers(device.do(ev.StepFailed(KEY, header.digest, 0, "out of memory")))
    assert len(said) <= 1


def test_w7_a_picture_decoded_for_another_model_is_not_used() -> None:
    device = running()
    programs = chain([{"a": (0, 4), "b": (4, 12)}], 12, "a")  # deployed anew with 12 rows
    header = header_of(programs, 2)
    device.serve(header, programs["a"])
    effects = device.do(ev.StepFailed(KEY, plan()[0].digest, 0, "whatever: frees the executor"))
    assert only(ev.Decode, effects) != []


def test_w8_an_announced_plan_that_was_not_prepared_keeps_the_subscription() -> None:
    device = running()
    newer, _ = plan(2)
    assert only(ev.Unwatch, device.do(ev.PlanAnnounced("m", newer))) == []


def test_w8_a_newer_offer_keeps_the_subscription() -> None:
    device = worker_tests.Device("c")
    device.do(ev.PlanOffered(plan(1)[0]))
    assert only(ev.Unwatch, device.do(ev.PlanOffered(plan(2)[0]))) == []


def test_w9_pieces_that_come_after_the_answer_are_no_warning() -> None:
    device = running()
    device.do(ev.ResultSeen(KEY))
    device.do(worker_tests.border("a", 3))
    assert [log for log in only(ev.Log, device.tick(20.0)) if log.level == "warning"] == []


def test_c1_a_plan_with_a_device_lost_in_preparation_is_never_announced() -> None:
    boss = boss_tests.Boss()
    boss.online("a", "b")
    boss.deploy()
    boss.do(computed("ab"))
    boss.prepared("b", 1)
    boss.offline("b")
    boss.later(SETTLE_S)
    assert announced(boss.prepared("a", 1)) == []
    assert [header.devices for header in offers(boss.do(computed("a")))] == [("a",)]


def test_c2_a_plan_of_the_older_package_is_not_offered_for_the_newer() -> None:
    boss = boss_tests.Boss()
    boss.online("a", "b")
    boss.deploy()
    newer = msgspec.structs.replace(PACKAGE, graph=ref("better"))
    boss.deploy(newer, "2")
    effects = boss.do(computed("ab"))  # of the package that was deployed first
    assert offers(effects) == []
    effects += boss.do(computed("ab", graph="better"))
    assert [h.programs["a"] for h in offers(effects)] == [
        computed("ab", graph="better").plan.programs["a"]
    ]


def test_c2_a_failure_of_the_older_package_does_not_refuse_the_newer() -> None:
    boss = boss_tests.Boss()
    boss.online("a")
    boss.deploy()
    boss.deploy(msgspec.structs.replace(PACKAGE, graph=ref("better")), "2")
    effects = boss.do(cev.ComputeFailed(PACKAGE, frozenset("a"), "Loop is not supported"))
    assert [p for p in progress(effects) if p.reference == "2" and p.done] == []


def test_c3_a_plan_for_a_loss_that_fails_does_not_stop_the_plan_that_is_needed() -> None:
    boss = serving("a", "b", "c", spare=False)  # the plan for b and c is computed now
    boss.offline("c")
    effects = boss.do(cev.ComputeFailed(PACKAGE, frozenset("bc"), "b and c have too little memory"))
    assert computes(effects) == [["a", "b"]]


def test_c4_a_client_whose_deploy_was_superseded_is_told() -> None:
    boss = boss_tests.Boss()
    boss.online("a")
    boss.deploy(reference="1")
    boss.deploy(msgspec.structs.replace(PACKAGE, graph=ref("better")), "2")
    boss.do(computed("a"))
    for header in offers(boss.done):
        boss.prepared("a", header.epoch)
    assert "1" in [p.reference for p in progress(boss.done) if p.done]


def test_c4_a_client_whose_model_was_removed_while_it_waited_is_told() -> None:
    boss = boss_tests.Boss()
    boss.deploy(reference="1")
    boss.do(cev.RemoveAsked(wire.Remove("bob", "9", "m")))
    assert "1" in [p.reference for p in progress(boss.done) if p.done]


def test_c5_after_a_restart_devices_that_stayed_are_not_said_to_have_joined() -> None:
    header = boss_tests.plan_of("a", "b", epoch=5)
    boss = boss_tests.restarted(header, "a", "b", "c")
    (new,) = offers(boss.do(computed("abc")))
    # With all of them in `joined`, nobody forwards the requests in flight to c.
    assert new.joined == ("c",)


def test_c5_another_package_does_not_make_all_devices_join() -> None:
    boss = serving("a", "b")
    boss.deploy(msgspec.structs.replace(PACKAGE, graph=ref("better")), "2")
    (new,) = offers(boss.do(computed("ab", graph="better")))
    assert new.joined == ()


def test_c6_epochs_go_on_after_a_model_was_removed_and_deployed_again() -> None:
    boss = serving("a", "b")
    boss.offline("b")
    boss.prepared("a", 2)  # epoch 2
    boss.do(cev.RemoveAsked(wire.Remove("alice", "9", "m")))
    boss.deploy(reference="3")
    (header,) = offers(boss.do(computed("a")))
    # A device that was cut off meanwhile still serves epoch 2 and would ignore epoch 1 for ever.
    assert header.epoch == 3


def test_c7_a_plan_older_than_a_header_that_was_seen_is_not_announced() -> None:
    boss = boss_tests.Boss()
    boss.online("a")
    boss.deploy()
    boss.do(computed("a"))
    boss.do(cev.HeaderSeen(boss_tests.plan_of("a", epoch=9, coordinator="other")))
    assert [h.epoch for h in announced(boss.prepared("a", 1)) if h.epoch < 9] == []


def test_c8_a_restart_waits_for_the_statuses_before_it_calls_devices_lost() -> None:
    boss = boss_tests.Boss((PACKAGE, 5))
    boss.do(cev.HeaderSeen(boss_tests.plan_of("a", "b", epoch=5)))
    assert computes(boss.online("a")) == []
    assert computes(boss.online("b")) == []
    assert computes(boss.later(SETTLE_S)) == [["a", "b"]]


def test_c9_devices_outside_the_plan_get_what_a_loss_would_need_of_them() -> None:
    boss = boss_tests.Boss()
    boss.online("a", "b", "c")
    boss.deploy()
    boss.serve("a", "b", "c", used="ab")
    boss.do(computed("bc"))
    effects = boss.do(computed("ac"))
    told = [tell.device for tell in only(cev.Tell, effects)]
    assert "c" in told


def test_c10_the_same_package_during_preparation_does_not_start_it_anew() -> None:
    boss = boss_tests.Boss()
    boss.online("a")
    boss.deploy(reference="1")
    boss.do(computed("a"))
    effects = boss.deploy(reference="2") + boss.do(computed("a"))
    assert offers(effects) == []


def test_t1_a_blob_that_was_not_asked_for_yet_is_not_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("agent.transfer.fetcher.CHUNK_BYTES", 1)
    fetcher = Fetcher("reader")
    fetcher.fetch("t", {digest_of("large"): 200, digest_of("next"): 1}, "holder", 0.0)
    for second in range(90):  # one chunk a second: slow, but never silent
        chunk = wire.Chunk(digest_of("large"), 200, second, b"x")
        fetcher.chunk(chunk, float(second))
        assert only(tr.Failed, fetcher.tick(float(second))) == []


def test_t2_a_long_break_of_the_connection_is_not_the_holders_silence() -> None:
    fetcher = Fetcher("reader")
    fetcher.fetch("t", {digest_of("blob"): 10}, "holder", 0.0)
    fetcher.reconnected(GIVE_UP_S + 10)
    assert only(tr.Failed, fetcher.tick(GIVE_UP_S + 10.5)) == []


@pytest.mark.parametrize("chunks_per_s", [5, 1])
def test_t3_a_slow_link_is_not_filled_with_chunks_that_are_on_their_way(chunks_per_s: int) -> None:
    """A reader at the end of a slow link (2.6 MB/s, 0.5 MB/s); the broker queues for it."""
    digest, count, size = digest_of("weights"), 100, wire.CHUNK_BYTES
    fetcher, provider, data = Fetcher("reader"), Provider(), bytes(wire.CHUNK_BYTES)
    queue: list[int] = []
    sent: list[int] = []
    kept: list[tr.Effect] = []

    def carry(effects: list[tr.Effect]) -> None:
        for effect in effects:
            match effect:
                case tr.Ask(_, want):
                    carry(provider.want(want, count))
                case tr.PublishChunk(_, index):
                    queue.append(index)
                    sent.append(index)
                    carry(provider.published())  # the broker takes it at once
                case tr.Keep() | tr.Failed():
                    kept.append(effect)

    carry(fetcher.fetch("t", {digest: count * size}, "holder", 0.0))
    turn = 0
    while not kept and turn < 2 * count:
        turn += 1
        now = turn / chunks_per_s
        carry(fetcher.chunk(wire.Chunk(digest, count * size, queue.pop(0), data), now))
        carry(fetcher.tick(now))
    assert only(tr.Keep, kept)
    assert len(sent) == count


@pytest.mark.parametrize("content", [b'{"model":"\xff"}', b'{"x":' + b"[" * 100_000])
def test_p1_a_program_that_is_no_text_or_nested_too_deep_is_refused(content: bytes) -> None:
    with pytest.raises(WireError):
        decode_program(content)


def test_p2_a_name_with_a_line_break_is_refused() -> None:
    status = wire.encode_json(wire.Status("pi-1\n", "s", "online"))
    with pytest.raises(WireError):
        wire.decode_json(status, wire.Status)


def test_p2_a_digest_with_a_line_break_is_refused() -> None:
    absent = wire.encode_json(wire.Absent("0" * 64 + "\n"))
    with pytest.raises(WireError):
        wire.decode_json(absent, wire.Control)


def test_p2_a_dtype_with_a_line_break_is_refused() -> None:
    payload = msgpack.packb({"dtype": "float32\n", "shape": [1], "data": b"abcd"})
    with pytest.raises(WireError):
        decode_tensor(payload)


def test_p3_an_empty_tensor_of_absurd_extents_is_refused() -> None:
    payload = msgpack.packb({"dtype": "float32", "shape": [0, 1 << 40, 1 << 40], "data": b""})
    with pytest.raises(WireError):
        decode_tensor(payload)


def test_p4_a_topic_for_tensors_without_an_id_is_not_one_with_the_id_tensors() -> None:
    topics = Topics("home")
    with pytest.raises(ValueError, match="id"):
        topics.infer("m", None, tensors=True)


def test_a1_a_scalar_stays_a_scalar() -> None:
    for data in (np.array(5, "float32"), memoryview(np.float32(5).tobytes())):
        assert gather((), "float32", [ev.Held((), data)]).shape == ()


def test_a2_a_blob_that_can_never_fit_evicts_nothing(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, 100)
    small, large = b"s" * 60, b"l" * 200
    store.put(blob_ref(small).digest, small)
    with pytest.raises(StoreError):
        store.put(blob_ref(large).digest, large)
    assert blob_ref(small).digest in store


def test_w10_devices_on_standby_take_over_a_plan_of_one_device() -> None:
    device = worker_tests.Device("b")
    watch = device.do(ev.StandbyOffered(wire.Standby("m", "boss", (ref("spare"),))))
    assert [effect.model for effect in only(ev.Watch, watch)] == ["m"]
    device.ask()
    device.do(ev.PlanAnnounced("m", header_of(chain([{"a": (0, 8)}], 8, "a"), 1)))
    programs = chain([{"b": (0, 8)}], 8, "b")
    effects = device.serve(header_of(programs, 2), programs["b"])
    assert [job.key.request for job in only(ev.Decode, effects)] == ["r1"]


def test_w11_a_removed_model_is_no_longer_fetched_for_or_watched() -> None:
    device = worker_tests.Device("b")
    device.do(ev.StandbyOffered(wire.Standby("m", "boss", (ref("spare"),))))
    effects = device.do(ev.PlanAnnounced("m", None))
    assert [fetch.ticket for fetch in only(ev.CancelFetch, effects)] == ["spare/m"]
    assert [unwatch.model for unwatch in only(ev.Unwatch, effects)] == ["m"]


def test_c11_a_failure_after_a_restart_keeps_the_deployment() -> None:
    boss = boss_tests.Boss((PACKAGE, 7))
    boss.online("a")
    boss.later(SETTLE_S)
    boss.do(cev.ComputeFailed(PACKAGE, frozenset("a"), "too little memory"))
    boss.online("b")
    assert computes(boss.later(SETTLE_S)) == [["a", "b"]]


def test_t4_a_fetch_that_is_replaced_leaves_nothing_behind() -> None:
    fetcher = Fetcher("a")
    fetcher.fetch("spare/m", {digest_of("old"): 10}, "boss", 0.0)
    effects = fetcher.fetch("spare/m", {digest_of("new"): 10}, "boss", 1.0)
    assert [ignore.digest for ignore in only(tr.Ignore, effects)] == [digest_of("old")]
    assert fetcher.absent(digest_of("old"), "gone") == []


def test_t5_a_holder_is_given_its_time_from_when_it_is_asked() -> None:
    fetcher = Fetcher("a")
    fetcher.fetch("first", {digest_of(str(n)): 10 for n in range(8)}, "slow", 0.0)
    fetcher.fetch("second", {digest_of("later"): 10}, "quick", 0.0)
    for number in range(8):
        fetcher.stored(digest_of(str(number)), 2 * GIVE_UP_S)
    assert only(tr.Failed, fetcher.tick(2 * GIVE_UP_S + 1.0)) == []


def test_v1_a_nan_is_no_small_error() -> None:
    assert relative_error(np.ones(2), np.array([np.nan, 1.0])) == float("inf")


def test_c12_a_model_that_cannot_be_planned_does_not_replace_the_one_that_is_served() -> None:
    boss = serving("a", "b")
    newer = msgspec.structs.replace(PACKAGE, graph=ref("better"))
    boss.deploy(newer, "2")
    effects = boss.do(cev.ComputeFailed(newer, frozenset("ab"), "Loop is not supported"))
    assert [p.ok for p in progress(effects) if p.reference == "2" and p.done] == [False]
    (saved,) = only(cev.Persist, effects)
    assert [record.package for record in saved.records] == [PACKAGE]
    assert offers(boss.do(computed("ab"))) == []  # the plan that is served is still the right one
