"""Messages: what is encoded is decoded, and what was damaged is a value or `WireError`."""

from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING, Any

import msgpack
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import inspect

from agent.errors import WireError
from agent.wire import messages as wire
from agent.wire.model import ModelPackage
from agent.wire.program import BlobRef

if TYPE_CHECKING:
    from collections.abc import Callable


Values = st.SearchStrategy[Any]


def values(info: Any) -> Values:
    """Return a strategy for the values of a field, from its declared type and limits."""
    return MAKERS[type(info)](info)


def integers(info: inspect.IntType) -> Values:
    high = info.le if info.lt is None else info.lt - 1
    return st.integers(-(2**53) if info.ge is None else info.ge, 2**53 if high is None else high)


def texts(info: inspect.StrType) -> Values:
    if info.pattern is None:
        return st.text(min_size=info.min_length or 0, max_size=10)
    return st.from_regex(info.pattern.rstrip("$") + r"\Z")


def structs(info: inspect.StructType) -> Values:
    return st.builds(info.cls, **{field.name: values(field.type) for field in info.fields})


ANYTHING: Values = st.recursive(
    st.none() | st.booleans() | st.integers(0, 9) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)
MAKERS: dict[type, Callable[[Any], Values]] = {
    inspect.NoneType: lambda _: st.none(),
    inspect.BoolType: lambda _: st.booleans(),
    inspect.IntType: integers,
    inspect.FloatType: lambda i: st.floats(i.ge, i.le, allow_nan=False, allow_infinity=False),
    inspect.StrType: texts,
    inspect.BytesType: lambda _: st.binary(max_size=20),
    inspect.MemoryViewType: lambda _: st.binary(max_size=20).map(memoryview),
    inspect.AnyType: lambda _: ANYTHING,
    inspect.LiteralType: lambda i: st.sampled_from(i.values),
    inspect.TupleType: lambda i: st.tuples(*map(values, i.item_types)),
    inspect.VarTupleType: lambda i: st.lists(values(i.item_type), max_size=2).map(tuple),
    inspect.DictType: lambda i: st.dictionaries(
        values(i.key_type), values(i.value_type), max_size=2
    ),
    inspect.UnionType: lambda i: st.one_of(*map(values, i.types)),
    inspect.StructType: structs,
}
JSON_KINDS: dict[str, Any] = {
    "status": wire.Status,
    "header": wire.PlanHeader,
    "control": wire.Control,
    "trace": wire.Trace,
    "package": ModelPackage,
}
MSGPACK_KINDS: dict[str, Any] = {"peer": wire.Peer, "chunk": wire.Chunk, "answer": wire.Answer}
KINDS = {**JSON_KINDS, **MSGPACK_KINDS}
STRATEGIES = {name: values(inspect.type_info(kind)) for name, kind in KINDS.items()}
ANSWERS = STRATEGIES["answer"]
PACKAGES = STRATEGIES["package"]
# What a decoder may be handed in place of a field: of another type, or of an absurd size.
WRONG: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=5),
    st.text(min_size=5000, max_size=5000),
    st.just([]),
    st.just({}),
    st.just([[[[]]]]),
    st.just({"type": "piece"}),
)
few = settings(max_examples=25)


def peak_bytes(payload: bytes, kind: Any) -> int:
    """Return how much memory refusing `payload` takes at its worst."""
    tracemalloc.start()
    try:
        with pytest.raises(WireError):
            wire.decode_msgpack(payload, kind)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def value_or_refusal(payload: bytes, kind: Any, *, json: bool) -> None:
    """Decode; anything but a valid value or `WireError` fails the test."""
    try:
        value = (wire.decode_json if json else wire.decode_msgpack)(payload, kind)
    except WireError:
        return
    # A valid value can be encoded and is decoded to itself again.
    encode, decode = (
        (wire.encode_json, wire.decode_json) if json else (wire.encode_msgpack, wire.decode_msgpack)
    )
    assert decode(encode(value), kind) == value


def damaged(data: st.DataObject, payload: bytes) -> bytes:
    """Flip bits of a payload, then cut some of it out."""
    content = bytearray(payload)
    for _ in range(data.draw(st.integers(0, 3))):
        bit = data.draw(st.integers(0, 8 * len(content) - 1))
        content[bit // 8] ^= 1 << bit % 8
    start = data.draw(st.integers(0, len(content)))
    if data.draw(st.booleans()):
        return bytes(content[:start])
    return bytes(content[:start] + content[data.draw(st.integers(start, len(content))) :])


def with_a_wrong_field(data: st.DataObject, plain: Any) -> Any:
    """Replace one value somewhere in a message by one that is wrong, or drop it."""
    if isinstance(plain, dict) and plain and data.draw(st.booleans()):
        key = data.draw(st.sampled_from(sorted(plain)))
        rest = {name: value for name, value in plain.items() if name != key}
        if data.draw(st.booleans()):
            return rest
        return {**rest, key: with_a_wrong_field(data, plain[key])}
    return data.draw(WRONG)


@pytest.mark.parametrize("name", JSON_KINDS)
@few
@given(st.data())
def test_json_messages_come_back_as_they_were(name: str, data: st.DataObject) -> None:
    message = data.draw(STRATEGIES[name])
    assert wire.decode_json(wire.encode_json(message), KINDS[name]) == message


@pytest.mark.parametrize("name", MSGPACK_KINDS)
@few
@given(st.data())
def test_msgpack_messages_come_back_as_they_were(name: str, data: st.DataObject) -> None:
    message = data.draw(STRATEGIES[name])
    assert wire.decode_msgpack(wire.encode_msgpack(message), KINDS[name]) == message


@few
@given(ANSWERS)
def test_answers_travel_as_json_unless_they_hold_tensors(answer: wire.Answer) -> None:
    payload = wire.encode_answer(answer)
    assert (payload[:1] == b"{") == (answer.outputs is None)
    assert wire.decode_answer(payload) == answer
    error = wire.FailureCode(answer.error.code) if answer.error else None
    key = wire.AnswerKey(answer.request, answer.input, error)
    assert key.turned_away == (error == wire.FailureCode("overloaded"))
    assert wire.decode_answer(payload, wire.AnswerKey) == key


@few
@given(PACKAGES)
def test_packages_are_encoded_one_way_only(package: ModelPackage) -> None:
    again = wire.decode_json(wire.encode_json(package), ModelPackage)
    assert again == package
    assert wire.encode_json(again) == wire.encode_json(package)
    assert package.graph.digest in package.blobs()
    assert {part.digest for w in package.weights for part in w.parts} <= package.blobs().keys()


@pytest.mark.parametrize("name", KINDS)
@few
@given(st.data())
def test_a_damaged_message_is_a_value_or_refused(name: str, data: st.DataObject) -> None:
    json = name in JSON_KINDS
    message = data.draw(STRATEGIES[name])
    payload = wire.encode_json(message) if json else wire.encode_msgpack(message)
    value_or_refusal(damaged(data, payload), KINDS[name], json=json)


@pytest.mark.parametrize("name", KINDS)
@few
@given(st.data())
def test_a_wrong_field_is_a_value_or_refused(name: str, data: st.DataObject) -> None:
    json = name in JSON_KINDS
    plain = msgspec.to_builtins(data.draw(STRATEGIES[name]), builtin_types=(bytes,))
    wrong = with_a_wrong_field(data, plain)
    payload = msgspec.json.encode(wrong) if json else msgspec.msgpack.encode(wrong)
    value_or_refusal(payload, KINDS[name], json=json)


@settings(max_examples=100)
@given(st.binary(max_size=60))
def test_random_bytes_are_a_value_or_refused(payload: bytes) -> None:
    for kind in JSON_KINDS.values():
        value_or_refusal(payload, kind, json=True)
    for kind in MSGPACK_KINDS.values():
        value_or_refusal(payload, kind, json=False)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xff\xfe",
        b'{"device":"\xff"}',
        b"[" * 100_000,
        b'{"x":' * 100_000,
        b'{"device": 1e999}',
        b"\xef\xbb\xbf{}",
        b"null",
        b"{}{}",
    ],
)
def test_hostile_json_is_refused(payload: bytes) -> None:
    for kind in JSON_KINDS.values():
        with pytest.raises(WireError):
            wire.decode_json(payload, kind)
    with pytest.raises(WireError):
        wire.decode_answer(payload)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        b"\x81",
        b"\x91" * 100_000,
        b"\x81\xa1x" * 100_000,
        b"\x81\x91\x01\x01",
        b"\x81\xa1\xff\x01",
        b"\xd6\xff\x00\x00\x00\x00",
        b"\xc7\x03\xff\x00\x00\x00",
        b"\xc7\x0c\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\xd4\x05\x00",
        b"\xcb\x7f\xf0\x00\x00\x00\x00\x00\x00",
        b"\x80\x80",
    ],
)
def test_hostile_msgpack_is_refused(payload: bytes) -> None:
    for kind in MSGPACK_KINDS.values():
        with pytest.raises(WireError):
            wire.decode_msgpack(payload, kind)


@pytest.mark.parametrize("head", [b"\xdd", b"\xdf", b"\xc6", b"\xdb", b"\xc9"])
def test_a_huge_declared_length_takes_no_memory(head: bytes) -> None:
    for payload in (head + b"\xff\xff\xff\xff", head + b"\x7f\xff\xff\xff" + bytes(100)):
        assert peak_bytes(payload, wire.Chunk) < 100_000


def test_a_refused_message_takes_memory_in_proportion_to_its_size() -> None:
    many = msgpack.packb([None] * 1_000_000)
    assert peak_bytes(many, wire.Piece) < 20 * len(many)


def test_a_message_over_the_limit_is_refused_unread() -> None:
    payload = b"\xc6" + (wire.MAX_PACKET_BYTES).to_bytes(4, "big") + bytes(wire.MAX_PACKET_BYTES)
    with pytest.raises(WireError, match="over the limit"):
        wire.decode_msgpack(payload, wire.Chunk)


def test_a_full_chunk_fits_into_a_packet() -> None:
    chunk = wire.Chunk("0" * 64, 1 << 40, 999_999, bytes(wire.CHUNK_BYTES))
    assert len(wire.encode_msgpack(chunk)) < 2 * wire.CHUNK_BYTES < wire.MAX_PACKET_BYTES


@pytest.mark.parametrize("name", ["", "-x", ".x", "a b", "a/b", "a#", "a+", "ä", "x" * 65])
def test_names_that_are_no_topic_level_are_refused(name: str) -> None:
    status = wire.encode_json(wire.Status(name, "s", "online"))
    with pytest.raises(WireError):
        wire.decode_json(status, wire.Status)


def test_a_control_message_of_another_kind_is_refused() -> None:
    with pytest.raises(WireError):
        wire.decode_json(b'{"type":"forward","model":"m"}', wire.Control)
    with pytest.raises(WireError):
        wire.decode_json(b'{"reader":"a"}', wire.Control)


def test_plans_are_ordered_by_epoch_then_coordinator() -> None:
    def header(epoch: int, coordinator: str) -> wire.PlanHeader:
        blob = BlobRef("0" * 64, 1)
        return wire.PlanHeader(epoch, coordinator, "m", "0" * 64, (), {}, blob, "s")

    headers = [header(2, "a"), header(10, "a"), header(2, "b")]
    ordered = sorted(headers, key=lambda header: header.order)
    assert [(h.epoch, h.coordinator) for h in ordered] == [(2, "a"), (2, "b"), (10, "a")]


def test_fingerprints_tell_payloads_apart() -> None:
    assert wire.fingerprint(b"one") == wire.fingerprint(b"one")
    assert wire.fingerprint(b"one") != wire.fingerprint(b"two")
    assert len(wire.fingerprint(b"")) == 32


def test_a_trace_of_an_agent_that_tells_less_is_understood() -> None:
    step = {"block": 0, "tensor": "t", "region": [[0, 1]], "start_ms": 1.0, "end_ms": 2.0}
    told = {
        "device": "a",
        "request": "r",
        "epoch": 1,
        "steps": [step],
        "bytes_sent": 8,
        "bytes_received": 8,
        **dict.fromkeys(("decode_ms", "compute_ms", "wait_ms", "total_ms"), 1.0),
    }
    trace = wire.decode_json(msgspec.json.encode(told), wire.Trace)
    assert (trace.sends, trace.receives, trace.decode_start_ms, trace.answer_ms) == ((), (), 0, 0)
    assert trace.steps[0].predicted_start_ms == 0
