"""Programs: encoded one way only, and refused where they refer to what they do not have."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import WireError
from agent.wire.program import (
    BlobRef,
    Part,
    Program,
    SegmentSpec,
    Send,
    Step,
    TensorSpec,
    WeightSpec,
    blob_ref,
    decode_program,
    encode_program,
    plan_digest,
)
from tests.builders import chain, ref

ROWS: tuple[tuple[int, int], ...] = ((0, 4), (0, 2))


def program(**changes: Any) -> Program:
    weight = WeightSpec("w", "float32", (2, 2), (ref("part 1"), ref("part 2", 6)), 4)
    good = Program(
        model="m",
        device="a",
        tensors=(TensorSpec("in", "uint8", (4, 2)), TensorSpec("scalar", "float32", ())),
        input=0,
        segments=(SegmentSpec(ref("graph"), (weight,)),),
        steps=(Step(0, (Part(0, ROWS),), (Part(1, ()),)),),
        sends=(Send(Part(1, ()), "b"),),
        answers=(Part(1, ()),),
    )
    return msgspec.structs.replace(good, **changes)


def test_a_program_comes_back_as_it_was() -> None:
    content = encode_program(program())
    assert decode_program(content) == program()
    assert encode_program(decode_program(content)) == content


def test_programs_of_chains_come_back_as_they_were() -> None:
    for made in chain([{"a": (0, 3), "b": (3, 8)}, {"b": (0, 8)}], 8, "a").values():
        assert decode_program(encode_program(made)) == made


def test_blobs_are_all_graphs_and_parts_of_weights() -> None:
    refs = [ref("graph"), ref("part 1"), ref("part 2", 6)]
    assert program().blobs() == {blob.digest: blob.nbytes for blob in refs}


@pytest.mark.parametrize(
    "part",
    [
        Part(2, ROWS),
        Part(0, ()),
        Part(0, ((0, 4),)),
        Part(0, (*ROWS, (0, 1))),
        Part(0, ((0, 5), (0, 2))),
        Part(0, ((2, 2), (0, 2))),
        Part(0, ((3, 2), (0, 2))),
        Part(1, ((0, 1),)),
    ],
    ids=["tensor", "no axis", "one axis", "axis more", "too far", "empty", "backwards", "scalar"],
)
@pytest.mark.parametrize("place", ["reads", "writes", "sends", "answers"])
def test_a_part_that_does_not_fit_is_refused(place: str, part: Part) -> None:
    good = Part(0, ROWS)
    changed: dict[str, Program] = {
        "reads": program(steps=(Step(0, (good, part), (good,)),)),
        "writes": program(steps=(Step(0, (good,), (part,)),)),
        "sends": program(sends=(Send(good, "b"), Send(part, "b"))),
        "answers": program(answers=(part,)),
    }
    with pytest.raises(WireError, match="tensor"):
        decode_program(encode_program(changed[place]))


def test_an_input_that_is_no_tensor_is_refused() -> None:
    with pytest.raises(WireError, match="input"):
        decode_program(encode_program(program(input=2)))


def test_a_step_without_its_segment_is_refused() -> None:
    with pytest.raises(WireError, match="segment"):
        decode_program(encode_program(program(steps=(Step(1, (), ()),))))


@pytest.mark.parametrize(
    "changes",
    [
        {"tensors": (TensorSpec("in", "complex64", (4, 2)),)},
        {"tensors": (TensorSpec("in", "float32", (-1,)),)},
        {"tensors": (TensorSpec("in", "float32", (1 << 41,)),)},
        {"segments": (SegmentSpec(BlobRef("0" * 63, 1)),)},
        {"segments": (SegmentSpec(BlobRef("../" + "0" * 61, 1)),)},
        {"segments": (SegmentSpec(BlobRef("0" * 64, -1)),)},
        {"input": -1},
        {"input": 1_000_000},
        {"model": None},
        {"steps": None},
    ],
)
def test_a_field_out_of_range_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(WireError, match="not a program"):
        decode_program(encode_program(program(**changes)))


@settings(max_examples=100)
@given(st.data())
def test_a_damaged_program_is_a_program_or_refused(data: st.DataObject) -> None:
    content = bytearray(encode_program(program()))
    place = data.draw(st.integers(0, len(content) - 1))
    # Bytes of ASCII: others are no text at all, see the next test.
    content[place] = data.draw(st.integers(0, 127))
    try:
        made = decode_program(bytes(content[: data.draw(st.integers(place, len(content)))]))
    except WireError:
        return
    assert all(part.tensor < len(made.tensors) for part in made.answers)


def test_a_reference_names_the_content() -> None:
    assert blob_ref(b"abc") == blob_ref(memoryview(b"abc"))
    assert blob_ref(b"abc").nbytes == 3
    assert blob_ref(b"abc").digest.startswith("ba7816bf")


def test_no_two_plans_share_a_digest() -> None:
    one, two = {"a": ref("one")}, {"a": ref("two")}
    moved = {"b": ref("one")}
    plans = [(one, 1, "x"), (two, 1, "x"), (one, 2, "x"), (one, 1, "y"), (moved, 1, "x")]
    assert len({plan_digest(*plan) for plan in plans}) == len(plans)
    order = {"b": ref("two"), "a": ref("one")}
    assert plan_digest(order, 1, "x") == plan_digest(dict(sorted(order.items())), 1, "x")
