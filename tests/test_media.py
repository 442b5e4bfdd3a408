"""Payloads: what a picture or a tensor becomes, whole and by region."""

from __future__ import annotations

import io
import struct
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from agent import geometry
from agent.wire.tensors import encode_tensor
from tests.media_payloads import (
    HEIGHT,
    NCHW,
    NHWC,
    PAYLOADS,
    WIDTH,
    Array,
    decode,
    encoded,
    floats,
    manifest,
    npy_of,
    pixels_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.geometry import Region

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


def test_bars_of_a_letterbox_are_whole_pixels() -> None:
    taken = decode(encoded(pixels_of(25, 50), "PNG"), manifest(resize="letterbox"), dtype="uint8")
    bars = (taken.whole()[0] == 114).all(axis=(0, 2))  # 12 rows, of which the picture has 5
    assert bars.tolist() == [True] * 3 + [False] * 5 + [True] * 4
    assert taken.frame == pytest.approx((0, -3 / 5, 1, 9 / 5))


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
