"""Tensors on the wire: every dtype and shape comes back, and what does not fit is refused."""

from __future__ import annotations

from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from agent.errors import WireError
from agent.wire.messages import Piece, decode_msgpack, encode_msgpack
from agent.wire.tensors import (
    array_of,
    bytes_of,
    decode_tensor,
    encode_tensor,
    itemsize,
    message_array,
    tensor_message,
)

INTEGERS = ["bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
DTYPES = [*INTEGERS, "float16", "float32", "float64"]
SOME = st.sampled_from(DTYPES).flatmap(
    lambda dtype: arrays(dtype, array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
)


def message(**changes: Any) -> bytes:
    return bytes(msgpack.packb({"dtype": "int16", "shape": [2], "data": b"abcd", **changes}))


@given(SOME)
def test_a_tensor_comes_back_bit_for_bit(array: np.ndarray[Any, Any]) -> None:
    again = decode_tensor(encode_tensor(array))
    assert (again.dtype, again.shape) == (array.dtype, array.shape)
    assert again.tobytes() == array.tobytes()
    assert message_array(tensor_message(array)).tobytes() == array.tobytes()


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=">i4").reshape(2, 3),
        np.arange(24, dtype="float32").reshape(2, 3, 4)[:, ::2, ::-1],
        np.asfortranarray(np.arange(6, dtype="int64").reshape(2, 3)),
    ],
    ids=["big-endian", "strided", "fortran"],
)
def test_memory_layout_does_not_travel(array: np.ndarray[Any, Any]) -> None:
    again = decode_tensor(encode_tensor(array))
    assert again.tolist() == array.tolist()
    assert again.dtype == array.dtype.newbyteorder("<")


@given(SOME)
def test_tensors_are_what_other_codecs_make_of_them(array: np.ndarray[Any, Any]) -> None:
    plain = msgpack.unpackb(encode_tensor(array))
    assert plain.keys() == {"dtype", "shape", "data"}
    assert plain["data"] == array.tobytes()
    assert decode_tensor(bytes(msgpack.packb(plain))).tobytes() == array.tobytes()


def test_bytes_of_a_contiguous_array_are_not_copied() -> None:
    array = np.arange(6, dtype="float32").reshape(2, 3)
    assert np.shares_memory(np.frombuffer(bytes_of(array), "float32"), array)


def test_a_decoded_piece_is_a_view_of_its_message() -> None:
    piece = Piece("0" * 64, "r", "0" * 32, 1, ((0, 2),), memoryview(b"abcdefgh"))
    payload = encode_msgpack(piece)
    assert decode_msgpack(payload, Piece).data.obj is payload


def test_a_decoded_tensor_is_a_view_that_cannot_be_written() -> None:
    array = array_of("int16", (2,), b"abcd")
    assert not array.flags.writeable
    assert not array.flags.owndata


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\x80",
        message(dtype="float32"),
        message(dtype="complex64"),
        message(dtype="object"),
        message(dtype="int16\x00"),
        message(dtype=None),
        message(shape=[3]),
        message(shape=[-2]),
        message(shape=[2.0]),
        message(shape="2"),
        message(shape=[1 << 41]),
        message(shape=[1 << 40, 1 << 40]),
        message(shape=[1] * 9 + [2]),
        message(data=b"abc"),
        message(data="abcd"),
        message(data=None),
        message(more=1),
        message()[:-1],
        message() + b"\x00",
    ],
)
def test_what_is_no_tensor_is_refused(payload: bytes) -> None:
    with pytest.raises(WireError):
        decode_tensor(payload)


def test_a_tensor_over_the_limit_is_refused() -> None:
    payload = encode_tensor(np.zeros(100, "uint8"))
    assert decode_tensor(payload, len(payload)).size == 100
    with pytest.raises(WireError, match="over the limit"):
        decode_tensor(payload, len(payload) - 1)


@settings(max_examples=100)
@given(SOME, st.data())
def test_a_damaged_tensor_is_a_value_or_refused(
    array: np.ndarray[Any, Any], data: st.DataObject
) -> None:
    payload = bytearray(encode_tensor(array))
    bit = data.draw(st.integers(0, 8 * len(payload) - 1))
    payload[bit // 8] ^= 1 << bit % 8
    try:
        damaged = decode_tensor(bytes(payload[: data.draw(st.integers(1, len(payload)))]))
    except WireError:
        return
    assert damaged.nbytes <= len(payload)


def test_item_sizes() -> None:
    assert [itemsize(dtype) for dtype in ("bool", "float16", "int32", "float64")] == [1, 2, 4, 8]
