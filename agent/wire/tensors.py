"""The msgpack form of a tensor: a map of `dtype`, `shape` and little-endian C-order `data`."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from agent.errors import WireError
from agent.wire.program import DType, Extent

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_RANK = 8


class TensorMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tensor on the wire: numpy dtype name, shape, and its elements in C order."""

    dtype: DType
    shape: tuple[Extent, ...]
    data: memoryview


def unpack(payload: bytes | memoryview, kind: Any, limit: int, what: str) -> Any:
    """Decode and validate msgpack of at most `limit` bytes as a struct (or union) `kind`.

    Fields of type `memoryview` are views of the payload; errors call the payload `what`.

    Raises:
        WireError: if the payload is too long, truncated, or not such a message.
    """
    if len(payload) > limit:
        raise WireError(f"a message of {len(payload)} bytes is over the limit of {limit} bytes")
    try:
        return msgspec.msgpack.decode(payload, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"not {what}: {error}") from error


def bytes_of(array: NDArray[Any]) -> memoryview:
    """Return the elements of an array in C order, little-endian; of a contiguous one, a view."""
    little = np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")
    return little.reshape(-1).view(np.uint8).data


def array_of(dtype: str, shape: tuple[int, ...], data: bytes | memoryview) -> NDArray[Any]:
    """Return `data` as a read-only array without a copy.

    Raises:
        WireError: if the number of bytes does not match dtype and shape.
    """
    expected = prod(shape) * np.dtype(dtype).itemsize
    if len(shape) > MAX_RANK or len(data) != expected:
        raise WireError(f"{len(data)} bytes of data for {dtype} {shape}: expected {expected}")
    flat = np.frombuffer(data, dtype=np.dtype(dtype).newbyteorder("<"))
    try:
        return flat.reshape(shape)
    except ValueError as error:
        raise WireError(f"no tensor can have the shape {shape}") from error


def encode_tensor(array: NDArray[Any]) -> bytes:
    """Encode an array as a msgpack tensor message."""
    return msgspec.msgpack.encode(tensor_message(array))


def decode_tensor(payload: bytes, limit: int = 1 << 30) -> NDArray[Any]:
    """Decode a msgpack tensor message of at most `limit` bytes.

    Raises:
        WireError: if it is not one, or its bytes do not match its shape.
    """
    message = unpack(payload, TensorMessage, limit, "a msgpack tensor")
    return array_of(message.dtype, message.shape, message.data)


def itemsize(dtype: str) -> int:
    """Return the bytes that an element of `dtype` takes."""
    return np.dtype(dtype).itemsize


def tensor_message(array: NDArray[Any]) -> TensorMessage:
    """Return an array as the message that carries it."""
    return TensorMessage(array.dtype.name, array.shape, bytes_of(array))


def message_array(message: TensorMessage) -> NDArray[Any]:
    """Return the array that a message carries, read-only.

    Raises:
        WireError: if its bytes do not match its shape.
    """
    return array_of(message.dtype, message.shape, message.data)
