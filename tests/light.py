"""The zoo's "light" models, which the onnx package ships without their weights, made whole again.

Their weights are ConstantOfShape nodes of one value each; here they become seeded random ones, so
large that activations neither explode nor vanish on their way through the network.
"""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Iterator

Array = np.ndarray[Any, Any]

FOLDER = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
# Weights are cut out of one random block; its length is prime, so that no two rows are the same.
_BLOCK = 1_000_003
_ALIGNMENT = 64 << 10


def light_model(name: str, folder: Path, *, seed: int = 0) -> Path:
    """Write the light model `name` with random weights, kept externally, into `folder`."""
    model = onnx.load(str(FOLDER / f"light_{name}.onnx"))
    graph = model.graph
    shapes = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    filled = [node for node in graph.node if node.op_type == "ConstantOfShape"]
    weights = {node.output[0]: tuple(shapes[node.input[0]].tolist()) for node in filled}
    weights |= {
        t.name: tuple(t.dims) for t in graph.initializer if t.data_type == TensorProto.FLOAT
    }
    unneeded = {node.input[0] for node in filled} | weights.keys()
    nodes = [node for node in graph.node if node.op_type != "ConstantOfShape"]
    kept = [t for t in graph.initializer if t.name not in unneeded]
    inputs = [value for value in graph.input if value.name not in unneeded]
    # The files are of an IR version in which an initializer is a graph input as well.
    inputs += [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in weights.items()]
    path = folder / f"{name}.onnx"
    with (folder / f"{name}.data").open("wb") as file:
        random = _Random(seed)
        for key, shape in weights.items():
            offset = file.tell() + -file.tell() % _ALIGNMENT
            file.seek(offset)
            for piece in random.weight(nodes, key, shape):
                file.write(piece.data)
            kept.append(_external(key, shape, f"{name}.data", offset))
    for field, values in ((graph.node, nodes), (graph.initializer, kept), (graph.input, inputs)):
        del field[:]
        field.extend(values)
    onnx.save(model, str(path))
    return path


class _Random:
    """Random weights, each by its use in the network."""

    def __init__(self, seed: int) -> None:
        self._block = np.random.default_rng(seed).standard_normal(_BLOCK, np.float32)
        self._at = 0

    def weight(
        self, nodes: list[onnx.NodeProto], name: str, shape: tuple[int, ...]
    ) -> Iterator[Array]:
        """Yield a weight's values in pieces."""
        low, scale = _kind(nodes, name, shape)
        left = prod(shape)
        while left:
            piece = self._block[self._at : self._at + left]
            self._at = (self._at + len(piece)) % _BLOCK
            left -= len(piece)
            # Around 0, or from `low` up to `low + 2 * scale`.
            yield piece * scale if low is None else low + scale * (1 + np.tanh(piece))


def _kind(
    nodes: list[onnx.NodeProto], name: str, shape: tuple[int, ...]
) -> tuple[np.float32 | None, np.float32]:
    """Return the lowest value (None if negative ones may be) and the scale of a weight."""
    node = next((node for node in nodes if name in node.input), None)
    if node is None:
        return None, np.float32(1.0)
    if node.op_type == "Unsqueeze":
        return _kind(nodes, node.output[0], shape)
    place = list(node.input).index(name)
    if node.op_type in {"Conv", "Gemm"} and place == 1:
        rows = node.op_type == "Conv" or any(a.name == "transB" and a.i for a in node.attribute)
        depth = prod(shape[1:]) if rows else shape[0]
        # A Softmax of large values would hide all errors but those of the largest.
        scores = any(n.op_type == "Softmax" and node.output[0] in n.input for n in nodes)
        return None, np.float32((0.1 if scores else 2.0) / depth) ** np.float32(0.5)
    if node.op_type == "BatchNormalization" and place in {1, 4}:
        residual = any(n.op_type == "Sum" and node.output[0] in n.input for n in nodes)
        # Branches that are added up are small, or the sums would grow from layer to layer.
        return np.float32(0.1 if residual and place == 1 else 0.7), np.float32(0.2)
    if node.op_type == "Mul":
        return np.float32(0.8), np.float32(0.2)
    return None, np.float32(0.1)


def _external(name: str, shape: tuple[int, ...], location: str, offset: int) -> onnx.TensorProto:
    tensor = onnx.TensorProto(
        name=name,
        dims=shape,
        data_type=TensorProto.FLOAT,
        data_location=TensorProto.EXTERNAL,
    )
    for key, value in (("location", location), ("offset", offset), ("length", prod(shape) * 4)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor
