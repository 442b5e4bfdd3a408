"""The worker by scripted events: one decision each, with no broker, clock or thread."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.geometry import missing, size
from agent.wire.messages import Answer, Forward, PlanHeader, Prepared, Standby, fingerprint
from agent.worker import WorkerCore, early
from agent.worker import events as ev
from agent.worker.pieces import chunked
from agent.worker.requests import RANK_DELAY_S, TRANSITIONS, Request, State
from tests.builders import chain, header_of, image_of, only, piece_of, ref, run_step

if TYPE_CHECKING:
    from agent.wire.program import Program

ROWS = 8
PICTURE = b"picture"
THIRDS = {"a": (0, 3), "b": (3, 6), "c": (6, 8)}
REPLY = ev.ReplyTo(content_type="image/png", response_topic="home/answers", correlation=b"7")
PROGRAMS = chain([THIRDS, THIRDS], ROWS, "a")
KEY = ev.RequestKey("m", "r1", fingerprint(PICTURE))


class Device:
    """A worker core whose jobs are done by hand."""

    def __init__(self, name: str = "a", **limits: float) -> None:
        self.name = name
        self.core = WorkerCore(name, f"life-of-{name}", **limits)  # type: ignore[arg-type]
        self.now = 0.0

    def do(self, event: ev.Event) -> list[ev.Effect]:
        return self.core.handle(event, self.now)

    def prepare(self, header: PlanHeader, program: Program) -> list[ev.Effect]:
        effects = self.do(ev.PlanOffered(header))
        effects += self.do(ev.Fetched(f"{header.digest}/program"))
        effects += self.do(ev.PlanRead(header.digest, program, None))
        effects += self.do(ev.Fetched(f"{header.digest}/blobs"))
        return effects + self.do(ev.Loaded(header.digest))

    def serve(self, header: PlanHeader, program: Program) -> list[ev.Effect]:
        self.prepare(header, program)
        return self.do(ev.PlanAnnounced(header.model, header))

    def ask(
        self,
        request: str | None = "r1",
        payload: bytes = PICTURE,
        *,
        redelivered: bool = False,
        expires_s: float | None = None,
    ) -> list[ev.Effect]:
        mark = fingerprint(payload)
        return self.do(
            ev.RequestArrived("m", request, mark, payload, REPLY, expires_s, redelivered)
        )

    def decoded(self, key: ev.RequestKey = KEY, payload: bytes = PICTURE) -> list[ev.Effect]:
        plan = self.core._plans.active[key.model].digest
        return self.do(ev.Decoded(key, plan, image_of(payload, ROWS), 0.25))

    def finish(self, job: ev.Run, program: Program) -> list[ev.Effect]:
        arrays = run_step(program, job)
        return self.do(
            ev.StepFinished(job.key, job.plan, job.step, arrays, self.now, self.now + 0.5)
        )

    def tick(self, now: float) -> list[ev.Effect]:
        self.now = now
        return self.do(ev.Tick())


def plan(
    epoch: int = 1, first: str = "a", *, joined: tuple[str, ...] = (), without: str = ""
) -> tuple[PlanHeader, dict[str, Program]]:
    programs = PROGRAMS
    if first != "a" or without:
        tiles = {device: span for device, span in THIRDS.items() if device != without}
        programs = chain([tiles, tiles], ROWS, first)
    return header_of(programs, epoch, joined=joined), programs


def serving(name: str = "a", **limits: float) -> Device:
    device, (header, programs) = Device(name, **limits), plan()
    device.serve(header, programs[name])
    return device


def running(name: str = "a", *, started: float = 0.0, **limits: float) -> Device:
    """Return a device that has decoded request r1 and computes its first step."""
    device = serving(name, **limits)
    device.now = started
    device.ask()
    assert only(ev.Run, device.decoded())
    return device


def answers(effects: list[ev.Effect]) -> list[Answer]:
    return [effect.answer for effect in only(ev.PublishAnswer, effects)]


def codes(effects: list[ev.Effect]) -> list[str]:
    return [answer.error.code for answer in answers(effects) if answer.error]


def border(device: str, row: int, payload: bytes = PICTURE, epoch: int = 1) -> ev.PieceArrived:
    """Return a piece of tensor t1 that a neighbour of `device` would send."""
    piece = piece_of(plan(epoch)[0], "r1", payload, ((row, row + 1),), [1])
    assert device in THIRDS
    return ev.PieceArrived(piece, len(piece.data))


def concluding(*, started: float = 0.0, drills: bool = False) -> Device:
    """Return the answering device with all that it needs for its answer."""
    device, (header, programs) = running(started=started, drills=drills), plan()
    device.finish(ev.Run(KEY, header.digest, 0, _input(device)), programs["a"])
    effects = device.do(border("a", 3))
    device.finish(only(ev.Run, effects)[0], programs["a"])
    rest = piece_of(header, "r1", PICTURE, ((3, 8),), range(5), tensor=2)
    assert only(ev.Conclude, device.do(ev.PieceArrived(rest, 40)))
    return device


def _input(device: Device) -> tuple[tuple[ev.Held, ...], ...]:
    assert device.name == "a"
    return ((ev.Held(((0, ROWS),), image_of(PICTURE, ROWS)),),)


# Plans ------------------------------------------------------------------------------------------


def test_a_plan_is_prepared_and_the_coordinator_is_told() -> None:
    header, programs = plan()
    effects = Device().prepare(header, programs["a"])
    kinds = [type(effect) for effect in effects]
    stages = [ev.Watch, ev.Fetch, ev.ReadPlan, ev.Fetch, ev.PlansChanged, ev.Load, ev.Tell]
    assert kinds == stages
    assert effects[-1] == ev.Tell("boss", Prepared("a", "m", 1, ok=True))


def test_a_prepared_plan_does_not_serve_before_it_is_announced() -> None:
    device, (header, programs) = Device(), plan()
    device.prepare(header, programs["a"])
    assert device.ask() == []
    assert not device.core.serving
    assert only(ev.Decode, device.do(ev.PlanAnnounced("m", header)))
    assert device.core.serving


def test_an_announced_plan_serves_as_soon_as_it_is_loaded() -> None:
    device, (header, programs) = Device(), plan()
    device.do(ev.PlanAnnounced("m", header))
    device.ask()
    effects = device.prepare(header, programs["a"])
    assert only(ev.Decode, effects)
    assert device.core.serving


def test_the_newest_plan_wins() -> None:
    device, (newer, programs) = serving(), plan(3)
    device.serve(newer, programs["a"])
    older, _ = plan(2)
    for event in (ev.PlanOffered(older), ev.PlanAnnounced("m", older)):
        effects = device.do(event)
        assert [type(effect) for effect in effects] == [ev.Log]
    device.ask()
    assert only(ev.Run, device.decoded())[0].plan == newer.digest


@pytest.mark.parametrize("kind", [ev.FetchFailed, ev.PlanFailed])
def test_a_failed_preparation_is_reported_with_its_reason(
    kind: type[ev.FetchFailed | ev.PlanFailed],
) -> None:
    device, (header, _) = Device(), plan()
    device.do(ev.PlanOffered(header))
    ticket = header.digest + ("/program" if kind is ev.FetchFailed else "")
    told = only(ev.Tell, device.do(kind(ticket, "out of memory")))
    assert told == [ev.Tell("boss", Prepared("a", "m", 1, ok=False, reason="out of memory"))]


def test_the_old_plan_serves_on_when_the_new_one_cannot_be_loaded() -> None:
    device, (newer, _) = serving(), plan(2)
    device.do(ev.PlanOffered(newer))
    device.do(ev.PlanFailed(newer.digest, "out of memory"))
    assert only(ev.Decode, device.ask())


def test_standby_blobs_are_fetched_and_pinned() -> None:
    blobs = (ref("after a loss", 7),)
    fetch, changed = serving().do(ev.StandbyOffered(Standby("m", "boss", blobs)))
    assert fetch == ev.Fetch("spare/m", {blobs[0].digest: 7}, "boss")
    assert isinstance(changed, ev.PlansChanged)
    assert blobs[0].digest in changed.blobs


def test_a_leaving_device_takes_no_new_plans_but_finishes_its_requests() -> None:
    device, (newer, _) = running(), plan(2)
    device.do(ev.LeaveAsked())
    assert device.do(ev.PlanOffered(newer)) == []
    assert device.core.in_flight == 1
    assert device.core.serving


# A request on its way ---------------------------------------------------------------------------


def test_a_request_is_decoded_then_computed() -> None:
    device = serving()
    header, _ = plan()
    assert device.ask() == [ev.Decode(KEY, header.digest, PICTURE, "image/png")]
    run = only(ev.Run, device.decoded())
    assert [(job.key, job.plan, job.step) for job in run] == [(KEY, header.digest, 0)]


def test_a_finished_step_sends_its_borders_to_the_neighbour() -> None:
    device, (header, programs) = running("b"), plan()
    image = ev.Held(((0, ROWS),), image_of(PICTURE, ROWS))
    sent = only(
        ev.SendPiece,
        device.finish(ev.Run(KEY, header.digest, 0, ((image,),)), programs["b"]),
    )
    assert {(s.to, s.tensor, s.region) for s in sent} == {
        ("a", 1, ((3, 4),)),
        ("c", 1, ((5, 6),)),
    }
    assert all(s.key == KEY and s.plan == header.digest for s in sent)


def test_large_pieces_are_cut_into_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.worker.pieces.CHUNK_BYTES", 2 * 8)
    device, (header, programs) = serving("b"), plan()
    device.ask()
    device.decoded()
    image = ev.Held(((0, ROWS),), image_of(PICTURE, ROWS))
    device.finish(ev.Run(KEY, header.digest, 0, ((image,),)), programs["b"])
    effects = device.do(border("b", 2)) + device.do(border("b", 6))
    sent = only(ev.SendPiece, device.finish(only(ev.Run, effects)[0], programs["b"]))
    assert [(s.tensor, s.region) for s in sent] == [(2, ((3, 5),)), (2, ((5, 6),))]


@given(st.lists(st.integers(0, 300), min_size=1, max_size=4), st.sampled_from([1, 4, 8]))
def test_what_is_cut_for_messages_fits_and_is_all(shape: list[int], bytes_each: int) -> None:
    region = tuple((7, 8 + extent) for extent in shape)
    with pytest.MonkeyPatch.context() as patch:
        limit = size(region) * bytes_each // 5 + 8
        patch.setattr("agent.worker.pieces.CHUNK_BYTES", limit)
        parts = chunked(region, bytes_each)
    assert all(size(part) * bytes_each <= limit for part in parts)
    assert sum(map(size, parts)) == size(region)
    assert missing(region, parts) == []
    assert len(parts) <= 2 * 5 + 1


def test_what_fits_into_a_message_is_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.worker.pieces.CHUNK_BYTES", 16)
    assert chunked(((0, 2), (0, 8)), 1) == [((0, 2), (0, 8))]
    assert chunked((), 8) == [()]
    assert chunked(((0, 2), (0, 9)), 1) == [((0, 2), (0, 8)), ((0, 2), (8, 9))]


def test_the_answering_device_answers_when_all_outputs_are_here() -> None:
    device, (header, _) = concluding(started=10.0), plan()
    device.now = 11.5
    effects = device.do(ev.Concluded(KEY, header.digest, {"label": "cat"}, None))
    assert only(ev.PublishAnswer, effects) == [
        ev.PublishAnswer(
            Answer(
                request="r1",
                model="m",
                input=KEY.input,
                ok=True,
                result={"label": "cat"},
                elapsed_ms=1500.0,
                epoch=1,
                devices=("a", "b", "c"),
            ),
            REPLY,
        )
    ]


def test_the_answer_is_made_of_whole_outputs() -> None:
    device, (header, programs) = running(), plan()
    device.finish(ev.Run(KEY, header.digest, 0, _input(device)), programs["a"])
    job = only(ev.Run, device.do(border("a", 3)))[0]
    device.finish(job, programs["a"])
    rest = piece_of(header, "r1", PICTURE, ((3, 8),), range(5), tensor=2)
    (conclude,) = only(ev.Conclude, device.do(ev.PieceArrived(rest, 40)))
    assert [piece.region for piece in conclude.outputs[0]] == [((0, 3),), ((3, 8),)]
    assert not conclude.tensors


def test_a_request_is_answered_once() -> None:
    device, (header, _) = concluding(), plan()
    done = ev.Concluded(KEY, header.digest, {}, None)
    assert len(answers(device.do(done))) == 1
    assert answers(device.do(done)) == []
    assert answers(device.do(ev.StepFailed(KEY, header.digest, 0, "late"))) == []
    assert answers(device.ask(redelivered=True)) == []


def test_the_answering_device_keeps_quiet_after_a_result_was_seen() -> None:
    device, (header, _) = concluding(), plan()
    device.do(ev.ResultSeen(KEY))
    assert answers(device.do(ev.Concluded(KEY, header.digest, {}, None))) == []
    assert answers(device.tick(1000.0)) == []
    assert device.core.in_flight == 0


def test_another_device_does_not_answer() -> None:
    device, (header, programs) = running("b"), plan()
    image = ev.Held(((0, ROWS),), image_of(PICTURE, ROWS))
    effects = device.finish(ev.Run(KEY, header.digest, 0, ((image,),)), programs["b"])
    job = only(ev.Run, [*effects, *device.do(border("b", 2)), *device.do(border("b", 6))])[0]
    effects = device.finish(job, programs["b"])
    assert {send.to for send in only(ev.SendPiece, effects)} == {"a"}
    assert only(ev.Conclude, effects) == []
    assert answers(effects + device.tick(29.9)) == []


def test_a_trace_tells_steps_bytes_and_waits() -> None:
    device, (header, programs) = running(), plan()
    device.now = 1.0
    device.finish(ev.Run(KEY, header.digest, 0, _input(device)), programs["a"])
    device.do(border("a", 3))
    device.now = 3.0
    (published,) = only(ev.PublishTrace, device.do(ev.ResultSeen(KEY)))
    trace = published.trace
    assert (published.model, trace.device, trace.request, trace.epoch) == ("m", "a", "r1", 1)
    (step,) = trace.steps
    assert (step.block, step.start_ms, step.end_ms) == (0, 1000.0, 1500.0)
    assert (trace.decode_ms, trace.compute_ms) == (250.0, 500.0)
    assert (trace.total_ms, trace.wait_ms) == (1500.0, 750.0)
    # One row of 8 bytes went to b, one came from it.
    assert (trace.bytes_sent, trace.bytes_received) == (8, 8)
    (sent,), (received,) = trace.sends, trace.receives
    assert (sent.tensor, sent.peer, sent.region) == ("t1", "b", ((2, 3),))
    assert (received.tensor, received.peer, received.region) == ("t1", "", ((3, 4),))
    assert (sent.start_ms, received.end_ms, received.nbytes) == (1000.0, 1000.0, 8)


def test_a_trace_tells_when_the_picture_was_decoded_and_the_answer_made() -> None:
    device = concluding(started=2.0)
    device.now = 4.75
    device.do(ev.Concluded(KEY, plan()[0].digest, {}, None))
    device.now = 9.0
    trace = only(ev.PublishTrace, device.do(ev.ResultSeen(KEY)))[0].trace
    # Both happened when the request came, as the test's clock stood still.
    assert (trace.decode_start_ms, trace.decode_ms, trace.total_ms) == (-250.0, 250.0, 0.0)
    assert trace.answer_ms == 2750.0


def test_an_early_piece_is_told_with_the_time_at_which_it_came() -> None:
    device, (header, programs) = serving(), plan()
    device.ask()
    device.now = 0.25
    device.do(border("a", 3))
    device.now = 0.5
    device.decoded()
    device.finish(ev.Run(KEY, header.digest, 0, _input(device)), programs["a"])
    (published,) = only(ev.PublishTrace, device.do(ev.ResultSeen(KEY)))
    assert [r.end_ms for r in published.trace.receives] == [250.0]


def test_a_device_that_is_told_to_publishes_no_traces() -> None:
    device, (header, programs) = serving(traces=False), plan()
    device.ask()
    device.decoded()
    device.finish(ev.Run(KEY, header.digest, 0, _input(device)), programs["a"])
    assert only(ev.PublishTrace, device.do(ev.ResultSeen(KEY))) == []


def test_a_device_that_did_nothing_publishes_no_trace() -> None:
    device = serving()
    device.ask()
    assert only(ev.PublishTrace, device.do(ev.ResultSeen(KEY))) == []


# One job at a time ------------------------------------------------------------------------------


def test_one_job_is_done_at_a_time() -> None:
    device = serving()
    assert len(only(ev.Decode, device.ask("r1"))) == 1
    assert device.ask("r2", b"other") == []
    assert len(only(ev.Run, device.decoded())) == 1
    assert device.ask("r3", b"third") == []


def test_the_oldest_request_goes_first() -> None:
    device, (header, _) = running(), plan()
    device.ask("r2", b"other")
    second = ev.RequestKey("m", "r2", fingerprint(b"other"))
    # r1 waits for b after its step, so r2 is decoded; then r1's next step comes before r2's first.
    effects = device.finish(ev.Run(KEY, header.digest, 0, _input(device)), PROGRAMS["a"])
    assert [job.key for job in only(ev.Decode, effects)] == [second]
    assert device.do(border("a", 3)) == []
    effects = device.decoded(second, b"other")
    assert [(job.key, job.step) for job in only(ev.Run, effects)] == [(KEY, 1)]


def test_the_earliest_step_goes_first() -> None:
    tiles = {"a": (0, 3), "b": (3, 8)}
    programs = chain([tiles], ROWS, "a")
    interior = msgspec.structs.replace(programs["a"].steps[0], block=7)
    program = msgspec.structs.replace(
        programs["a"], steps=(*programs["a"].steps, interior, interior)
    )
    device, header = Device(), header_of(programs)
    device.serve(header, program)
    device.ask()
    order = []
    jobs = only(ev.Run, device.decoded())
    while jobs:
        order.append(jobs[0].step)
        jobs = only(ev.Run, device.finish(jobs[0], program))
    assert order == [0, 1, 2]


def test_a_job_of_an_ended_request_frees_the_executor() -> None:
    device, (header, programs) = running(), plan()
    device.ask("r2", b"other")
    device.do(ev.ResultSeen(KEY))
    effects = device.finish(ev.Run(KEY, header.digest, 0, _input(device)), programs["a"])
    assert [job.key.request for job in only(ev.Decode, effects)] == ["r2"]


# Pieces -----------------------------------------------------------------------------------------


def test_a_piece_that_comes_before_its_request_is_kept_and_used() -> None:
    device, (header, programs) = serving(), plan()
    assert device.do(border("a", 3)) == []
    device.ask()
    job = only(ev.Run, device.decoded())[0]
    effects = device.finish(job, programs["a"])
    assert [job.step for job in only(ev.Run, effects)] == [1]
    assert job.plan == header.digest


def test_a_piece_that_comes_before_its_plan_is_kept_and_used() -> None:
    device, (newer, programs) = running(), plan(2)
    device.prepare(newer, programs["a"])
    assert device.do(border("a", 3, epoch=2)) == []
    device.do(ev.PlanAnnounced("m", newer))
    effects = device.finish(ev.Run(KEY, plan()[0].digest, 0, _input(device)), programs["a"])
    (first,) = only(ev.Run, effects)
    assert (first.plan, first.step) == (newer.digest, 0)
    assert [job.step for job in only(ev.Run, device.finish(first, programs["a"]))] == [1]


def test_a_piece_that_nobody_claims_is_dropped_after_a_while_with_one_line() -> None:
    device = serving()
    device.now = 5.0
    device.do(border("a", 3))
    device.do(border("a", 4))
    assert only(ev.Log, device.tick(4.9 + early.KEEP_S)) == []
    (log,) = only(ev.Log, device.tick(5.1 + early.KEEP_S))
    assert (log.level, log.request) == ("warning", "r1")
    assert "dropped" in log.text
    assert device.tick(6.0 + early.KEEP_S) == []


def test_early_pieces_are_bounded_and_the_oldest_make_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(early, "MAX_BYTES", 2 * 8)
    device, (_, programs) = serving(), plan()
    logs = [device.do(border("a", row)) for row in (3, 4, 5)]
    assert logs[:2] == [[], []]
    assert [log.level for log in only(ev.Log, logs[2])] == ["warning"]
    device.ask()
    # The border that was needed came first, so it was dropped.
    effects = device.finish(only(ev.Run, device.decoded())[0], programs["a"])
    assert only(ev.Run, effects) == []
    assert only(ev.Run, device.do(border("a", 3)))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"tensor": 3}, "tensor 3"),
        ({"region": ((3, 9),)}, "does not fit"),
        ({"region": ((3, 3),)}, "does not fit"),
        ({"region": ((3, 4), (0, 1))}, "does not fit"),
        ({"region": ()}, "does not fit"),
        ({"region": ((3, 5),)}, "expected 16"),
        ({"data": b"short"}, "expected 8"),
    ],
)
def test_a_piece_that_does_not_fit_is_refused_and_does_no_harm(
    changes: dict[str, object], why: str
) -> None:
    device, (header, programs) = running(), plan()
    device.finish(ev.Run(KEY, header.digest, 0, _input(device)), programs["a"])
    good = border("a", 3).piece
    bad = msgspec.structs.replace(good, **changes)
    effects = device.do(ev.PieceArrived(bad, len(bad.data)))
    assert [type(effect) for effect in effects] == [ev.Log]
    assert why in only(ev.Log, effects)[0].text
    assert only(ev.Run, device.do(border("a", 3)))


def test_a_bad_piece_that_came_early_is_refused_when_it_is_used() -> None:
    device = serving()
    bad = msgspec.structs.replace(border("a", 3).piece, data=b"short")
    device.do(ev.PieceArrived(bad, 5))
    device.ask()
    effects = device.decoded()
    assert "expected 8" in only(ev.Log, effects)[0].text
    assert only(ev.Run, effects)


def test_a_piece_of_another_payload_is_never_mixed_in() -> None:
    device, (header, programs) = running(), plan()
    device.finish(ev.Run(KEY, header.digest, 0, _input(device)), programs["a"])
    assert device.do(border("a", 3, payload=b"other picture")) == []
    # The id again with the other picture is a request of its own, and the piece is its.
    other = ev.RequestKey("m", "r1", fingerprint(b"other picture"))
    device.ask("r1", b"other picture")
    job = only(ev.Run, device.decoded(other, b"other picture"))[0]
    assert job.key == other
    assert [job.key for job in only(ev.Run, device.finish(job, programs["a"]))] == [other]


def test_a_piece_that_comes_twice_is_used_once() -> None:
    device, (header, programs) = running(), plan()
    device.finish(ev.Run(KEY, header.digest, 0, _input(device)), programs["a"])
    assert len(only(ev.Run, device.do(border("a", 3)))) == 1
    assert device.do(border("a", 3)) == []
    job = ev.Run(KEY, header.digest, 1, ((ev.Held(((0, 4),), image_of(PICTURE, 4)),),))
    assert only(ev.Run, device.finish(job, programs["a"])) == []


# A newer plan -----------------------------------------------------------------------------------


def test_a_newer_plan_restarts_requests_from_their_payload() -> None:
    device, (newer, programs) = running(), plan(2)
    device.serve(newer, programs["a"])
    # What the executor was doing belongs to the old plan: it is dropped, and the work starts again
    # with the picture that was decoded already.
    effects = device.finish(ev.Run(KEY, plan()[0].digest, 0, _input(device)), programs["a"])
    assert only(ev.SendPiece, effects) == []
    (job,) = only(ev.Run, effects)
    assert (job.plan, job.step) == (newer.digest, 0)
    assert only(ev.Decode, effects) == []


def test_a_request_in_decoding_goes_on_under_the_newer_plan() -> None:
    device, (newer, programs) = serving(), plan(2)
    device.ask()
    assert only(ev.Decode, device.serve(newer, programs["a"])) == []
    assert [job.plan for job in only(ev.Run, device.decoded())] == [newer.digest]


def test_pieces_of_the_older_plan_are_dropped() -> None:
    device, (newer, programs) = running(), plan(2)
    device.serve(newer, programs["a"])
    effects = device.finish(ev.Run(KEY, plan()[0].digest, 0, _input(device)), programs["a"])
    effects = device.finish(only(ev.Run, effects)[0], programs["a"])
    assert only(ev.Run, effects) == []
    assert only(ev.Run, device.do(border("a", 3, epoch=1))) == []
    assert only(ev.Run, device.do(border("a", 3, epoch=2)))


def test_a_conclusion_under_the_older_plan_is_dropped() -> None:
    device, (newer, programs) = concluding(), plan(2)
    device.serve(newer, programs["a"])
    effects = device.do(ev.Concluded(KEY, plan()[0].digest, {}, None))
    assert answers(effects) == []
    assert [job.plan for job in only(ev.Run, effects)] == [newer.digest]


def test_an_answered_request_is_not_started_again() -> None:
    device, (newer, programs) = concluding(), plan(2)
    device.do(ev.Concluded(KEY, plan()[0].digest, {}, None))
    effects = device.serve(newer, programs["a"])
    assert only(ev.Run, effects) == []
    assert answers(effects) == []


def test_a_request_without_a_plan_waits_for_one() -> None:
    device, (header, programs) = Device(), plan()
    device.do(ev.PlanOffered(header))
    assert device.ask() == []
    assert only(ev.Decode, device.serve(header, programs["a"]))


def test_a_request_in_flight_is_forwarded_to_devices_that_joined() -> None:
    device, (newer, programs) = running(), plan(2, joined=("c",))
    device.now = 10.0
    (passed,) = only(ev.Pass, device.serve(newer, programs["a"]))
    assert passed == ev.Pass(
        "c",
        Forward(
            model="m",
            request="r1",
            payload=PICTURE,
            remaining_s=20.0,
            content_type="image/png",
            response_topic="home/answers",
            correlation=b"7",
        ),
    )


def test_only_the_first_device_that_stayed_forwards() -> None:
    newer, programs = plan(2, joined=("a", "c"))
    assert [p.device for p in only(ev.Pass, running("b").serve(newer, programs["b"]))] == ["a", "c"]
    assert only(ev.Pass, running("c").serve(newer, programs["c"])) == []


def test_a_removed_model_ends_its_requests_with_an_error() -> None:
    device = running(started=10.0)
    device.now = 12.0
    effects = device.do(ev.PlanAnnounced("m", None))
    (answer,) = answers(effects)
    assert answer.error is not None
    assert (answer.error.code, answer.elapsed_ms) == ("model", 2000.0)
    assert "removed" in answer.error.text
    assert not device.core.serving
    assert only(ev.Unwatch, device.do(ev.ResultSeen(KEY))) == [ev.Unwatch("m")]


def test_where_the_first_device_is_silent_another_tells_of_the_removal() -> None:
    device = running("b", started=10.0)
    device.now = 12.0
    effects = device.do(ev.PlanAnnounced("m", None))
    assert (answers(effects), only(ev.Unwatch, effects)) == ([], [])
    device.now += RANK_DELAY_S
    (answer,) = answers(device.do(ev.Tick()))
    assert answer.error is not None
    assert answer.error.code == "model"


def test_requests_without_an_id_end_with_a_removed_model() -> None:
    device = serving("b")
    device.ask(None)
    assert answers(device.do(ev.PlanAnnounced("m", None))) == []
    device.now += RANK_DELAY_S
    (answer,) = answers(device.do(ev.Tick()))
    assert answer.error is not None
    assert answer.error.code == "model"


def test_removing_another_model_changes_nothing() -> None:
    device = running()
    assert device.do(ev.PlanAnnounced("other", None)) == []
    assert device.core.serving


# Errors, deadlines, overload --------------------------------------------------------------------


def test_bad_input_is_answered_by_the_answering_device() -> None:
    device = serving()
    device.ask()
    effects = device.do(ev.DecodeRefused(KEY, plan()[0].digest, "not a picture"))
    (answer,) = answers(effects)
    assert answer.error is not None
    assert (answer.ok, answer.error.code, answer.error.text) == (False, "input", "not a picture")
    assert only(ev.Decode, effects) == []


def test_bad_input_is_not_answered_by_others() -> None:
    device = serving("b")
    device.ask()
    assert answers(device.do(ev.DecodeRefused(KEY, plan()[0].digest, "not a picture"))) == []


def test_a_failed_step_is_answered_with_its_reason() -> None:
    device, (header, _) = running("b"), plan()
    effects = device.do(ev.StepFailed(KEY, header.digest, 0, "out of memory"))
    # Perhaps only b knows what went wrong, so b says it: at once, or when its turn comes.
    (answer,) = answers(effects + device.tick(RANK_DELAY_S + 0.1))
    assert answer.error is not None
    assert (answer.error.code, answer.error.text) == ("compute", "out of memory")


def test_a_failed_step_of_an_older_plan_is_no_failure() -> None:
    device, (newer, programs) = running(), plan(2)
    device.serve(newer, programs["a"])
    effects = device.do(ev.StepFailed(KEY, plan()[0].digest, 0, "unloaded"))
    assert answers(effects) == []
    assert only(ev.Run, effects)


def test_the_answering_device_says_that_the_deadline_passed() -> None:
    device = running()
    assert answers(device.tick(29.9)) == []
    assert codes(device.tick(30.0)) == ["deadline"]
    assert answers(device.tick(30.5)) == []


def test_the_next_in_rank_speaks_when_the_first_keeps_silent() -> None:
    second, third = running("b"), running("c")
    at = 30.0 + RANK_DELAY_S
    assert answers(second.tick(at - 0.1)) == []
    assert codes(second.tick(at)) == ["deadline"]
    assert answers(third.tick(at)) == []
    third.do(ev.ResultSeen(KEY))
    assert answers(third.tick(at + 100)) == []


def test_the_deadline_is_what_is_left_of_the_message() -> None:
    device = serving(deadline_s=5.0)
    device.ask("r1", expires_s=2.0)
    device.ask("r2", b"other")
    assert answers(device.tick(1.9)) == []
    assert [answer.request for answer in answers(device.tick(2.0))] == ["r1"]
    assert [answer.request for answer in answers(device.tick(5.0))] == ["r2"]


def test_an_answer_that_is_never_seen_is_forgotten_at_last() -> None:
    device = serving(deadline_s=5.0)
    device.ask()
    device.tick(5.0)
    assert device.core.in_flight == 1
    device.tick(100.0)
    assert device.core.in_flight == 0
    assert device.core.next_timer() is None


def test_beyond_max_in_flight_the_answering_device_refuses() -> None:
    device = serving(max_in_flight=2)
    device.ask("r1")
    device.ask("r2", b"two")
    effects = device.ask("r3", b"three")
    assert codes(effects) == ["overloaded"]
    # Who has the turn is kept, and of the others the newest.
    assert [answer.request for answer in answers(effects)] == ["r2"]
    device.do(ev.ResultSeen(ev.RequestKey("m", "r2", fingerprint(b"two")), turned_away=True))
    device.do(ev.ResultSeen(KEY))
    assert answers(device.ask("r4", b"four")) == []
    assert device.core.in_flight == 2


def test_other_devices_keep_more_requests_than_the_answering_one() -> None:
    device = serving("b", max_in_flight=2)
    for number in range(8):
        assert answers(device.ask(f"r{number}", bytes([number + 1]))) == []
    assert device.core.in_flight == 8
    effects = device.ask("r9", b"nine")
    assert device.core.in_flight == 8
    assert answers(effects) == []
    assert [(log.level, log.request) for log in only(ev.Log, effects)] == [("warning", "r1")]


# The same request again -------------------------------------------------------------------------


def test_a_redelivered_request_that_was_answered_is_ignored() -> None:
    device = running()
    device.do(ev.ResultSeen(KEY))
    assert only(ev.Decode, device.ask(redelivered=True)) == []
    assert device.core.in_flight == 0


def test_an_id_that_a_client_uses_again_runs_again() -> None:
    device, (header, programs) = running(), plan()
    device.finish(ev.Run(KEY, header.digest, 0, _input(device)), programs["a"])
    device.do(ev.ResultSeen(KEY))
    assert only(ev.Decode, device.ask())


def test_a_redelivered_request_that_is_not_known_runs() -> None:
    assert only(ev.Decode, serving().ask(redelivered=True))


def test_only_so_many_answered_requests_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.worker.admission.REMEMBERED", 2)
    device = serving()
    for name in ("r1", "r2", "r3"):
        device.do(ev.ResultSeen(ev.RequestKey("m", name, KEY.input)))
    assert device.ask("r3", redelivered=True) == device.ask("r2", redelivered=True) == []
    assert only(ev.Decode, device.ask("r1", redelivered=True))


# Requests without an id -------------------------------------------------------------------------


def test_a_request_without_an_id_is_republished_by_the_answering_device() -> None:
    device = serving()
    device.now = 1.0
    (claimed,) = device.ask(None, expires_s=5.0)
    assert isinstance(claimed, ev.Republish)
    assert claimed.request.startswith("life-of-a-")
    assert (claimed.model, claimed.payload, claimed.reply) == ("m", PICTURE, REPLY)
    assert claimed.remaining_s == 5.0
    assert device.core.in_flight == 0
    assert only(ev.Decode, device.ask(claimed.request))


def test_each_request_without_an_id_gets_one_of_its_own() -> None:
    device = serving()
    names = {only(ev.Republish, device.ask(None))[0].request for _ in range(3)}
    assert len(names) == 3


def test_other_devices_leave_a_request_without_an_id() -> None:
    device = serving("b")
    assert device.ask(None) == []
    assert device.core.in_flight == 0


def test_the_next_answering_device_republishes_after_a_switch() -> None:
    device = serving("b")
    device.ask(None)
    device.now = 10.0
    newer, programs = plan(2, "b", without="a")
    (claimed,) = only(ev.Republish, device.serve(newer, programs["b"]))
    assert claimed.request.startswith("life-of-b-")
    assert claimed.remaining_s == 20.0


def test_a_request_that_was_republished_is_not_republished_again() -> None:
    device = serving("b")
    device.ask(None)
    device.ask("life-of-a-1")
    newer, programs = plan(2, "b", without="a")
    assert only(ev.Republish, device.serve(newer, programs["b"])) == []


def test_a_request_without_an_id_is_forgotten_at_its_deadline() -> None:
    device = serving("b")
    device.ask(None)
    device.tick(30.0)
    newer, programs = plan(2, "b", without="a")
    assert only(ev.Republish, device.serve(newer, programs["b"])) == []


# States -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("old", State)
@pytest.mark.parametrize("new", State)
def test_a_request_moves_along_its_transitions_only(old: State, new: State) -> None:
    request = Request(KEY, 1, 0, PICTURE, REPLY, 0.0, 30.0, state=old)
    if new in TRANSITIONS[old]:
        request.move(new)
        assert request.state is new
    else:
        with pytest.raises(AssertionError, match="r1"):
            request.move(new)
        assert request.state is old


def test_an_answered_request_moves_no_more() -> None:
    assert TRANSITIONS[State.ANSWERED] == frozenset()
    assert all(State.ANSWERED in TRANSITIONS[s] for s in State if s is not State.ANSWERED)


def test_a_reset_keeps_the_payload_and_the_picture() -> None:
    request = Request(KEY, 1, 0, PICTURE, REPLY, 0.0, 30.0, state=State.RUNNING, image=object())
    picture = request.image
    request.reset()
    assert (request.state, request.payload, request.image) == (State.WAITING, PICTURE, picture)
    assert request.execution is None


def waiting() -> Device:
    """Return a device to which a plan is offered, so that it watches requests and has no plan."""
    device, (header, _) = Device(), plan()
    device.do(ev.PlanOffered(header))
    return device


def test_two_requests_without_an_id_and_one_payload_are_two_requests() -> None:
    device, (header, programs) = waiting(), plan()
    device.ask(None)
    device.ask(None)
    assert len(only(ev.Republish, device.serve(header, programs["a"]))) == 2


def test_a_request_without_an_id_that_comes_again_is_claimed_once() -> None:
    device = serving()
    assert only(ev.Republish, device.ask(None))
    assert only(ev.Republish, device.ask(None, redelivered=True)) == []


def test_a_request_without_an_id_that_nobody_claims_ends_in_an_error() -> None:
    device = waiting()
    device.ask(None, expires_s=5.0)
    device.tick(5.0)
    assert codes(device.tick(device.core.next_timer() or 0.0)) == ["deadline"]


def test_a_device_that_a_plan_leaves_out_passes_its_requests_on() -> None:
    device, (header, _) = running("b"), plan(2, without="b")
    passed = only(ev.Pass, device.do(ev.PlanAnnounced("m", header)))
    assert {p.device for p in passed} == {"a", "c"}
    assert {p.message.request for p in passed} == {"r1"}


def test_an_offer_that_is_not_announced_lapses() -> None:
    device = waiting()
    assert only(ev.Unload, device.tick(device.core.next_timer() or 0.0))
    assert device.core.next_timer() is None
