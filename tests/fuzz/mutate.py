"""Structured damage: valid messages become nearly valid ones, and bytes that lie about their size.

What a message names is renamed first where it would have authority (`disarm`): whoever may write
such a topic may stop a model or answer a request, and no decoder can tell.
"""

from __future__ import annotations

import io
import json
import re
import struct
import zlib
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

if TYPE_CHECKING:
    from random import Random

Tree = Any
GHOST = "ghost"
DEEP = 3000
MIB = 1 << 20

LEAVES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1,
    2**31,
    2**53,
    2**63 - 1,
    2**64 - 1,
    -(2**63),
    0.5,
    -0.0,
    1e308,
    -1e308,
    "",
    "\ufeff",
    "\ud7ff\0\n\t",
    "../../../etc/passwd",
    "+/#",
    "x" * 5000,
    "0" * 32,
    "0" * 64,
    "e" * 64,
    "float16",
    "object",
    "prepare",
    [],
    {},
    [[0, 1]],
    [[1, 0]],
    [[0, 2**40]],
    [[0, 0]] * 9,
    [1] * 2000,
    {"": None},
)
MSGPACK_LEAVES = (*LEAVES, b"", b"\0" * 4097, float("nan"), float("inf"), float("-inf"))


def is_json(payload: bytes) -> bool:
    """Tell whether a message is JSON."""
    return payload[:1] in (b"{", b"[")


def mutate(random: Random, payload: bytes) -> bytes:
    """Return a message that is damaged somewhere."""
    if random.random() < 0.25 or not payload:
        return damage(random, payload)
    codec: Any = msgspec.json if is_json(payload) else msgspec.msgpack
    try:
        tree: Tree = codec.decode(payload)
    except msgspec.MsgspecError:
        return damage(random, payload)
    leaves = LEAVES if is_json(payload) else MSGPACK_LEAVES
    for _ in range(random.randint(1, 3)):
        tree = _changed(random, tree, leaves)
    try:
        return bytes(codec.encode(tree))
    except (msgspec.MsgspecError, OverflowError, RecursionError, TypeError, ValueError):
        return json.dumps(tree, default=repr).encode()


def damage(random: Random, payload: bytes) -> bytes:
    """Return bytes that are cut, flipped, repeated, or lie about what follows."""
    content = bytearray(payload)
    place = random.randrange(len(content) + 1)
    match random.randrange(7):
        case 0:
            return bytes(content[:place])
        case 1 if content:
            content[place % len(content)] ^= 1 << random.randrange(8)
        case 2:
            content[place:place] = random.choice(HEADS)
        case 3:
            return random.choice(HEADS) + bytes(content)
        case 4:
            return bytes(content) * 2
        case 5:
            return re.sub(rb"\d+", random.choice((b"1e999", b"NaN", b"9" * 400, b"-0")), payload)
        case _:
            content[place:] = random.randbytes(16)
    return bytes(content)


# msgpack's arrays, maps, strings and bytes of four thousand million; JSON's and msgpack's nesting.
HEADS = (
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xc9\xff\xff\xff\xff\x01",
    b"[" * DEEP,
    b'{"a":' * DEEP,
    b"\x91" * DEEP,
    b"\x81\xa1a" * DEEP,
)


def _changed(random: Random, tree: Tree, leaves: tuple[Any, ...]) -> Tree:
    """Return a tree with one change at a place drawn at random."""
    if not isinstance(tree, dict | list) or not tree or random.random() < 0.1:
        return random.choice(leaves)
    keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
    key = random.choice(keys)
    copy: Any = tree.copy()
    match random.randrange(6):
        case 0:
            del copy[key]
        case 1:
            copy[key] = random.choice(leaves)
        case 2 if isinstance(copy, dict):
            copy[random.choice(("type", "unknown", "data", ""))] = random.choice(leaves)
        case 2:
            copy *= random.choice((2, 50))
        case 3 if isinstance(copy, dict):
            copy[key] = copy[random.choice(keys)]
        case 4 if isinstance(copy[key], int | float) and not isinstance(copy[key], bool):
            copy[key] = random.choice((-copy[key], copy[key] * 10**9, copy[key] + 1, 0.5))
        case _:
            copy[key] = _changed(random, copy[key], leaves)
    return copy


def disarm(payload: bytes, names: dict[str, str]) -> bytes:
    """Return a message in which words are others: real models, requests, devices are ghosts."""
    codec: Any = msgspec.json if is_json(payload) else msgspec.msgpack

    def renamed(tree: Tree) -> Tree:
        if isinstance(tree, str):
            return names.get(tree, tree)
        if isinstance(tree, list):
            return [renamed(item) for item in tree]
        if isinstance(tree, dict):
            return {renamed(key): renamed(item) for key, item in tree.items()}
        return tree

    try:
        return bytes(codec.encode(renamed(deepcopy(codec.decode(payload)))))
    except msgspec.MsgspecError:
        return payload


# Requests ----------------------------------------------------------------------------------------


def bombs() -> dict[str, bytes]:
    """Return small payloads that want to become large ones."""
    return {
        "png of 4 gigapixels": _png(1 << 16, 1 << 16, b""),
        "png that inflates": _png(7000, 7000, zlib.compress(bytes(16 * MIB), 9)),
        "png with a bomb in a text": _png(4, 4, b"", (b"zTXt", b"a\0\0" + _bomb())),
        "png with a bomb in its profile": _png(4, 4, b"", (b"iCCP", b"a\0\0" + _bomb())),
        "jpeg of 65535 squared": _jpeg(65535, 65535),
        "jpeg without pixels": _jpeg(0, 0),
        "npy of 8 exbibytes": _npy("(1152921504606846976,)"),
        "npy of a negative shape": _npy("(-1, 2)"),
        "npy of many axes": _npy(repr((1,) * 200)),
        "npy of nested parentheses": _npy("(" * 2000 + ")" * 2000),
        "npy of objects": _npy("(1,)", "|O"),
        "npy of a huge item": _npy("(1,)", "<V2000000000"),
        "npy with a header of 4 GiB": b"\x93NUMPY\x02\x00\xff\xff\xff\xff{",
        "msgpack of a huge shape": _tensor([2**40, 2**40], b""),
        "msgpack of an empty huge shape": _tensor([0, 2**40, 2**40, 2**40], b""),
        "msgpack of many axes": _tensor([1] * 100, b"\0"),
        "msgpack of a huge length": b"\x83\xa4data\xc6\xff\xff\xff\xff",
        "the largest request": bytes(8 * MIB),
        "the largest picture of noise": b"\xff\xd8\xff" + bytes(range(256)) * (32 * 1024 - 1),
        "deep": b"\x91" * MIB,
        "gif": b"GIF89a" + bytes(100),
    }


def _bomb() -> bytes:
    return zlib.compress(bytes(64 * MIB), 9)


def _png(width: int, height: int, data: bytes, *extra: tuple[bytes, bytes]) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", data), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _jpeg(width: int, height: int) -> bytes:
    frame = struct.pack(">BHHB", 8, height, width, 1) + b"\x01\x11\x00"
    return b"\xff\xd8\xff\xc0" + struct.pack(">H", len(frame) + 2) + frame + b"\xff\xd9"


def _npy(shape: str, descr: str = "<f4") -> bytes:
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(16)


def _tensor(shape: list[int], data: bytes) -> bytes:
    return msgspec.msgpack.encode({"dtype": "float32", "shape": shape, "data": data})


def npy(array: np.ndarray[Any, Any]) -> bytes:
    """Return an array as a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
