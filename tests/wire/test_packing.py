"""Packed regions come back bit for bit, or rounded as promised, and cannot be bombs."""

from __future__ import annotations

import tracemalloc
import zlib
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from agent.errors import WireError
from agent.wire.packing import Packed, pack, unpack
from tests.wire.test_tensors import DTYPES

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHAPE = (8, 5, 40)


def rectified(dtype: str = "float32") -> NDArray[Any]:
    """Return what a ReLU leaves: noise, half of it 0."""
    noise = np.random.default_rng(0).standard_normal(SHAPE)
    return np.maximum(noise, 0.0).astype(dtype)


def again(array: NDArray[Any], data: bytes | memoryview) -> NDArray[Any]:
    return unpack("packed", array.dtype.name, array.shape, memoryview(data))


@given(
    st.sampled_from(DTYPES).flatmap(
        lambda dtype: (
            arrays(
                dtype,
                array_shapes(min_side=0, max_side=9),
                elements={"min_value": 0, "max_value": 1},
            )
            if not dtype.startswith("float")
            else arrays(dtype, array_shapes(min_side=0, max_side=9))
        )
    )
)
def test_what_is_packed_comes_back_bit_for_bit_and_is_never_larger(array: NDArray[Any]) -> None:
    coding, data = pack(array, "packed")
    assert len(data) <= array.nbytes
    assert (coding == "plain") == (len(data) == array.nbytes)
    found = unpack(coding, array.dtype.name, array.shape, memoryview(data))
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    assert found.tobytes() == array.tobytes()


@pytest.mark.parametrize(
    ("dtype", "most"), [("float32", 0.5), ("float16", 0.55), ("float64", 0.55), ("uint8", 0.4)]
)
def test_zeros_and_alike_exponents_are_saved(dtype: str, most: float) -> None:
    array = rectified(dtype)
    coding, data = pack(array, "packed")
    assert coding == "packed"
    assert len(data) < most * array.nbytes
    assert again(array, data).tobytes() == array.tobytes()


def test_noise_without_zeros_is_told_without_a_bitmap() -> None:
    array = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    _, data = pack(array, "packed")
    assert data[0] == 0
    assert len(data) < 0.9 * array.nbytes
    assert again(array, data).tobytes() == array.tobytes()


def test_zeros_with_a_sign_and_what_is_no_number_are_kept() -> None:
    array = np.zeros(64, np.float32)
    array[3:6] = -0.0, np.nan, -np.inf
    coding, data = pack(array, "packed")
    assert coding == "packed"
    assert again(array, data).tobytes() == array.tobytes()


def test_half_is_rounded_to_the_nearest_float16() -> None:
    array = rectified()
    coding, data = pack(array, "half")
    assert coding == "half"
    assert len(data) < 0.3 * array.nbytes
    found = unpack(coding, "float32", SHAPE, memoryview(data))
    assert found.dtype == np.float32
    assert found.tobytes() == array.astype(np.float16).astype(np.float32).tobytes()


@pytest.mark.parametrize("value", [65520.0, -1e9, np.inf, np.nan])
def test_what_has_no_float16_is_not_rounded(value: float) -> None:
    array = rectified()
    array[0, 0, 0] = value
    coding, data = pack(array, "half")
    assert coding == "packed"
    assert again(array, data).tobytes() == array.tobytes()


def test_only_float32_is_rounded() -> None:
    assert pack(rectified("float64"), "half")[0] == "packed"


@given(st.integers(0, 2000), st.integers(0, 255), st.booleans())
def test_damage_is_refused_or_gives_an_array_of_the_same_size(
    at: int,
    octet: int,
    cut: bool,  # noqa: FBT001
) -> None:
    array = rectified()
    _, packed = pack(array, "packed")
    data = bytearray(packed)
    at = min(at, len(data) - 1)
    if cut:
        del data[at:]
    else:
        data[at] = octet
    try:
        found = again(array, bytes(data))
    except WireError:
        return
    assert not cut
    assert found.shape == SHAPE


@pytest.mark.parametrize("coding", ["packed", "half"])
def test_a_bomb_takes_no_more_memory_than_its_region(coding: Any) -> None:
    bomb = zlib.compressobj(9, zlib.DEFLATED, -15)
    lower = bytes(prod(SHAPE) * (3 if coding == "packed" else 1))
    data = b"\0" + lower + bomb.compress(bytes(64 << 20)) + bomb.flush()
    tracemalloc.start()
    try:
        with pytest.raises(WireError, match="size that its region says"):
            unpack(coding, "float32", SHAPE, memoryview(data))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("data", [b"", b"\2", b"\0", b"\1", b"\0" + bytes(2000) + b"\7\7\7"])
def test_what_was_never_packed_is_refused(data: bytes) -> None:
    with pytest.raises(WireError):
        unpack("packed", "int16", (1000,), memoryview(data))


def test_what_lacks_only_its_end_is_refused() -> None:
    array = np.random.default_rng(1).standard_normal(1000).astype(np.float32)
    coding, data = pack(array, "packed")
    assert coding == "packed"
    with pytest.raises(WireError, match="size that its region says"):
        unpack("packed", "float32", array.shape, memoryview(data)[:-1])


def test_a_region_is_unpacked_once() -> None:
    array = rectified()
    coding, data = pack(array, "packed")
    packed = Packed(coding, "float32", SHAPE, memoryview(data))
    assert packed.array() is packed.array()
    assert packed.array().tobytes() == array.tobytes()
