"""Request payloads: JPEG, PNG, .npy and msgpack tensors become the input of a model.

Every device of a plan decodes the same payload and takes the region that its tile needs. A
picture is decoded and resized once, kept as uint8, and only the rows asked for are normalised,
through a table of 256 values for each channel: so a value is the same bits in whatever region it
is asked for.
"""

from __future__ import annotations

import io
from math import prod
from tokenize import TokenError
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib import format as npy
from PIL import Image

from agent import geometry
from agent.adapters.pictures import (
    DECODE_ERRORS,
    WHOLE_FRAME,
    Frame,
    Target,
    by,
    check_pixels,
    fit_file,
    fit_picture,
    is_picture_file,
    not_understood,
    reason,
)
from agent.errors import InputError, WireError
from agent.wire.manifest import PICTURE_RANK
from agent.wire.tensors import decode_tensor

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from agent.geometry import Region
    from agent.wire.manifest import InputManifest, Manifest

MAX_PAYLOAD = 32 << 20  # bytes

_NPY = b"\x93NUMPY"
_MSGPACK_MAPS = frozenset({*range(0x80, 0x90), 0xDE, 0xDF})


class DecodedInput:
    """The input of one request, from which any region can be taken.

    `shape` and `dtype` are the model's. `frame` tells where the model's input lies in the
    picture (upright); beyond 0..1 where a letterbox has bars, and the whole for tensors.
    """

    def __init__(
        self, values: NDArray[Any], table: NDArray[Any] | None, layout: str, frame: Frame
    ) -> None:
        """Hold a tensor in the model's shape, or, with a `table`, a picture.

        Args:
            values: a tensor in the model's shape and dtype; with a table, pixels uint8 [H, W, C].
            table: [C, 256] in the model's dtype, the value of each pixel level, or None.
            layout: "nchw" or "nhwc", for pictures.
            frame: see the class.
        """
        self._values = values
        self._table = table
        self._nchw = layout == "nchw"
        self.frame = frame

    @property
    def shape(self) -> tuple[int, ...]:
        """The model's input shape."""
        if self._table is None:
            return self._values.shape
        height, width, channels = self._values.shape
        return (1, channels, height, width) if self._nchw else (1, height, width, channels)

    @property
    def dtype(self) -> str:
        """The model's input dtype."""
        return str((self._values if self._table is None else self._table).dtype)

    def whole(self) -> NDArray[Any]:
        """Return the whole input, C-contiguous, in the model's shape and dtype."""
        return self.region(geometry.whole(self.shape))

    def region(self, region: Region) -> NDArray[Any]:
        """Return `region` of the input as a C-contiguous array of the model's dtype.

        Raises:
            ValueError: if the region is not within the input.
        """
        if len(region) != len(self.shape) or not geometry.contains(
            geometry.whole(self.shape), region
        ):
            raise ValueError(f"region {region} is not within an input of {self.shape}")
        if self._table is None:
            return np.ascontiguousarray(self._values[tuple(slice(*pair) for pair in region)])
        _, *axes = (slice(*pair) for pair in region)
        planes, rows, columns = axes if self._nchw else (axes[2], axes[0], axes[1])
        pixels = self._values[rows, columns]
        result = np.empty(geometry.shape_of(region), self._table.dtype)
        for place, channel in enumerate(range(planes.start, planes.stop)):
            target = result[0, place] if self._nchw else result[0, :, :, place]
            # A uint8 is always within the table; "clip" lets numpy write without a buffer.
            np.take(self._table[channel], pixels[:, :, channel], out=target, mode="clip")
        return result


def decode_input(
    payload: bytes,
    manifest: Manifest,
    shape: tuple[int, ...],
    dtype: str,
    content_type: str | None,
) -> DecodedInput:
    """Decode the payload of a request for a model whose input is `shape` of `dtype`.

    What the payload is, its first bytes tell; `content_type` only helps to say what is wrong.
    Tensors must have the model's shape, with or without a batch axis of 1, and its dtype. A uint8
    tensor [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] that is not that is a picture, as if it were a
    PNG (RGB order; the fourth channel is ignored, as is any transparency).

    Raises:
        InputError: if the payload is none of these, damaged, too large, or does not fit.
    """
    if len(payload) > MAX_PAYLOAD:
        raise InputError(f"the input has {len(payload)} bytes; at most {MAX_PAYLOAD} are taken")
    if is_picture_file(payload):
        target = Target.of(manifest.input, shape, dtype)
        picture, frame = fit_file(payload, target)
        return _from_pixels(picture, target, frame)
    return _from_array(_decode_array(payload, content_type), manifest.input, shape, dtype)


def _from_pixels(image: Image.Image, target: Target, frame: Frame) -> DecodedInput:
    """Return the input made of a picture that has the target's size and colours."""
    pixels = np.asarray(image).reshape(target.height, target.width, target.channels)
    if target.wishes.color == "bgr":
        pixels = pixels[:, :, ::-1]
    levels = np.arange(256, dtype=np.float64)[None]
    if target.dtype == np.uint8:
        table = np.repeat(levels, target.channels, axis=0)
    else:
        mean = np.resize(target.wishes.mean, target.channels)[:, None]
        std = np.resize(target.wishes.std, target.channels)[:, None]
        table = (levels / 255 - mean) / std
    return DecodedInput(pixels, table.astype(target.dtype), target.wishes.layout, frame)


def _from_array(
    array: NDArray[Any], wishes: InputManifest, shape: tuple[int, ...], dtype: str
) -> DecodedInput:
    """Return the input made of a tensor, or of the picture that a uint8 tensor holds."""
    fits = array.shape == shape or (shape[:1] == (1,) and array.shape == shape[1:])
    if fits and array.dtype.name == dtype:
        # onnxruntime reads the buffer as it is; a .npy's may be unaligned or big-endian.
        native = np.require(array, np.dtype(dtype), ["C_CONTIGUOUS", "ALIGNED"])
        return DecodedInput(native.reshape(shape), None, wishes.layout, WHOLE_FRAME)
    if len(shape) == PICTURE_RANK and _is_picture(array):
        height, width = array.shape[:2]
        check_pixels(width, height, "picture")
        target = Target.of(wishes, shape, dtype)
        plain = array[:, :, 0] if array.shape[2:] == (1,) else array[..., :3]
        image = Image.fromarray(np.ascontiguousarray(plain if array.ndim > 2 else array))  # noqa: PLR2004
        picture, frame = fit_picture(image, target)
        return _from_pixels(picture, target, frame)
    if fits:
        raise InputError(f"got {array.dtype.name}, the model takes {dtype}")
    raise InputError(
        f"got {by(array.shape)} ({array.dtype.name}), the model takes {by(shape)} ({dtype})"
    )


def _is_picture(array: NDArray[Any]) -> bool:
    """Tell whether a tensor can be nothing but a picture: uint8 [H, W] or [H, W, 1, 3 or 4]."""
    depth_fits = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in {1, 3, 4})  # noqa: PLR2004
    return bool(array.dtype == np.uint8 and depth_fits and array.size)


def _decode_array(payload: bytes, content_type: str | None) -> NDArray[Any]:
    """Return the array in a .npy file or a msgpack tensor, as a view of the payload."""
    if payload.startswith(_NPY):
        try:
            return _read_npy(payload)
        except (*DECODE_ERRORS, TokenError, RecursionError) as error:
            raise InputError(f"the .npy file is damaged: {reason(error)}") from error
    if payload and payload[0] in _MSGPACK_MAPS:
        try:
            return decode_tensor(payload, MAX_PAYLOAD)
        except (WireError, ValueError) as error:
            raise InputError(str(error)) from error
    raise InputError(not_understood(payload, content_type))


def _read_npy(payload: bytes) -> NDArray[Any]:
    """Return the array in a .npy file.

    Unlike `numpy.load`, this allocates nothing, whatever size the header claims, and never
    unpickles.

    Raises:
        ValueError: if it is damaged or holds no plain numbers; numpy's parser of headers raises
            others of DECODE_ERRORS, TokenError and RecursionError as well.
    """
    stream = io.BytesIO(payload)
    version = npy.read_magic(stream)
    if version not in _NPY_HEADERS:
        raise ValueError(f"format version {version[0]}.{version[1]} is not known")
    shape, fortran_order, dtype = _NPY_HEADERS[version](stream)
    if dtype.kind not in "biuf":
        raise ValueError(f"it holds {dtype}, not numbers")
    data = memoryview(payload)[stream.tell() :]
    expected = prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or len(data) != expected:
        raise ValueError(f"it has {len(data)} bytes of data, but should have {expected}")
    return np.ndarray(shape, dtype, data, order="F" if fortran_order else "C")


_NPY_HEADERS: dict[tuple[int, int], Callable[[io.BytesIO], Any]] = {
    (1, 0): npy.read_array_header_1_0,
    (2, 0): npy.read_array_header_2_0,
}
