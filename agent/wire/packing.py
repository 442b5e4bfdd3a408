"""Packing: fewer bytes for a region of a tensor, without loss or rounded to float16.

What is packed begins with a byte: 0, or 1 where most of it is worth leaving zeros out (ReLU leaves
many). With 1 a bitmap of the elements whose bits are not all 0 follows, and only those elements
are told. Elements are told in two parts: their lower bytes as they are, because a mantissa is
noise; and their highest bytes, which differ little (sign and exponent), as a raw deflate stream.
"half" is float32 rounded to float16 and packed so. What would not get smaller stays plain.
"""

from __future__ import annotations

import zlib
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from agent.errors import WireError
from agent.wire.tensors import array_of, bytes_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from agent.wire.program import Coding

_ALL, _SPARSE = b"\0", b"\1"
_RAW_DEFLATE = -zlib.MAX_WBITS
_HALF = "float16"


def pack(array: NDArray[Any], coding: Coding) -> tuple[Coding, memoryview | bytes]:
    """Return the bytes of an array in `coding`, or in a plainer one that serves it better.

    Nothing is rounded to float16 that has no finite one, and nothing gets larger.
    """
    if coding == "half":
        half = _halved(array)
        return pack(array, "packed") if half is None else ("half", _packed(half))
    if coding == "packed":
        packed = _packed(array)
        if len(packed) < array.nbytes:
            return "packed", packed
    return "plain", bytes_of(array)


def unpack(coding: Coding, dtype: str, shape: tuple[int, ...], data: memoryview) -> NDArray[Any]:
    """Return the array of `dtype` and `shape` that was packed as `data`.

    It takes no more memory than its shape says, whatever `data` are.

    Raises:
        WireError: if `data` are not those of such an array.
    """
    if coding == "plain":
        return array_of(dtype, shape, data)
    try:
        flat = _unpacked(data, _HALF if coding == "half" else dtype, prod(shape))
    except zlib.error as error:
        raise WireError(f"a packed piece is damaged: {error}") from error
    return flat.astype(dtype, copy=False).reshape(shape)


class Packed:
    """A region that is unpacked when, and if, it is first needed."""

    __slots__ = ("_array", "_coding", "_data", "_dtype", "_shape")

    def __init__(
        self, coding: Coding, dtype: str, shape: tuple[int, ...], data: memoryview
    ) -> None:
        self._coding: Coding = coding
        self._dtype, self._shape, self._data = dtype, shape, data
        self._array: NDArray[Any] | None = None

    def array(self) -> NDArray[Any]:
        """Return the region as an array.

        Raises:
            WireError: as `unpack` does.
        """
        if self._array is None:
            self._array = unpack(self._coding, self._dtype, self._shape, self._data)
        return self._array


def _halved(array: NDArray[Any]) -> NDArray[Any] | None:
    """Return float32 as float16, or None if it is none or a number of it is too large for that."""
    if array.dtype != np.float32:
        return None
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    return half if np.isfinite(half).all() else None


def _packed(array: NDArray[Any]) -> bytes:
    size = array.itemsize
    bits = np.frombuffer(bytes_of(array), f"<u{size}")
    told = bits != 0
    head = _ALL
    if (bits.size - np.count_nonzero(told)) * size * 8 > bits.size:
        head = _SPARSE + np.packbits(told).tobytes()
        bits = bits[told]
    octets = bits.view(np.uint8).reshape(-1, size)
    # Matches are rare in noise: looking for none is many times as fast, and as good.
    deflate = zlib.compressobj(1, zlib.DEFLATED, _RAW_DEFLATE, strategy=zlib.Z_HUFFMAN_ONLY)
    highest = deflate.compress(octets[:, -1].tobytes()) + deflate.flush()
    return b"".join((head, octets[:, :-1].tobytes(), highest))


def _unpacked(data: memoryview, dtype: str, count: int) -> NDArray[Any]:
    kind = np.dtype(dtype).newbyteorder("<")
    size, told, at = kind.itemsize, None, 1
    if data[:1] == _SPARSE:
        at += (count + 7) // 8
        _check(len(data) >= at)
        told = np.unpackbits(np.frombuffer(data[1:at], np.uint8), count=count).view(np.bool_)
    else:
        _check(data[:1] == _ALL)
    number = count if told is None else int(np.count_nonzero(told))
    end = at + number * (size - 1)
    _check(len(data) >= end)
    octets = np.empty((number, size), np.uint8)
    octets[:, :-1] = np.frombuffer(data[at:end], np.uint8).reshape(number, size - 1)
    inflate = zlib.decompressobj(_RAW_DEFLATE)
    # One byte more than there should be, so that the end is reached; 0 would be no limit.
    highest = inflate.decompress(data[end:], number + 1)
    _check(len(highest) == number and inflate.eof and not inflate.unused_data)
    octets[:, -1] = np.frombuffer(highest, np.uint8)
    values = octets.view(kind)[:, 0]
    if told is None:
        return values
    everything = np.zeros(count, kind)
    everything[told] = values
    return everything


def _check(fits: bool) -> None:  # noqa: FBT001 - the one thing that it takes
    if not fits:
        raise WireError("a packed piece does not have the size that its region says")
