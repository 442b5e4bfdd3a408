"""Payloads that are refused: each with one clear message, whatever the damage."""

from __future__ import annotations

import pickle
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.adapters.media import MAX_PAYLOAD
from agent.adapters.pictures import MAX_PIXELS
from agent.errors import InputError
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


def refusal(payload: bytes, *rest: Any, **named: Any) -> str:
    with pytest.raises(InputError) as caught:
        decode(payload, *rest, **named)
    message = str(caught.value)
    assert "\n" not in message
    return message


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
        (
            npy_with("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 3\n"),
            "EOF in multi-line",
        ),
        (npy_with("(" * 5000), ""),
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
    assert "not a msgpack tensor" in refusal(payload[:-1])
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
