"""What devices compute: a small CNN of integers, real plans of it, real segments, each once.

Weights and inputs are small integers, so every sum is exact in float32 and answers are compared
byte by byte, whatever the tiles. Results are kept by segment and inputs for all seeds of a process.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from agent.adapters.compute import Loader, gather
from agent.adapters.runtime import RuntimeOptions, run_whole
from agent.adapters.store import MemoryBlobs
from agent.coordinator.events import Member
from agent.local import ArrayImage
from agent.packaging import package_model
from agent.service.planning import compute_plan
from agent.wire.messages import Capacity
from agent.wire.program import Program, decode_program

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.coordinator.events import ComputedPlan
    from agent.wire.model import ModelPackage
    from agent.worker.events import Held

MODELS = ("eyes", "nose")
VERSIONS = (0, 1)
PICTURES = 6
SHAPE = (1, 1, 10, 6)
OPTIONS = RuntimeOptions()

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Version:
    """One version of a model: its package and blobs, and its answer to each picture."""

    package: ModelPackage
    blobs: dict[str, bytes | memoryview]
    right: tuple[bytes, ...]


def capacity_of(device: str) -> Capacity:
    """Return what a simulated device can do: slow enough that the planner shares the work."""
    flops = 1e6 * (2 + ord(device[-1]) % 3)
    return Capacity("simulated", 1, 1, 1 << 30, (), flops, 1e9, 1e-5, 1e9)


@cache
def picture(number: int) -> Array:
    """Return input `number`."""
    return np.random.default_rng(number).integers(0, 4, SHAPE).astype(np.float32)


def payload(number: int, mark: int) -> bytes:
    """Return a request for picture `number`; no two with other marks are the same."""
    return f"picture {number} {mark}".encode()


def decode(content: bytes) -> ArrayImage:
    """Return the picture of a payload; ValueError if it has none."""
    kind, number, _ = content.split()
    if kind != b"picture":
        raise ValueError("not a picture")
    return ArrayImage(picture(int(number)))


@cache
def version(name: str, number: int) -> Version:
    """Return version `number` of model `name`."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.onnx"
        onnx.save(_build(MODELS.index(name) * 10 + number), str(path))
        packaged = package_model(path, name)
        blobs = {digest: bytes(content) for digest, content in packaged.blobs.items()}
        right = tuple(run_whole(path, [picture(n)], OPTIONS)[0].tobytes() for n in range(PICTURES))
    _STORE.blobs.update(blobs)
    return Version(packaged.package, dict(blobs), right)


def _build(seed: int) -> onnx.ModelProto:
    random = np.random.default_rng(seed)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(random.integers(-1, 2, shape).astype(np.float32), name)

    window: dict[str, Any] = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], **window),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], **window),
        helper.make_node("MaxPool", ["c2"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p", "w3"], ["c3"], **window),
        helper.make_node("Conv", ["c3", "w4"], ["c4"], **window),
        helper.make_node("Flatten", ["c4"], ["f"]),
        helper.make_node("MatMul", ["f", "w5"], ["y"]),
    ]
    weights = [
        weight("w1", 4, 1, 3, 3),
        weight("w2", 6, 4, 3, 3),
        weight("w3", 8, 6, 3, 3),
        weight("w4", 4, 8, 3, 3),
        weight("w5", 60, 5),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "eyes", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


class _Blobs:
    """Every blob that any seed has made: devices hold only digests."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}

    def put(self, digest: str, content: bytes) -> None:
        self.blobs[digest] = content

    def read(self, digest: str) -> memoryview:
        return memoryview(self.blobs[digest])


_STORE = _Blobs()
_PLANS: dict[tuple[ModelPackage, tuple[Member, ...]], ComputedPlan] = {}
_SERVED: dict[str, ModelPackage] = {}
_RESULTS: dict[tuple[str, Any, bytes], tuple[Array, ...]] = {}
_PROGRAMS: dict[str, Program] = {}


def plan(package: ModelPackage, members: Sequence[Member]) -> ComputedPlan:
    """Return the planner's plan of a model for a fleet; sessions do not matter to it."""
    plain = tuple(Member(m.device, "", m.capacity) for m in members)
    key = (package, plain)
    if key not in _PLANS:
        _PLANS[key] = compute_plan(package, plain, _STORE)  # type: ignore[arg-type]
        _SERVED.update(dict.fromkeys((r.digest for r in _PLANS[key].programs.values()), package))
    return _PLANS[key]


def right(program_digest: str, number: int) -> bytes:
    """Return the answer to picture `number` by the model that a program is part of."""
    package = _SERVED[program_digest]
    versions = [version(package.name, n) for n in VERSIONS]
    return next(v.right[number] for v in versions if v.package == package)


def program(digest: str) -> Program:
    """Return the program that blob `digest` holds."""
    if digest not in _PROGRAMS:
        _PROGRAMS[digest] = decode_program(_STORE.blobs[digest])
    return _PROGRAMS[digest]


def run(code: Program, number: int, inputs: Sequence[Sequence[Held]]) -> tuple[Array, ...]:
    """Run a step of a program on the pieces that cover each of its reads."""
    step = code.steps[number]
    arrays = [
        gather(part.region, code.tensors[part.tensor].dtype, pieces)
        for part, pieces in zip(step.reads, inputs, strict=True)
    ]
    mark = blake2b(b"".join(array.tobytes() for array in arrays), digest_size=16).digest()
    segment = code.segments[step.segment]
    key = (segment.graph.digest, segment.weights, mark)
    if key not in _RESULTS:
        _RESULTS[key] = _LOADER.load(code).run(number, inputs)
    return _RESULTS[key]


def result(code: Program, outputs: Sequence[Sequence[Held]]) -> dict[str, Any]:
    """Return the answer's `result`: the bytes of the one output."""
    part = code.answers[0]
    array = gather(part.region, code.tensors[part.tensor].dtype, outputs[0])
    return {"bytes": array.tobytes()}


class _Reader(MemoryBlobs):
    """The blobs as a loader reads them."""

    def __init__(self) -> None:
        super().__init__({})
        self._blobs = _STORE.blobs  # type: ignore[assignment]


_LOADER = Loader(_Reader(), OPTIONS)
