"""Pictures, through Pillow: opened with care, made upright, fitted to a model; masks as PNG."""

from __future__ import annotations

import io
import math
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from agent.errors import InputError
from agent.wire.manifest import PICTURE_RANK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from agent.wire.manifest import InputManifest

MAX_PIXELS = 50_000_000  # 200 MB once decoded
MAX_MASK_BYTES = 192 << 10  # 256 KiB in base64, well below what brokers take
MAX_MASK_PIXELS = 1 << 22  # compressed in a tenth of a second or so
_BAR = 114  # the grey of letterbox bars, which detectors of the YOLO family are trained with

_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_OTHERS = {
    b"GIF8": "a GIF",
    b"RIFF": "WebP",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"PK": "an .npz or other zip file",
}

_ORIENTATION = 0x0112  # the EXIF tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = frozenset({5, 6, 7, 8})  # orientations that swap width and height

# What the decoders of Pillow and numpy raise on damaged files.
DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    struct.error,
    MemoryError,
)

Frame = tuple[float, float, float, float]
"""Where the model's input lies in the picture: (x0, y0, x1, y1) as fractions of the picture."""

WHOLE_FRAME: Frame = (0.0, 0.0, 1.0, 1.0)


class Target(NamedTuple):
    """What a picture has to become: the model's shape and dtype, and the manifest's wishes."""

    wishes: InputManifest
    shape: tuple[int, ...]
    height: int
    width: int
    channels: int
    dtype: np.dtype[Any]

    @classmethod
    def of(cls, wishes: InputManifest, shape: tuple[int, ...], dtype: str) -> Target:
        """Check that the model takes pictures at all.

        Raises:
            InputError: if it does not.
        """
        if len(shape) != PICTURE_RANK or shape[0] != 1:
            raise InputError(
                f"got a picture, but the model takes {by(shape)}: send a .npy or msgpack tensor"
            )
        kind = np.dtype(dtype)
        if kind.kind != "f" and kind != np.uint8:
            raise InputError(f"got a picture, but the model takes {dtype}: send a tensor")
        _, *extents = shape
        if wishes.layout == "nchw":
            channels, height, width = extents
        else:
            height, width, channels = extents
        if channels != wishes.channels:
            raise InputError(
                f"the model takes {by(shape)}, but its manifest says {wishes.color} in layout "
                f"{wishes.layout}: correct the manifest, or send a tensor"
            )
        return cls(wishes, shape, height, width, channels, kind)


def is_picture_file(payload: bytes) -> bool:
    """Tell whether a payload begins as a JPEG or PNG does."""
    return payload.startswith((_JPEG, _PNG))


def fit_file(payload: bytes, target: Target) -> tuple[Image.Image, Frame]:
    """Decode a JPEG or PNG; return it in the target's size and colours, and its frame.

    Raises:
        InputError: if it is damaged, too large, or not of the size that the target insists on.
    """
    return _fit(_open(payload), target)


def fit_picture(image: Image.Image, target: Target) -> tuple[Image.Image, Frame]:
    """Return a decoded picture in the target's size and colours, and its frame.

    Raises:
        InputError: if it is not of the size that the target insists on.
    """
    if target.wishes.resize == "none":
        _check_size(image.size, target)
    return _resized(_coloured(image, target), image.size, target)


def open_picture(payload: bytes) -> Image.Image:
    """Return a JPEG or PNG as an upright 8-bit RGB or grey ("L") picture at its full size.

    Raises:
        InputError: if it is neither, damaged or too large.
    """
    if not payload.startswith((_JPEG, _PNG)):
        raise InputError(not_understood(payload, None))
    image = _open(payload)
    return _upright(_pixels(image), _orientation(image))


def open_indices(payload: bytes) -> Image.Image:
    """Return the indices of a PNG with a palette, as `encode_mask` makes them, in mode "P".

    Raises:
        InputError: if it is something else, damaged or too large.
    """
    image = _open(payload) if payload.startswith(_PNG) else None
    if image is None or image.mode != "P":
        raise InputError("the mask is no PNG with a palette")
    try:
        image.load()
    except DECODE_ERRORS as error:
        raise InputError(f"the mask is damaged or truncated: {reason(error)}") from error
    return image


def _open(payload: bytes) -> JpegImageFile | PngImageFile:
    """Read the header of a JPEG or PNG; the size is checked before a pixel is decoded.

    Pillow's classes are used rather than `Image.open`, which would print warnings of its own, try
    other formats, and follow a JPEG's links to further pictures.
    """
    kind = "JPEG" if payload.startswith(_JPEG) else "PNG"
    stream = io.BytesIO(payload)
    try:
        image = JpegImageFile(stream) if kind == "JPEG" else PngImageFile(stream)
    except DECODE_ERRORS as error:
        raise InputError(f"the {kind} is damaged or truncated: {reason(error)}") from error
    check_pixels(image.width, image.height, kind)
    return image


def _pixels(image: JpegImageFile | PngImageFile) -> Image.Image:
    """Decode the pixels into mode "RGB" or "L"."""
    try:
        image.load()
        if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip rather than scale
            return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        return image if image.mode == "L" else image.convert("RGB")
    except DECODE_ERRORS as error:
        raise InputError(f"the {image.format} is damaged or truncated: {reason(error)}") from error


def _orientation(image: JpegImageFile | PngImageFile) -> int:
    """Return the EXIF orientation, 1 (upright) where there is none or the EXIF is damaged.

    A PNG must have been loaded, as its EXIF may follow the pixels.
    """
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except DECODE_ERRORS:
        return 1
    return value if value in _TURNS else 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _fit(image: JpegImageFile | PngImageFile, target: Target) -> tuple[Image.Image, Frame]:
    """Decode a picture, and return it in the target's size and colours, and its frame."""
    decoded = _pixels(image) if isinstance(image, PngImageFile) else None
    orientation = _orientation(image)
    sideways = orientation in _SIDEWAYS
    full = (image.height, image.width) if sideways else image.size
    if target.wishes.resize == "none":
        _check_size(full, target)
    elif isinstance(image, JpegImageFile):
        # A camera's full-size picture is decoded at 1/2, 1/4 or 1/8, several times faster, as
        # long as two decoded pixels are left for each one of the result in both directions.
        width, height = (2 * extent for extent in _scaled(full, target))
        image.draft(None, (height, width) if sideways else (width, height))
    upright = _upright(_pixels(image) if decoded is None else decoded, orientation)
    return _resized(_coloured(upright, target), full, target)


def _coloured(image: Image.Image, target: Target) -> Image.Image:
    return image.convert("L" if target.wishes.color == "gray" else "RGB")


def _check_size(size: tuple[int, int], target: Target) -> None:
    """Refuse a picture of (width, height) that has to be resized, where the manifest forbids it."""
    if size == (target.width, target.height):
        return
    extents = (size[1], size[0])
    depth = target.channels
    got = (1, depth, *extents) if target.wishes.layout == "nchw" else (1, *extents, depth)
    raise InputError(
        f"got {by(got)}, the model takes {by(target.shape)} "
        "(its manifest says resize none: send a picture of that size)"
    )


def check_pixels(width: int, height: int, what: str) -> None:
    """Raise InputError if a picture has more pixels than a small device can hold."""
    if width * height > MAX_PIXELS:
        raise InputError(
            f"the {what} has {width}x{height} = {width * height / 1e6:.0f} megapixels; "
            f"at most {MAX_PIXELS / 1e6:.0f} are taken"
        )


def _scaled(full: tuple[int, int], target: Target) -> tuple[int, int]:
    """Return the (width, height) to which a whole picture of size `full` is resized."""
    wanted = (target.width, target.height)
    scales = (wanted[0] / full[0], wanted[1] / full[1])
    if target.wishes.resize == "crop":
        scale = max(scales)
    elif target.wishes.resize == "letterbox":
        scale = min(scales)
    else:
        return wanted
    return max(1, round(full[0] * scale)), max(1, round(full[1] * scale))


def _resized(
    image: Image.Image, full: tuple[int, int], target: Target
) -> tuple[Image.Image, Frame]:
    """Resize a decoded picture as the manifest says; `full` is its (width, height) undrafted."""
    wanted, scaled = (target.width, target.height), _scaled(full, target)
    # Positive: that much of the scaled picture is cut off. Negative: that much is added as bars.
    left, top = (scaled[0] - wanted[0]) / 2, (scaled[1] - wanted[1]) / 2
    if target.wishes.resize == "letterbox":
        left, top = math.ceil(left), math.ceil(top)  # bars are whole pixels
    frame = (
        left / scaled[0],
        top / scaled[1],
        (left + wanted[0]) / scaled[0],
        (top + wanted[1]) / scaled[1],
    )
    if target.wishes.resize == "letterbox" and scaled != wanted:
        board = Image.new(image.mode, wanted, (_BAR,) * target.channels)
        inner = image.resize(scaled, Image.Resampling.BILINEAR)
        board.paste(inner, (-math.ceil(left), -math.ceil(top)))
        return board, frame
    if image.size == wanted:
        return image, frame
    box = (
        frame[0] * image.width,
        frame[1] * image.height,
        frame[2] * image.width,
        frame[3] * image.height,
    )
    return image.resize(wanted, Image.Resampling.BILINEAR, box), frame


def encode_mask(classes: NDArray[np.uint8]) -> tuple[bytes, int, int]:
    """Return classes [H, W] as a PNG with a palette, and its width and height.

    What takes more than MAX_MASK_BYTES is made smaller, each pixel the nearest of the mask's.
    """
    height, width = classes.shape
    step = math.ceil(math.sqrt(classes.size / MAX_MASK_PIXELS))
    while True:
        rows, columns = (_every(extent, max(1, extent // step)) for extent in (height, width))
        image = Image.fromarray(np.ascontiguousarray(classes[rows][:, columns]))
        image.putpalette(PALETTE)
        buffer = io.BytesIO()
        image.save(buffer, "PNG", compress_level=6)
        size = buffer.tell()
        if size <= MAX_MASK_BYTES:
            return buffer.getvalue(), image.width, image.height
        step = max(step + 1, math.floor(step * math.sqrt(size / MAX_MASK_BYTES)))


def _every(extent: int, count: int) -> NDArray[np.intp]:
    """Return `count` of `extent` positions, evenly spread."""
    return (np.arange(count) * 2 + 1) * extent // (2 * count)


def _palette() -> list[int]:
    """Return 256 colours that are told apart, 0 being black: the colour map of Pascal VOC.

    The bits of a class go in turn to red, green and blue, the lowest to the highest bits.
    """
    return [
        sum(((index >> 3 * place + band) & 1) << 7 - place for place in range(3))
        for index in range(256)
        for band in range(3)
    ]


PALETTE = _palette()


def not_understood(payload: bytes, content_type: str | None) -> str:
    """Say what is wrong with a payload that is none of the kinds which are taken."""
    if not payload:
        return "the input is empty: send a JPEG, PNG, .npy or msgpack tensor"
    kind = next((name for magic, name in _OTHERS.items() if payload.startswith(magic)), None)
    if kind:
        return f"the input is {kind}: send a JPEG, PNG, .npy or msgpack tensor"
    claim = f", whatever its content type ({content_type[:80]}) says" if content_type else ""
    return (
        f"the input is no JPEG, PNG, .npy or msgpack tensor{claim}: "
        f"it begins with {bytes(payload[:12])!r}"
    )


def by(shape: Sequence[int]) -> str:
    """Return a shape for messages, as in "1x3x224x224"."""
    return "x".join(map(str, shape)) if shape else "a single value"


def reason(error: BaseException) -> str:
    """Return what an error says, as one short line, or its kind where it says nothing."""
    return " ".join(str(error).split())[:200] or type(error).__name__
