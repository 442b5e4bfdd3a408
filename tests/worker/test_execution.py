"""One request on one device: what an arriving piece makes ready, sends and answers."""

from __future__ import annotations

from typing import Any

import msgspec

from agent.wire.program import Part, Program, Send, Step, TensorSpec
from agent.worker.events import Held
from agent.worker.execution import Execution
from tests.builders import chain

ROWS = 8


def program(**changes: Any) -> Program:
    """Return the part of "a" in two layers: it owns the upper half and gathers."""
    half = {"a": (0, 4), "b": (4, 8)}
    return msgspec.structs.replace(chain([half, half], ROWS, "a")["a"], **changes)


def held(start: int, stop: int, data: object = None) -> Held:
    return Held(((start, stop),), data)


def test_a_step_is_ready_once_all_that_it_reads_is_here() -> None:
    execution = Execution(program())
    assert execution.ready == []
    execution.add(0, held(0, 3))
    assert execution.ready == []
    execution.add(0, held(3, ROWS))
    assert execution.ready == [0]


def test_a_step_that_reads_two_tensors_waits_for_both() -> None:
    tensors = tuple(TensorSpec(name, "int64", (ROWS,)) for name in ("in", "skip", "out"))
    reads = (Part(0, ((0, 4),)), Part(1, ((0, 4),)))
    steps = (Step(0, reads, (Part(2, ((0, 4),)),)),)
    execution = Execution(program(tensors=tensors, steps=steps, sends=(), answers=()))
    execution.add(0, held(0, ROWS))
    assert execution.ready == []
    execution.add(1, held(0, 4))
    assert execution.ready == [0]


def test_a_step_becomes_ready_once() -> None:
    execution = Execution(program())
    execution.add(0, held(0, 5))
    execution.ready.clear()
    execution.add(0, held(0, ROWS))
    assert execution.ready == []


def test_ready_steps_are_in_the_order_of_the_program() -> None:
    # The later steps need less of the input, so they are ready first.
    steps = tuple(Step(0, (Part(0, ((0, n),)),), (Part(1, ((n, n + 1),)),)) for n in (6, 4, 2))
    execution = Execution(program(steps=steps, sends=()))
    for stop in (2, 4, 6):
        execution.add(0, held(0, stop))
    assert execution.ready == [0, 1, 2]


def test_a_send_leaves_once_its_region_is_written() -> None:
    execution = Execution(program())
    execution.add(0, held(0, ROWS))
    assert execution.wrote(0, ["upper half"]) == [Send(Part(1, ((3, 4),)), "b")]
    assert execution.add(1, held(0, ROWS)) == []


def test_a_send_of_several_writes_waits_for_the_last() -> None:
    send = Send(Part(1, ((1, 3),)), "b")
    steps = tuple(Step(0, (Part(0, ((0, 4),)),), (Part(1, ((n, n + 2),)),)) for n in (0, 2))
    execution = Execution(program(steps=steps, sends=(send,)))
    assert execution.wrote(1, ["rows 2 and 3"]) == []
    assert execution.wrote(0, ["rows 0 and 1"]) == [send]


def test_a_region_is_sent_to_each_device_that_needs_it() -> None:
    sends = tuple(Send(Part(1, ((3, 4),)), device) for device in ("b", "c"))
    execution = Execution(program(sends=sends))
    assert execution.wrote(0, ["upper half"]) == list(sends)


def test_a_piece_that_is_held_already_changes_nothing() -> None:
    execution = Execution(program())
    execution.add(1, held(0, ROWS, "first"))
    assert execution.add(1, held(2, 4, "second")) == []
    assert execution.pieces(Part(1, ((2, 4),))) == (held(0, ROWS, "first"),)


def test_one_piece_is_taken_where_one_suffices() -> None:
    execution = Execution(program())
    for piece in (held(0, 3), held(2, 6), held(5, ROWS)):
        execution.add(1, piece)
    assert execution.pieces(Part(1, ((3, 5),))) == (held(2, 6),)
    assert execution.pieces(Part(1, ((0, 5),))) == (held(0, 3), held(2, 6))
    assert execution.pieces(Part(2, ((0, 5),))) == ()


def test_it_can_answer_when_every_output_is_whole() -> None:
    execution = Execution(program())
    assert not execution.answerable
    execution.add(2, held(0, 4))
    assert not execution.answerable
    execution.add(2, held(4, ROWS))
    assert execution.answerable


def test_all_outputs_are_awaited() -> None:
    answers = (Part(1, ((0, ROWS),)), Part(2, ((0, ROWS),)))
    execution = Execution(program(answers=answers))
    execution.add(2, held(0, ROWS))
    assert not execution.answerable
    execution.add(1, held(0, ROWS))
    assert execution.answerable


def test_a_device_without_answers_never_answers() -> None:
    execution = Execution(program(answers=()))
    for tensor in range(3):
        execution.add(tensor, held(0, ROWS))
    assert not execution.answerable


def test_scalars_are_pieces_too() -> None:
    tensors = (TensorSpec("in", "int64", ()), TensorSpec("out", "int64", ()))
    steps = (Step(0, (Part(0, ()),), (Part(1, ()),)),)
    send = Send(Part(1, ()), "b")
    execution = Execution(
        program(tensors=tensors, steps=steps, sends=(send,), answers=(Part(1, ()),))
    )
    execution.add(0, Held((), 1))
    assert execution.ready == [0]
    assert execution.wrote(0, [2]) == [send]
    assert execution.answerable
    assert execution.pieces(Part(1, ())) == (Held((), 2),)


def test_executions_share_nothing() -> None:
    one, two = Execution(program()), Execution(program())
    one.add(0, held(0, ROWS))
    one.add(2, held(0, ROWS))
    assert two.ready == []
    assert not two.answerable
