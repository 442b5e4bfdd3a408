"""Pieces that travel packed: asked for by the program, counted as they left, refused if unfit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest

from agent.adapters.compute import gather
from agent.adapters.runtime import RuntimeOptions
from agent.adapters.store import MemoryBlobs
from agent.errors import WireError
from agent.service.jobs import Jobs, encode_piece
from agent.service.pacing import Pacer
from agent.wire.messages import Piece, decode_msgpack, encode_msgpack, fingerprint
from agent.wire.packing import pack
from agent.wire.program import Part, Program, Send, TensorSpec, decode_program, encode_program
from agent.wire.tensors import bytes_of
from agent.worker import events as ev
from agent.worker.pieces import check_piece, held
from tests.builders import header_of, image_of, only
from tests.worker.test_core import KEY, PICTURE, PROGRAMS, ROWS, Device

if TYPE_CHECKING:
    from numpy.typing import NDArray

REGION = ((0, 1), (0, 64))


def values() -> NDArray[Any]:
    noise = np.random.default_rng(0).standard_normal((1, 64))
    return np.maximum(noise, 0.0).astype(np.float32)


def program(dtype: str = "float32") -> Program:
    tensor = TensorSpec("t", dtype, (1, 64))
    return Program("m", "a", (tensor,), 0, (), (), ())


def piece(coding: Any = "packed", data: bytes | None = None) -> Piece:
    packed = pack(values(), coding)[1] if data is None else data
    return Piece("0" * 64, "r1", "0" * 32, 0, REGION, memoryview(packed), coding)


def jobs(pacer: Pacer | None = None) -> Jobs:
    return Jobs(
        MemoryBlobs({}),  # type: ignore[arg-type]
        RuntimeOptions(),
        max_payload_bytes=1,
        clock=lambda: 0.0,
        pacer=pacer or Pacer(),
        room=lambda: 0,
    )


def send(coding: Any = "packed") -> ev.SendPiece:
    here = ev.Held(REGION, values())
    return ev.SendPiece(KEY, "0" * 64, "b", 0, REGION, (here,), coding)


def test_a_step_has_its_borders_packed_and_they_are_counted_once_they_have_left() -> None:
    sends = tuple(msgspec.structs.replace(s, coding="packed") for s in PROGRAMS["b"].sends)
    programs = {**PROGRAMS, "b": msgspec.structs.replace(PROGRAMS["b"], sends=sends)}
    header, device = header_of(programs), Device("b")
    device.serve(header, programs["b"])
    device.ask()
    device.decoded()
    image = ev.Held(((0, ROWS),), image_of(PICTURE, ROWS))
    finished = device.finish(ev.Run(KEY, header.digest, 0, ((image,),)), programs["b"])
    due = only(ev.SendPiece, finished)
    assert [effect.coding for effect in due] == ["packed"] * 2
    device.now = 1.5
    first = due[0]
    device.do(ev.PieceSent(KEY, header.digest, first.to, first.tensor, first.region, 3, 1.25))
    (told,) = only(ev.PublishTrace, device.do(ev.ResultSeen(KEY)))
    assert told.trace.bytes_sent == 3
    assert [(s.peer, s.nbytes, s.start_ms, s.end_ms) for s in told.trace.sends] == [
        (first.to, 3, 1250.0, 1500.0)
    ]


def test_a_piece_that_cannot_be_made_fails_its_request() -> None:
    header, device = header_of(PROGRAMS), Device("a")
    device.serve(header, PROGRAMS["a"])
    device.ask()
    device.decoded()
    (told,) = only(ev.PublishAnswer, device.do(ev.PieceFailed(KEY, header.digest, "damaged")))
    assert told.answer.error is not None
    assert (told.answer.error.code, told.answer.error.text) == ("compute", "damaged")


@pytest.mark.parametrize("coding", ["packed", "half"])
def test_a_packed_piece_is_unpacked_where_it_is_used(coding: Any) -> None:
    check_piece(piece(coding), program())
    found = gather(((0, 1), (8, 40)), "float32", (held(piece(coding), program()),))
    assert np.allclose(found, values()[:, 8:40], rtol=1e-3)
    assert (coding == "packed") == np.array_equal(found, values()[:, 8:40])


@pytest.mark.parametrize(
    ("refused", "dtype"),
    [
        (piece("packed", bytes(256)), "float32"),
        (piece("packed", bytes(1000)), "float32"),
        (piece("half"), "int32"),
        (piece("plain", bytes(100)), "float32"),
    ],
    ids=["as large", "larger", "no float", "plain"],
)
def test_a_piece_that_does_not_fit_is_refused(refused: Piece, dtype: str) -> None:
    with pytest.raises(WireError):
        check_piece(refused, program(dtype))


def test_a_program_rounds_floats_only() -> None:
    rounding = msgspec.structs.replace(program(), sends=(Send(Part(0, REGION), "b", "half"),))
    assert decode_program(encode_program(rounding)) == rounding
    integers = msgspec.structs.replace(rounding, tensors=program("int8").tensors)
    with pytest.raises(WireError, match="float16, but it is int8"):
        decode_program(encode_program(integers))


def test_what_is_plain_is_written_as_before_there_was_packing() -> None:
    plain = Piece("0" * 64, "r1", fingerprint(PICTURE), 0, REGION, bytes_of(values()))
    assert "coding" not in msgspec.msgpack.decode(encode_msgpack(plain))
    assert "coding" not in msgspec.json.decode(msgspec.json.encode(Send(Part(0, REGION), "b")))


def test_the_packer_makes_a_message_of_a_piece_and_an_array_of_a_message() -> None:
    made = jobs().pack(send(), "float32", 2.0)
    came = decode_msgpack(made.payload, Piece)
    assert made.sent == ev.PieceSent(KEY, "0" * 64, "b", 0, REGION, len(came.data), 2.0)
    assert (came.coding, len(came.data) < values().nbytes) == ("packed", True)
    arrived = jobs().unpack(ev.PieceArrived(came, len(came.data)), program())
    assert arrived.piece.coding == "plain"
    assert bytes(arrived.piece.data) == values().tobytes()
    assert arrived.nbytes == len(came.data)


def test_the_packer_refuses_what_does_not_fit_or_is_damaged() -> None:
    came = decode_msgpack(encode_piece(send(), "float32")[0], Piece)
    damaged = msgspec.structs.replace(came, data=memoryview(bytes(came.data)[:-4]))
    for wrong, spec in ((damaged, program()), (came, program("int8"))):
        with pytest.raises(WireError):
            jobs().unpack(ev.PieceArrived(wrong, 1), spec)


def test_the_packer_is_paced() -> None:
    slept: list[float] = []
    clock = iter(range(100))
    pacer = Pacer(3.0, None, lambda: 0.0, lambda: float(next(clock)), slept.append)
    paced = jobs(pacer)
    made = paced.pack(send(), "float32", 0.0)
    paced.unpack(ev.PieceArrived(decode_msgpack(made.payload, Piece), 1), program())
    assert slept == [3.0, 3.0]
