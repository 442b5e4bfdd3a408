"""Payloads for the tests of media: pictures and tensors of a small model, and their decoding."""

from __future__ import annotations

import io
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from agent.adapters.media import DecodedInput, decode_input
from agent.wire.manifest import InputManifest, Manifest
from agent.wire.tensors import encode_tensor

Array = np.ndarray[Any, Any]
HEIGHT, WIDTH = 12, 10
NCHW, NHWC = (1, 3, HEIGHT, WIDTH), (1, HEIGHT, WIDTH, 3)
TENSOR = Manifest("tensor")


def manifest(**fields: Any) -> Manifest:
    return Manifest("tensor", input=InputManifest(**fields))


@cache
def pixels_of(height: int, width: int, depth: int = 3) -> Array:
    """Return a smooth, colourful, asymmetric uint8 picture, which survives resizing and JPEG."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    waves = [128 + 110 * np.sin(3 * x + 2 * y * (band + 1) + band) for band in range(depth)]
    return np.stack(waves, axis=-1).round().astype(np.uint8)


def encoded(pixels: Array, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    squeezed = pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    Image.fromarray(squeezed).save(buffer, kind, **options)
    return buffer.getvalue()


def npy_of(array: Array, *, version: tuple[int, int] | None = None) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version=version, allow_pickle=True)
    return buffer.getvalue()


def decode(
    payload: bytes,
    wishes: Manifest = TENSOR,
    shape: tuple[int, ...] = NCHW,
    dtype: str = "float32",
    content_type: str | None = None,
) -> DecodedInput:
    return decode_input(payload, wishes, shape, dtype, content_type)


def floats(shape: tuple[int, ...] = NCHW) -> Array:
    rng = np.random.Generator(np.random.PCG64(1))
    return rng.normal(size=shape).astype(np.float32)


PAYLOADS: dict[str, bytes] = {
    "jpeg": encoded(pixels_of(48, 40), "JPEG"),
    "png": encoded(pixels_of(31, 17), "PNG"),
    "npy picture": npy_of(pixels_of(HEIGHT, WIDTH)),
    "npy": npy_of(floats()),
    "msgpack": encode_tensor(floats()),
    "nhwc npy": npy_of(floats(NHWC)),
}
