"""VGG-16, the network of the papers on this subject, with seeded random weights.

It is built rather than kept: 528 MB of weights that mean nothing, for a model whose arithmetic is
that of the real one. The same bytes come out on every machine: the weights are drawn from PCG64's
raw integers, and from there on nothing is used that rounds differently from machine to machine.
"""

from __future__ import annotations

import fcntl
import math
import os
from contextlib import contextmanager
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from onnx import ModelProto, StringStringEntryProto, TensorProto, helper

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

RECIPE = 1  # to be raised whenever the same constants give other weights
SEED = 1409_1556  # the paper's arXiv number
WEIGHTS = "vgg16.weights"
CLASSES = 1000

_STAGES = ((2, 1), (2, 2), (3, 4), (3, 8), (3, 8))  # convs, and channels in units of `width`
_SPATIAL = 32  # the pools' total stride
_ALIGN = 4096  # so that a tensor can be mapped from the file
_CHUNK = 1 << 20  # weights at a time, 4 MB
# Each filter's mean is reduced by this share. Without that, the positive mean of ReLU's output
# grows from layer to layer until every picture gets the same class.
_CENTRED = (2, 5)
# Makes the logits of photographs differ by about 1: the best classes stand out, and the softmax,
# which turns a rounding error of a logit into a relative one, is far from saturated.
_LOGIT_GAIN = 3.0
_BIAS = 0.01

_MANIFEST = """\
# VGG-16 with random weights (models/vgg16.py): its classes mean nothing, so they have no names.
task = "classification"

[input]
color = "rgb"
resize = "crop"
mean = [0.485, 0.456, 0.406]
std = [0.229, 0.224, 0.225]
"""


class _Weight(NamedTuple):
    """An initializer: [out, in, ...], or [out] for a bias; `bound` of its uniform distribution."""

    name: str
    shape: tuple[int, ...]
    bound: float

    @property
    def nbytes(self) -> int:
        return 4 * math.prod(self.shape)


def build(folder: Path, size: int = 224, width: int = 64, classes: int = CLASSES) -> Path:
    """Write vgg16.onnx, vgg16.weights and vgg16.toml into `folder`, unless they are there.

    Memory stays at a few MB: weights are streamed into the one external data file.

    Args:
        folder: created if need be.
        size: height and width of the input picture in pixels, a multiple of 32.
        width: channels of the first convolution; 64 is VGG-16, less is a thin variant.
        classes: how many logits the model has.

    Returns:
        The path of vgg16.onnx: input "image" [1, 3, size, size] float32, output "prob"
        [1, classes].

    Raises:
        ValueError: if `size` is no positive multiple of 32.
        OSError: if the folder cannot be written, or is full.
    """
    if size <= 0 or size % _SPATIAL:
        raise ValueError(f"size must be a positive multiple of {_SPATIAL}, not {size}")
    weights = _weights(size, width, classes)
    model = _model(weights, size, classes).SerializeToString(deterministic=True)
    path, data, manifest = folder / "vgg16.onnx", folder / WEIGHTS, folder / "vgg16.toml"
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        built = path.is_file() and path.read_bytes() == model
        if not (built and data.is_file() and data.stat().st_size == _offsets(weights)[-1]):
            # The model comes last: where it is there, with this recipe, so are its weights.
            path.unlink(missing_ok=True)
            _write(data, _contents(weights))
            _write(path, [model])
        if not manifest.exists():
            _write(manifest, [_MANIFEST.encode()])
    return path


def _weights(size: int, width: int, classes: int) -> list[_Weight]:
    """Return every initializer in the order of the file."""
    weights = []
    before = 3
    for stage, (convs, factor) in enumerate(_STAGES, 1):
        for index in range(1, convs + 1):
            shape = (factor * width, before, 3, 3)
            weights += _pair(f"conv{stage}_{index}", shape, 1.0)
            before = factor * width
    flat = before * (size // _SPATIAL) ** 2
    hidden = 64 * width
    weights += _pair("fc6", (hidden, flat), 1.0)
    weights += _pair("fc7", (hidden, hidden), 1.0)
    weights += _pair("fc8", (classes, hidden), _LOGIT_GAIN)
    return weights


def _pair(name: str, shape: tuple[int, ...], gain: float) -> list[_Weight]:
    # He et al.: variance 2 / fan-in, which is a uniform distribution within sqrt(6 / fan-in).
    bound = gain * math.sqrt(6 / math.prod(shape[1:]))
    return [_Weight(f"{name}.weight", shape, bound), _Weight(f"{name}.bias", shape[:1], _BIAS)]


def _offsets(weights: list[_Weight]) -> list[int]:
    """Return where each weight begins in the file, and last where the file ends."""
    offsets = [0]
    for weight in weights:
        offsets.append(-(-(offsets[-1] + weight.nbytes) // _ALIGN) * _ALIGN)
    return offsets


def _contents(weights: list[_Weight]) -> Iterator[bytes]:
    """Yield the bytes of the weights file."""
    offsets = _offsets(weights)
    for index, weight in enumerate(weights):
        for values in _values(weight, index):
            yield values.astype("<f4").tobytes()
        yield bytes(offsets[index + 1] - offsets[index] - weight.nbytes)


def _values(weight: _Weight, stream: int) -> Iterator[NDArray[np.float32]]:
    """Yield the elements of a weight, some filters at a time."""
    bits = np.random.PCG64([SEED, stream])
    filters, fan_in = weight.shape[0], math.prod(weight.shape[1:])
    at_once = max(1, _CHUNK // fan_in)
    for start in range(0, filters, at_once):
        count = min(at_once, filters - start) * fan_in
        raw = bits.random_raw(-(-count // 2)).astype("<u8").view("<u4")[:count]
        # 23 bits and a sign: float32 holds them exactly.
        levels = (raw >> 8).astype(np.int64).reshape(-1, fan_in) - (1 << 23)
        if fan_in > 1:
            share, whole = _CENTRED
            levels -= levels.sum(axis=1, keepdims=True) * share // (whole * fan_in)
        scale = np.float64(weight.bound) / (1 << 23)
        yield (levels * scale).astype(np.float32)


def _model(weights: list[_Weight], size: int, classes: int) -> ModelProto:
    """Return the graph, which refers to the weights file."""
    nodes = []
    value = "image"

    def add(kind: str, name: str, *initializers: str, **attributes: Any) -> None:
        nonlocal value
        nodes.append(helper.make_node(kind, [value, *initializers], [name], name, **attributes))
        value = name

    def parameters(name: str) -> tuple[str, str]:
        return f"{name}.weight", f"{name}.bias"

    for stage, (convs, _) in enumerate(_STAGES, 1):
        for index in range(1, convs + 1):
            name = f"conv{stage}_{index}"
            add("Conv", name, *parameters(name), kernel_shape=[3, 3], pads=[1, 1, 1, 1])
            add("Relu", f"relu{stage}_{index}")
        add("MaxPool", f"pool{stage}", kernel_shape=[2, 2], strides=[2, 2])
    add("Flatten", "flatten", axis=1)
    for name in ("fc6", "fc7", "fc8"):
        add("Gemm", name, *parameters(name), transB=1)
        if name != "fc8":
            add("Relu", f"relu{name[-1]}")
    add("Softmax", "prob", axis=1)
    graph = helper.make_graph(
        nodes,
        "vgg16",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, size, size])],
        [helper.make_tensor_value_info("prob", TensorProto.FLOAT, [1, classes])],
        [
            _external(weight, offset)
            for weight, offset in zip(weights, _offsets(weights), strict=False)
        ],
    )
    # Tells weights of another recipe apart, though the graph be the same.
    recipe = sha256(repr((RECIPE, SEED, _CENTRED, weights)).encode()).hexdigest()
    return helper.make_model(
        graph,
        producer_name="halomq",
        producer_version=recipe[:16],
        ir_version=8,
        opset_imports=[helper.make_opsetid("", 17)],
    )


def _external(weight: _Weight, offset: int) -> TensorProto:
    places = {"location": WEIGHTS, "offset": offset, "length": weight.nbytes}
    return TensorProto(
        name=weight.name,
        data_type=TensorProto.FLOAT,
        dims=weight.shape,
        data_location=TensorProto.EXTERNAL,
        external_data=[
            StringStringEntryProto(key=key, value=str(place)) for key, place in places.items()
        ],
    )


def _write(path: Path, chunks: Iterable[bytes]) -> None:
    """Write a file as a whole or not at all; the caller holds the folder's lock."""
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            file.writelines(chunks)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process at a time build in a folder; the others wait, and find it built."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
