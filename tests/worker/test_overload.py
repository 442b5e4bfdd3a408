"""More requests than can be answered: who is turned away, and whose turn is next."""

from __future__ import annotations

from itertools import count

import pytest

from agent.wire.messages import fingerprint
from agent.worker import events as ev
from agent.worker.overload import FULL, NEWER, SHARED, fits, late, surplus, unanswered
from agent.worker.pace import SAMPLES, Pace
from agent.worker.requests import Request, State
from agent.worker.turns import MAX_CLIENTS, Turns
from tests.builders import only
from tests.worker.test_core import Device, answers, codes, serving

LIFE_S = 30.0
NUMBERS = count(1)


def request(
    client: str, turn: int = 0, *, deadline: float = LIFE_S, steps: int = 0, nbytes: int = 1
) -> Request:
    """Return a request of a client that waits."""
    number = next(NUMBERS)
    key = ev.RequestKey("m", f"r{number}", "0" * 32)
    made = Request(key, number, turn, bytes(nbytes), ev.ReplyTo(client=client), 0.0, deadline)
    made.meter.steps += [(0, 0.0, 1.0)] * steps
    return made


def ask(device: Device, client: str, name: str, *, expires_s: float | None = None) -> list[str]:
    """Have a client ask; return "request: code" of the answers that follow."""
    event = ev.RequestArrived(
        "m", name, fingerprint(name.encode()), name.encode(), ev.ReplyTo(client=client), expires_s
    )
    effects = device.do(event)
    return [
        f"{a.request}: {code}" for a, code in zip(answers(effects), codes(effects), strict=True)
    ]


def see(device: Device, name: str, *, turned_away: bool = False) -> list[ev.Effect]:
    """Have a device see the answer to a request."""
    key = ev.RequestKey("m", name, fingerprint(name.encode()))
    return device.do(ev.ResultSeen(key, turned_away))


# Shares -----------------------------------------------------------------------------------------


def test_who_holds_the_most_gives_way_and_of_that_the_oldest() -> None:
    flood = [request("flood", turn) for turn in range(4)]
    newcomer = request("door")
    waiting = unanswered([*flood, newcomer])
    assert surplus(waiting, newcomer) == (flood[1], SHARED)


def test_of_one_client_the_newest_stays() -> None:
    mine = [request("door", turn) for turn in range(4)]
    assert surplus(mine, mine[-1]) == (mine[1], NEWER)


def test_what_was_computed_on_stays_where_something_else_can_go() -> None:
    flood = [request("flood", 0, steps=1), request("flood", 1, steps=1), request("flood", 2)]
    newcomer = request("door", 3)
    assert surplus([*flood, newcomer], newcomer) == (flood[2], SHARED)
    touched = [request("flood", turn, steps=1) for turn in range(3)]
    assert surplus([*touched, newcomer], newcomer) == (touched[1], SHARED)


def test_who_has_the_turn_is_kept() -> None:
    only_one = request("flood", 0)
    newcomer = request("flood", 1)
    assert surplus([only_one, newcomer], newcomer) == (newcomer, FULL)


def test_equal_shares_are_not_traded() -> None:
    mine = [request("a", 0), request("b", 0), request("c", 0)]
    assert surplus(mine, mine[-1]) == (mine[-1], FULL)
    uneven = [request("a", 0), request("a", 1), request("a", 2), request("b", 0), request("b", 1)]
    waiting = unanswered([*uneven, newcomer := request("b", 2)])
    assert surplus(waiting, newcomer) == (uneven[3], NEWER)


def test_bytes_are_bounded_as_well_but_one_request_always_fits() -> None:
    two = [request("a", nbytes=6), request("a", nbytes=5)]
    assert fits(two, 2, 11)
    assert not fits(two, 2, 10)
    assert not fits(two, 1, 11)
    assert fits(two[:1], 1, 5)


# Deadlines --------------------------------------------------------------------------------------


def test_what_those_before_it_leave_no_time_for_goes() -> None:
    waiting = [request("a", 0), request("b", 1, deadline=1.9), request("c", 2, deadline=2.1)]
    assert late(waiting, 1.0, 0.0) == [waiting[1]]
    assert late(waiting, 0.0, 0.0) == []


def test_older_requests_of_a_client_go_where_that_leaves_time_for_its_newest() -> None:
    waiting = [request("a", n, deadline=3.0 + n / 10) for n in range(5)]
    assert late(waiting, 1.0, 0.0) == waiting[1:3]


def test_the_first_one_is_never_late_and_one_that_is_begun_may_be_nearly_done() -> None:
    begun = request("b", 1, deadline=1.1, steps=1)
    waiting = [request("a", 0, deadline=0.1), begun, request("c", 2, deadline=2.1)]
    assert late(waiting, 1.0, 0.0) == waiting[2:]
    assert late(waiting, 1.0, 0.2) == waiting[1:]


def test_the_pace_is_that_of_answers_while_requests_wait() -> None:
    pace = Pace()
    assert pace.spacing_s == 0.0
    for number in range(SAMPLES):
        pace.answered(0.0, 1.0 + number)
    assert pace.spacing_s == pytest.approx(1.0)
    # A pause in which nothing waited is none.
    pace.answered(100.0, 101.0)
    assert pace.spacing_s == pytest.approx(1.0)
    # One long wait says little of the next.
    pace.answered(101.0, 171.0)
    assert pace.spacing_s == pytest.approx(1.0)


# Turns ------------------------------------------------------------------------------------------


def test_a_client_waits_for_one_request_of_each_other_client() -> None:
    turns = Turns()
    flood = [turns.take("flood") for _ in range(5)]
    assert flood == [0, 1, 2, 3, 4]
    turns.served(request("flood", 1))
    assert turns.take("door") == 1
    assert turns.take("door") == 2


def test_a_client_with_one_request_at_a_time_does_not_starve_the_others() -> None:
    turns = Turns()
    for _ in range(5):
        turns.take("flood")
    polite = []
    for _ in range(3):
        polite.append(turns.take("door"))
        turns.served(request("door", polite[-1]))
    assert polite == [0, 1, 2]


def test_what_is_turned_away_costs_its_client_no_turn() -> None:
    turns = Turns()
    flood = [request("flood", turns.take("flood")) for _ in range(4)]
    turns.turned_away(flood[1], [flood[0], *flood[2:]])
    assert [r.turn for r in flood] == [0, 1, 1, 2]
    assert turns.take("flood") == 3


def test_only_so_many_clients_are_remembered() -> None:
    turns = Turns()
    for number in range(2 * MAX_CLIENTS):
        turns.take(f"client {number}")
    assert len(turns._next) == MAX_CLIENTS
    turns.served(request("a", 0))
    turns.served(request("a", 1))
    assert turns._next == {}


# The core ---------------------------------------------------------------------------------------


def test_a_flood_takes_no_room_from_others() -> None:
    device = serving(max_in_flight=4)
    flooded = [ask(device, "flood", f"f{number}") for number in range(6)]
    assert flooded == [[], [], [], [], ["f1: overloaded"], ["f2: overloaded"]]
    assert ask(device, "door", "d1") == ["f3: overloaded"]
    assert ask(device, "door", "d2") == ["f4: overloaded"]
    # Two of each by now: who wants more gives up one of its own.
    assert ask(device, "door", "d3") == ["d1: overloaded"]
    assert ask(device, "flood", "f6") == ["f5: overloaded"]


def test_the_turns_decide_whose_picture_is_decoded_next() -> None:
    device = serving("b")
    for number in range(5):
        ask(device, "flood", f"f{number}")
    ask(device, "door", "d0")
    decoding = ev.RequestKey("m", "f0", fingerprint(b"f0"))
    effects = device.do(ev.DecodeRefused(decoding, device.core._plans.active["m"].digest, "bad"))
    (job,) = only(ev.Decode, effects)
    assert job.key.request == "d0"


def test_requests_that_would_be_too_late_are_turned_away_at_once() -> None:
    device = serving()
    plan = device.core._plans.active["m"]
    plan.pace.answered(0.0, 1.0)
    device.now = 10.0
    assert ask(device, "a", "a1", expires_s=0.5) == []
    assert ask(device, "b", "b1", expires_s=1.5) == ["b1: overloaded"]
    assert ask(device, "c", "c1", expires_s=2.5) == []
    # What becomes late while it waits is turned away when the next answer is there.
    device.now = 12.0
    assert codes(see(device, "b1", turned_away=True)) == ["overloaded"]


def test_other_devices_turn_nobody_away() -> None:
    device = serving("b", max_in_flight=1)
    device.core._plans.active["m"].pace.answered(0.0, 1.0)
    assert [ask(device, "a", f"a{number}", expires_s=0.5) for number in range(4)] == [[]] * 4


def test_where_answers_do_not_get_away_requests_are_refused_unkept() -> None:
    device = serving(max_in_flight=1)
    for number in range(4):
        ask(device, f"client-{number}", f"r{number}")
    assert device.core.in_flight == 4
    assert ask(device, "more", "r9") == ["r9: overloaded"]
    assert device.core.in_flight == 4


def test_an_answered_request_keeps_no_payload() -> None:
    waiting = request("a", nbytes=100)
    waiting.move(State.ANSWERED)
    assert waiting.payload == b""
