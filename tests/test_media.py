"""Payloads: what a picture or a tensor becomes, whole and by region, and what is refused."""

from __future__ import annotations

import io
import pickle
import struct
import zlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from agent import geometry
from agent.adapters.media import MAX_PAYLOAD, DecodedInput, decode_input
from agent.adapters.pictures import MAX_PIXELS
from agent.errors import InputError
from agent.wire.manifest import InputManifest, Manifest
from agent.wire.tensors import encode_tensor

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.geometry import Region

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


def refusal(payload: bytes, *rest: Any, **named: Any) -> str:
    with pytest.raises(InputError) as caught:
        decode(payload, *rest, **named)
    message = str(caught.value)
    assert "\n" not in message
    return message


def floats(shape: tuple[int, ...] = NCHW) -> Array:
    rng = np.random.Generator(np.random.PCG64(1))
    return rng.normal(size=shape).astype(np.float32)


# What becomes of pictures


def test_a_pixel_becomes_what_the_manifest_says() -> None:
    pixels = pixels_of(HEIGHT, WIDTH)
    wishes = manifest(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
    value = decode(encoded(pixels, "PNG"), wishes).whole()
    expected = (pixels / 255 - np.array([0.1, 0.2, 0.3])) / np.array([0.5, 0.25, 2.0])
    assert value.dtype == np.float32
    assert value.flags.c_contiguous
    assert np.array_equal(value, expected.transpose(2, 0, 1)[None].astype(np.float32))


def test_bgr_swaps_the_colours_and_means_follow_the_models_order() -> None:
    pixels = pixels_of(HEIGHT, WIDTH)
    value = decode(encoded(pixels, "PNG"), manifest(color="bgr", mean=(0.1, 0.2, 0.3))).whole()
    expected = (pixels[:, :, ::-1] / 255 - np.array([0.1, 0.2, 0.3])).transpose(2, 0, 1)
    assert np.array_equal(value[0], expected.astype(np.float32))


def test_channels_may_come_last() -> None:
    payload = encoded(pixels_of(HEIGHT, WIDTH), "PNG")
    last = decode(payload, manifest(layout="nhwc"), NHWC).whole()
    assert np.array_equal(last.transpose(0, 3, 1, 2), decode(payload).whole())


def test_grey_models_take_colour_pictures_and_the_reverse() -> None:
    colour, grey = pixels_of(HEIGHT, WIDTH), pixels_of(HEIGHT, WIDTH, 1)
    value = decode(encoded(colour, "PNG"), manifest(color="gray"), (1, 1, HEIGHT, WIDTH)).whole()
    luma = np.asarray(Image.fromarray(colour).convert("L"))
    assert np.array_equal(value[0, 0], (luma / 255).astype(np.float32))
    value = decode(encoded(grey, "PNG")).whole()
    assert np.array_equal(value[0], np.repeat(grey.transpose(2, 0, 1) / 255, 3, 0).astype("f4"))


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_the_value_is_rounded_once_to_the_models_dtype(dtype: str) -> None:
    pixels = pixels_of(HEIGHT, WIDTH)
    value = decode(encoded(pixels, "PNG"), manifest(mean=(0.3,)), dtype=dtype).whole()
    assert np.array_equal(value[0], (pixels / 255 - 0.3).transpose(2, 0, 1).astype(dtype))


def test_a_uint8_model_gets_the_pixels_as_they_are() -> None:
    pixels = pixels_of(HEIGHT, WIDTH)
    value = decode(encoded(pixels, "PNG"), manifest(mean=(0.5,)), dtype="uint8").whole()
    assert value.dtype == np.uint8
    assert np.array_equal(value[0], pixels.transpose(2, 0, 1))


def test_sixteen_bit_grey_is_scaled_and_transparency_is_ignored() -> None:
    deep = (np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) * 500).astype(np.uint16)
    value = decode(encoded(deep, "PNG"), dtype="uint8").whole()
    assert np.array_equal(value[0, 0], deep >> 8)
    clear = np.dstack([pixels_of(HEIGHT, WIDTH), np.zeros((HEIGHT, WIDTH), np.uint8)])
    plain = encoded(pixels_of(HEIGHT, WIDTH), "PNG")
    assert np.array_equal(decode(encoded(clear, "PNG")).whole(), decode(plain).whole())


def test_stretch_uses_the_whole_picture() -> None:
    big = pixels_of(60, 80)
    taken = decode(encoded(big, "PNG"), dtype="uint8")
    expected = Image.fromarray(big).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)
    assert np.array_equal(taken.whole()[0].transpose(1, 2, 0), np.asarray(expected))
    assert taken.frame == (0, 0, 1, 1)


def test_crop_takes_the_middle_and_says_which_part() -> None:
    wide = np.zeros((24, 60, 3), np.uint8)
    wide[:, 20:40] = pixels_of(24, 20)  # 24 x 20 has the aspect of the model
    taken = decode(encoded(wide, "PNG"), manifest(resize="crop"), dtype="uint8")
    middle = Image.fromarray(wide[:, 20:40]).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)
    # The resize may look half a pixel beyond the edges of the part.
    error = taken.whole()[0].transpose(1, 2, 0)[:, 1:-1].astype(int) - np.asarray(middle)[:, 1:-1]
    assert np.abs(error).max() <= 1
    assert taken.frame == pytest.approx((1 / 3, 0, 2 / 3, 1))


def test_letterbox_keeps_all_between_grey_bars_and_says_where() -> None:
    wide = pixels_of(30, 50)  # becomes 6 x 10, in 12 rows
    taken = decode(encoded(wide, "PNG"), manifest(resize="letterbox"), dtype="uint8")
    value = taken.whole()[0].transpose(1, 2, 0)
    inner = Image.fromarray(wide).resize((WIDTH, 6), Image.Resampling.BILINEAR)
    assert np.array_equal(value[3:9], np.asarray(inner))
    assert (value[:3] == 114).all()
    assert (value[9:] == 114).all()
    assert taken.frame == pytest.approx((0, -0.5, 1, 1.5))


def test_letterbox_works_on_grey_models() -> None:
    wishes = manifest(resize="letterbox", color="gray")
    taken = decode(encoded(pixels_of(30, 50), "PNG"), wishes, (1, 1, HEIGHT, WIDTH), "uint8")
    assert (taken.whole()[0, 0, :3] == 114).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("resize", ["stretch", "none"])
def test_pictures_are_turned_upright(kind: str, orientation: int, resize: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    sideways = orientation > 4
    stored = pixels_of(*((WIDTH, HEIGHT) if sideways else (HEIGHT, WIDTH)))
    payload = encoded(stored, kind, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(payload)))
    value = decode(payload, manifest(resize=resize), dtype="uint8").whole()
    assert np.array_equal(value[0].transpose(1, 2, 0), np.asarray(upright))


@pytest.mark.parametrize("resize", ["stretch", "crop", "letterbox"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_jpeg_gives_what_a_png_gives(resize: str, orientation: int) -> None:
    """A large JPEG is decoded at a fraction of its size: it must show the same picture."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    big = pixels_of(1000, 1333)
    fine = decode(encoded(big, "PNG", exif=exif), manifest(resize=resize), dtype="uint8")
    fast = decode(encoded(big, "JPEG", exif=exif), manifest(resize=resize), dtype="uint8")
    assert np.abs(fast.whole().astype(int) - fine.whole()).max() <= 6
    assert fast.frame == fine.frame


# What becomes of tensors


@pytest.mark.parametrize("pack", [npy_of, encode_tensor])
@pytest.mark.parametrize("shape", [NCHW, NCHW[1:]])
def test_tensors_are_taken_as_they_are(
    pack: Callable[[Array], bytes], shape: tuple[int, ...]
) -> None:
    value = decode(pack(floats().reshape(shape))).whole()
    assert value.dtype == np.float32
    assert np.array_equal(value, floats())


@pytest.mark.parametrize(
    "array", [floats().astype(">f4"), np.asfortranarray(floats()), floats()[:, :, ::-1]]
)
def test_any_order_of_bytes_and_axes_is_understood(array: Array) -> None:
    value = decode(npy_of(array)).whole()
    assert value.dtype.isnative
    assert value.flags.c_contiguous
    assert np.array_equal(value, array)


def test_an_unaligned_file_gives_an_aligned_array() -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 3, 12, 10), }\n"
    payload = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + floats().tobytes()
    value = decode(payload).whole()
    assert value.flags.aligned
    assert np.array_equal(value, floats())


def test_both_versions_of_npy_are_understood() -> None:
    assert np.array_equal(decode(npy_of(floats(), version=(2, 0))).whole(), floats())


def test_a_tensor_of_any_rank_is_taken() -> None:
    assert decode(npy_of(floats((1, 7))), shape=(1, 7)).whole().shape == (1, 7)
    assert decode(npy_of(np.array(3, np.float32)), shape=()).whole() == 3


@pytest.mark.parametrize("pack", [npy_of, encode_tensor])
@pytest.mark.parametrize("depth", [0, 1, 3, 4])
def test_a_uint8_tensor_is_a_picture(pack: Callable[[Array], bytes], depth: int) -> None:
    pixels = pixels_of(40, 30, depth or 1)
    shown = pixels[:, :, :3]
    value = decode(pack(pixels if depth else pixels[:, :, 0]), manifest(color="bgr")).whole()
    assert np.array_equal(value, decode(encoded(shown, "PNG"), manifest(color="bgr")).whole())


def test_a_uint8_tensor_of_a_uint8_models_shape_is_a_tensor() -> None:
    pixels = pixels_of(HEIGHT, WIDTH)
    wishes = manifest(layout="nhwc", color="bgr")
    assert np.array_equal(decode(npy_of(pixels), wishes, NHWC, "uint8").whole()[0], pixels)


# Regions

PAYLOADS: dict[str, bytes] = {
    "jpeg": encoded(pixels_of(48, 40), "JPEG"),
    "png": encoded(pixels_of(31, 17), "PNG"),
    "npy picture": npy_of(pixels_of(HEIGHT, WIDTH)),
    "npy": npy_of(floats()),
    "msgpack": encode_tensor(floats()),
    "nhwc npy": npy_of(floats(NHWC)),
}


@st.composite
def regions(draw: st.DrawFn, shape: tuple[int, ...]) -> Region:
    starts = [draw(st.integers(0, extent - 1)) for extent in shape]
    return tuple(
        (start, draw(st.integers(start + 1, extent)))
        for start, extent in zip(starts, shape, strict=True)
    )


@given(st.data())
def test_a_region_is_the_same_bits_as_in_the_whole(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(PAYLOADS)))
    pictures = {"jpeg", "png", "npy picture"}
    nhwc = name == "nhwc npy" or (name in pictures and data.draw(st.booleans()))
    wishes = manifest(
        layout="nhwc" if nhwc else "nchw",
        color=data.draw(st.sampled_from(["rgb", "bgr"])),
        resize=data.draw(st.sampled_from(["stretch", "crop", "letterbox"])),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )
    shape = NHWC if nhwc else NCHW
    decoded = decode(PAYLOADS[name], wishes, shape)
    assert (decoded.shape, decoded.dtype) == (shape, "float32")
    region = data.draw(regions(shape))
    part = decoded.region(region)
    assert part.flags.c_contiguous
    assert part.shape == geometry.shape_of(region)
    slices = geometry.slices_within(region, geometry.whole(shape))
    assert part.tobytes() == decoded.whole()[slices].tobytes()


@pytest.mark.parametrize("name", ["png", "npy"])
def test_a_region_beyond_the_input_is_refused(name: str) -> None:
    decoded = decode(PAYLOADS[name])
    with pytest.raises(ValueError, match="is not within"):
        decoded.region(((0, 1), (0, 3), (0, HEIGHT + 1), (0, WIDTH)))
    with pytest.raises(ValueError, match="is not within"):
        decoded.region(((0, 1), (0, 3), (0, HEIGHT)))


# What is refused


def png_header(width: int, height: int) -> bytes:
    """Return a PNG that claims a size and has almost no data."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


def test_a_payload_that_is_nothing_known_is_refused() -> None:
    assert refusal(b"") == "the input is empty: send a JPEG, PNG, .npy or msgpack tensor"
    assert "no JPEG, PNG, .npy or msgpack tensor: it begins with b'hello'" in refusal(b"hello")
    assert "whatever its content type (image/jpeg)" in refusal(b"hello", content_type="image/jpeg")
    assert refusal(b"GIF89a...").startswith("the input is a GIF")
    assert refusal(b"PK\x03\x04").startswith("the input is an .npz")


def test_a_content_type_does_not_overrule_the_bytes() -> None:
    payload = PAYLOADS["png"]
    value = decode(payload, content_type="image/jpeg").whole()
    assert np.array_equal(value, decode(payload).whole())


def test_truncated_pictures_are_refused() -> None:
    for kind in ("JPEG", "PNG"):
        payload = encoded(np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype("u1"), kind)
        for length in (len(payload) // 2, 40, 10):
            message = refusal(payload[:length])
            assert message.startswith(f"the {kind} is damaged or truncated: ")


def test_decompression_bombs_are_refused_before_they_are_decoded() -> None:
    message = refusal(png_header(30_000, 30_000))
    assert message == "the PNG has 30000x30000 = 900 megapixels; at most 50 are taken"
    small = encoded(pixels_of(HEIGHT, WIDTH), "JPEG")
    at = small.index(b"\xff\xc0") + 5
    bomb = small[:at] + struct.pack(">HH", 60_000, 60_000) + small[at + 4 :]
    assert refusal(bomb).startswith("the JPEG has 60000x60000 = 3600 megapixels")


def test_too_large_a_payload_is_refused() -> None:
    message = refusal(b"\xff\xd8\xff" + bytes(MAX_PAYLOAD))
    assert message == f"the input has {MAX_PAYLOAD + 3} bytes; at most {MAX_PAYLOAD} are taken"
    assert MAX_PIXELS < 178_000_000  # where Pillow itself gives up


def test_resize_none_takes_the_exact_size_only() -> None:
    wishes = manifest(resize="none")
    decode(encoded(pixels_of(HEIGHT, WIDTH), "PNG"), wishes)
    expected = "got 1x3x20x30, the model takes 1x3x12x10"
    for payload in (
        encoded(pixels_of(20, 30), "PNG"),
        encoded(pixels_of(20, 30), "JPEG"),
        npy_of(pixels_of(20, 30)),
    ):
        assert refusal(payload, wishes).startswith(expected)
    message = refusal(
        encoded(pixels_of(20, 30), "PNG"), manifest(resize="none", layout="nhwc"), NHWC
    )
    assert message.startswith("got 1x20x30x3, the model takes 1x12x10x3")


@pytest.mark.parametrize("pack", [npy_of, encode_tensor])
def test_tensors_of_another_shape_or_dtype_are_refused(pack: Callable[[Array], bytes]) -> None:
    message = refusal(pack(floats((3, 20, 20))))
    assert message == "got 3x20x20 (float32), the model takes 1x3x12x10 (float32)"
    assert refusal(pack(floats().astype(np.float64))) == "got float64, the model takes float32"
    assert refusal(pack(floats((2, 3, HEIGHT, WIDTH)))).startswith("got 2x3x12x10")
    planes = np.zeros(NCHW[1:], np.uint8)
    assert refusal(pack(planes)) == "got uint8, the model takes float32"
    assert refusal(pack(np.zeros((0, 3), np.uint8))).startswith("got 0x3 (uint8), the model takes")


def test_pictures_are_refused_by_models_that_take_none() -> None:
    picture = PAYLOADS["png"]
    assert refusal(picture, shape=(1, 10)).startswith("got a picture, but the model takes 1x10: ")
    assert "takes 4x3x12x10" in refusal(picture, shape=(4, 3, HEIGHT, WIDTH))
    assert (
        refusal(picture, dtype="int8") == "got a picture, but the model takes int8: send a tensor"
    )
    message = refusal(picture, manifest(color="gray"))
    assert message.startswith(
        "the model takes 1x3x12x10, but its manifest says gray in layout nchw"
    )
    assert refusal(npy_of(pixels_of(4, 5)), shape=(1, 10)).startswith("got 4x5x3 (uint8)")


def npy_with(header: str, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + data


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (npy_of(floats())[:-1], "it has 1439 bytes of data, but should have 1440"),
        (npy_of(floats())[:30], "EOF"),
        (npy_of(floats()) + b"x", "it has 1441 bytes of data, but should have 1440"),
        (b"\x93NUMPY\x09\x00", "format version 9.0"),
        (npy_of(np.array(["a"])), "it holds <U1, not numbers"),
        (npy_of(np.zeros(2, np.complex64)), "it holds complex64, not numbers"),
        (
            npy_with("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000000)}\n"),
            "should have 4000000000000000",
        ),
        (npy_with("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -1)}\n", bytes(4)), "4"),
    ],
)
def test_damaged_npy_files_are_refused(payload: bytes, message: str) -> None:
    text = refusal(payload)
    assert text.startswith("the .npy file is damaged: ")
    assert message in text


class Trap:
    """Something that leaves a file behind when it is unpickled."""

    path = "/nonexistent"

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path(self.path),))


def test_nothing_is_ever_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trap, "path", str(tmp_path / "sprung"))
    payload = npy_of(np.array([Trap()], dtype=object))
    assert "it holds object, not numbers" in refusal(payload)
    assert not (tmp_path / "sprung").exists()
    pickle.loads(payload[payload.index(b"\n") + 1 :])  # noqa: S301 - the trap does work
    assert (tmp_path / "sprung").exists()


def test_damaged_msgpack_tensors_are_refused() -> None:
    payload = encode_tensor(floats())
    assert "not a msgpack message" in refusal(payload[:-1])
    assert "not a msgpack tensor" in refusal(b"\x80")
    assert "expected" in refusal(payload.replace(b"float32", b"float64"))


@pytest.mark.filterwarnings(
    "ignore"
)  # Pillow and numpy may warn of what they find in damaged files
@settings(max_examples=300)
@given(st.sampled_from(sorted(PAYLOADS)), st.data())
def test_any_damage_gives_a_value_or_one_clear_error(name: str, data: st.DataObject) -> None:
    payload = bytearray(PAYLOADS[name])
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.just(len(payload)), st.integers(0, len(payload))))
    try:
        value = decode(bytes(payload[:cut])).whole()
    except InputError:
        return
    assert value.shape == NCHW
    assert value.dtype == np.float32
