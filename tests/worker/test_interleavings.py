"""Several workers and a broker whose messages come in any order: one right answer a request.

A device's messages reach the broker in order, and the broker's reach a device in order; all else
is at the mercy of a seed: who is quick, which pieces and requests come twice, when plans change.
"""

from __future__ import annotations

import random
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.adapters.compute import gather
from agent.geometry import whole
from agent.wire.messages import Piece, PlanHeader, Prepared, fingerprint
from agent.wire.tensors import bytes_of
from agent.worker import WorkerCore
from agent.worker import events as ev
from tests.builders import DTYPE, Tiles, chain, header_of, image_of, run_step, whole_chain

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agent.wire.program import Program

DEVICES = ("a", "b", "c", "d")
Programs = dict[str, "Program"]


def request_arrived(
    name: str | None, payload: bytes, *, redelivered: bool = False
) -> ev.RequestArrived:
    mark = fingerprint(payload)
    return ev.RequestArrived("m", name, mark, payload, ev.ReplyTo(), None, redelivered)


def piece_arrived(send: ev.SendPiece) -> ev.PieceArrived:
    data = bytes_of(gather(send.region, DTYPE, send.pieces))
    key = send.key
    piece = Piece(send.plan, key.request, key.input, send.tensor, send.region, data)
    return ev.PieceArrived(piece, len(data))


class Fleet:
    """Workers, a broker and a coordinator that prepares plans and announces them."""

    def __init__(self, seed: int, rows: int) -> None:
        self.random = random.Random(seed)
        self.rows = rows
        self.cores = {device: WorkerCore(device, f"life-of-{device}") for device in DEVICES}
        self.up: dict[str, deque[Callable[[], None]]] = {s: deque() for s in (*DEVICES, "else")}
        self.down: dict[str, deque[ev.Event]] = {device: deque() for device in DEVICES}
        self.jobs: dict[str, ev.Effect | None] = dict.fromkeys(DEVICES)
        self.watching: set[str] = set()
        self.plans: dict[str, tuple[PlanHeader, Programs, set[str]]] = {}
        self.taken: list[tuple[str, ev.RequestArrived]] = []
        self.answers: dict[str, list[Any]] = {}
        self.refusals: list[str] = []

    # What the outside does -----------------------------------------------------------------

    def plan(self, programs: Programs, epoch: int, joined: Sequence[str] = ()) -> None:
        header = header_of(programs, epoch, joined=tuple(joined))
        self.plans[header.digest] = (header, programs, set(programs))
        for device in programs:
            self.send("else", device, ev.PlanOffered(header))

    def ask(self, name: str | None, payload: bytes) -> None:
        self.answers[fingerprint(payload)] = []
        self.up["else"].append(partial(self.publish, request_arrived(name, payload)))

    def run(self, turns: int | None = None) -> None:
        """Let things happen, one at a time in any order; all of them if `turns` is None."""
        while turns != 0:
            doers = [partial(self.carry, queue) for queue in self.up.values() if queue]
            doers += [partial(self.take, device) for device, q in self.down.items() if q]
            doers += [partial(self.finish, device) for device, job in self.jobs.items() if job]
            if not doers:
                return
            self.random.choice(doers)()
            turns = None if turns is None else turns - 1

    # The broker ----------------------------------------------------------------------------

    def send(self, source: str, to: str, event: ev.Event) -> None:
        self.up[source].append(partial(self.down[to].append, event))

    def publish(self, event: ev.Event) -> None:
        for device in sorted(self.watching):
            self.down[device].append(event)

    def answered(self, effect: ev.PublishAnswer) -> None:
        answer = effect.answer
        self.answers[answer.input].append(answer.error or answer.result)
        self.publish(ev.ResultSeen(ev.RequestKey("m", answer.request, answer.input)))

    def prepared(self, device: str, message: Prepared) -> None:
        for header, _, awaited in self.plans.values():
            if header.epoch == message.epoch and device in awaited:
                awaited.discard(device)
                for other in () if awaited else DEVICES:
                    self.down[other].append(ev.PlanAnnounced("m", header))

    def carry(self, queue: deque[Callable[[], None]]) -> None:
        queue.popleft()()

    # A device ------------------------------------------------------------------------------

    def take(self, device: str) -> None:
        event = self.down[device].popleft()
        self.handle(device, event)
        if isinstance(event, ev.RequestArrived) and event.request is not None:
            again = request_arrived(event.request, event.payload, redelivered=True)
            self.taken.append((device, again))
        if self.taken and self.random.random() < 0.05:
            self.handle(*self.random.choice(self.taken))

    def handle(self, device: str, event: ev.Event) -> None:
        for effect in self.cores[device].handle(event, 0.0):
            self.perform(device, effect)

    def perform(self, device: str, effect: ev.Effect) -> None:
        up, down = self.up[device], self.down[device]
        match effect:
            case ev.Fetch(ticket):
                down.append(ev.Fetched(ticket))
            case ev.ReadPlan(plan):
                down.append(ev.PlanRead(plan, self.plans[plan][1][device], None))
            case ev.Load(plan):
                down.append(ev.Loaded(plan))
            case ev.Decode() | ev.Run() | ev.Conclude():
                assert self.jobs[device] is None, "two jobs at a time"
                self.jobs[device] = effect
            case ev.SendPiece():
                for _ in range(self.random.choice((1, 1, 1, 2))):
                    self.send(device, effect.to, piece_arrived(effect))
            case ev.Pass(to, message):
                again = request_arrived(message.request, message.payload, redelivered=True)
                self.send(device, to, again)
            case ev.Log(level, text) if level != "info":
                self.refusals.append(text)
            case _ if (action := self.published(device, effect)) is not None:
                up.append(action)

    def published(self, device: str, effect: ev.Effect) -> Callable[[], None] | None:
        match effect:
            case ev.Watch():
                return partial(self.watching.add, device)
            case ev.Unwatch():
                return partial(self.watching.discard, device)
            case ev.Tell(_, message) if isinstance(message, Prepared):
                return partial(self.prepared, device, message)
            case ev.Republish(_, name, payload):
                return partial(self.publish, request_arrived(name, payload))
            case ev.PublishAnswer():
                return partial(self.answered, effect)
        return None

    def finish(self, device: str) -> None:
        job, self.jobs[device] = self.jobs[device], None
        match job:
            case ev.Decode(key, plan, payload):
                self.handle(device, ev.Decoded(key, plan, image_of(payload, self.rows), 0.0))
            case ev.Run(key, plan, step):
                arrays = run_step(self.plans[plan][1][device], job)
                self.handle(device, ev.StepFinished(key, plan, step, arrays, 0.0, 0.0))
            case ev.Conclude(key, plan, _, outputs):
                rows = gather(whole((self.rows,)), DTYPE, outputs[0]).tolist()
                self.handle(device, ev.Concluded(key, plan, {"rows": rows}, None))


@st.composite
def spread(draw: Any, devices: Sequence[str], rows: int, *, all_of_them: bool) -> Tiles:
    """Draw the rows that each device owns; a device without any is left out."""
    least = 1 if all_of_them else 0
    counts = [least] * len(devices)
    for _ in range(rows - sum(counts)):
        counts[draw(st.integers(0, len(devices) - 1))] += 1
    tiles, start = {}, 0
    for device, count in zip(devices, counts, strict=True):
        if count:
            tiles[device] = (start, start + count)
        start += count
    return tiles


def draw_plan(data: st.DataObject, members: Sequence[str], first: str, rows: int) -> Programs:
    layers = [
        data.draw(spread(members, rows, all_of_them=n == 0))
        for n in range(data.draw(st.integers(1, 3)))
    ]
    return chain(layers, rows, first, step_rows=data.draw(st.sampled_from([1, 2, 1000])))


def check(fleet: Fleet, layers: dict[str, int], payloads: Sequence[bytes]) -> None:
    for payload in payloads:
        image = image_of(payload, fleet.rows)
        right = [{"rows": whole_chain(image, count).tolist()} for count in set(layers.values())]
        given_answers = fleet.answers[fingerprint(payload)]
        assert len(given_answers) == 1
        assert given_answers[0] in right
    assert fleet.refusals == []


def depth(programs: Programs) -> int:
    return len(next(iter(programs.values())).tensors) - 1


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_request_ends_in_one_right_answer(data: st.DataObject) -> None:
    rows = data.draw(st.integers(4, 8))
    members = DEVICES[: data.draw(st.integers(1, 4))]
    fleet = Fleet(data.draw(st.integers(0, 2**32)), rows)
    programs = draw_plan(data, members, data.draw(st.sampled_from(members)), rows)
    fleet.plan(programs, 1)
    fleet.run()
    payloads = [bytes([number + 1]) * 2 for number in range(data.draw(st.integers(1, 4)))]
    for number, payload in enumerate(payloads):
        fleet.ask(data.draw(st.sampled_from([None, f"r{number}"])), payload)
    fleet.run()
    check(fleet, {"old": depth(programs)}, payloads)
    assert all(fleet.cores[device].in_flight == 0 for device in members)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_a_change_of_plan_at_any_moment_loses_and_doubles_nothing(data: st.DataObject) -> None:
    rows = data.draw(st.integers(4, 8))
    first = data.draw(st.sampled_from(DEVICES))
    # The device that answered before stays: while it is there, its answer is the only one.
    pick = st.sets(st.sampled_from(DEVICES)).map(lambda some: sorted(some | {first}))
    before, after = data.draw(pick), data.draw(pick)
    fleet = Fleet(data.draw(st.integers(0, 2**32)), rows)
    old = draw_plan(data, before, first, rows)
    new = draw_plan(data, after, data.draw(st.sampled_from(after)), rows)
    fleet.plan(old, 1)
    fleet.run()
    payloads = [bytes([number + 1]) * 2 for number in range(data.draw(st.integers(1, 4)))]
    moment = data.draw(st.integers(0, len(payloads)))
    for number, payload in enumerate(payloads):
        if number == moment:
            fleet.plan(new, 2, [device for device in new if device not in old])
        fleet.ask(f"r{number}", payload)
        fleet.run(data.draw(st.integers(0, 60)))
    if moment == len(payloads):
        fleet.plan(new, 2, [device for device in new if device not in old])
    fleet.run()
    check(fleet, {"old": depth(old), "new": depth(new)}, payloads)
    assert all(fleet.cores[device].in_flight == 0 for device in after)
    assert all(fleet.cores[device].serving == (device in after) for device in DEVICES)


def test_the_simulator_notices_a_wrong_answer() -> None:
    fleet = Fleet(1, 4)
    programs = chain([{"a": (0, 2), "b": (2, 4)}], 4, "a")
    wrong = msgspec.structs.replace(programs["b"], steps=programs["b"].steps[:0])
    fleet.plan({"a": programs["a"], "b": wrong}, 1)
    fleet.run()
    fleet.ask("r", b"x")
    fleet.run()
    assert fleet.answers[fingerprint(b"x")] == []
