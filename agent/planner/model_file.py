"""Reading an ONNX file: its graph, and its large initializers without copying them."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import helper, numpy_helper

from agent.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

Array = np.ndarray[Any, Any]

# Smaller initializers are shapes, scales and biases: they stay in the graph and in its segments.
LARGE_BYTES = 4096


def load(path: Path) -> onnx.ModelProto:
    """Read a model without its external data.

    Raises:
        ModelError: if the file cannot be read or is no ONNX model.
    """
    try:
        model = onnx.load(str(path), load_external_data=False)
    except OSError as error:
        raise ModelError(f"cannot read the model {path}: {error.strerror or error}") from error
    except DecodeError as error:
        raise ModelError(
            f"{path} is not an ONNX model, or is cut short; copy or export it again"
        ) from error
    if not model.graph.node or not model.opset_import:
        raise ModelError(f"{path} is not an ONNX model: it has no nodes")
    return model


def constants_to_initializers(graph: onnx.GraphProto) -> None:
    """Turn Constant nodes that hold a tensor into initializers, so that large ones are weights."""
    kept = []
    for node in graph.node:
        value = next((a for a in node.attribute if a.name == "value"), None)
        if node.op_type == "Constant" and node.domain == "" and value is not None:
            tensor = graph.initializer.add()
            tensor.CopyFrom(value.t)
            tensor.name = node.output[0]
        else:
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)


def take_large_initializers(model: onnx.ModelProto, folder: Path) -> dict[str, Array]:
    """Replace the graph's large initializers by graph inputs, and return their arrays.

    External data is mapped, not read. Small external initializers are brought into the graph.

    Raises:
        ModelError: if external data is missing, too short, or outside `folder`.
    """
    graph = model.graph
    taken: dict[str, Array] = {}
    small = []
    for tensor in graph.initializer:
        external = tensor.data_location == onnx.TensorProto.EXTERNAL
        array = _external_array(tensor, folder) if external else _embedded_array(tensor)
        if array is None:
            small.append(tensor)
        elif array.nbytes < LARGE_BYTES:
            small.append(numpy_helper.from_array(np.array(array), tensor.name))
        else:
            taken[tensor.name] = array
    inputs = [value for value in graph.input if value.name not in taken]
    inputs = [value for value in inputs if value.name not in {t.name for t in small}]
    types = {t.name: (t.data_type, list(t.dims)) for t in graph.initializer if t.name in taken}
    del graph.initializer[:]
    del graph.input[:]
    graph.initializer.extend(small)
    graph.input.extend(inputs)
    graph.input.extend(helper.make_tensor_value_info(n, *kind) for n, kind in types.items())
    return taken


def check_dataflow(nodes: Iterable[onnx.NodeProto], known: set[str]) -> None:
    """Check that every node can run, given the names in `known`.

    Raises:
        ModelError: if a node reads what nothing writes, or nodes wait for each other in a circle.
    """
    waiting = list(nodes)
    written = {name for node in waiting for name in node.output}
    for node in waiting:
        for name in node.input:
            if name and name not in known and name not in written:
                raise ModelError(f"{label(node)} reads '{name}', which nothing writes")
    known = set(known)
    while waiting:
        ready = [node for node in waiting if all(not n or n in known for n in node.input)]
        if not ready:
            raise ModelError(f"{label(waiting[0])} waits for its own output: the graph has a cycle")
        known.update(name for node in ready for name in node.output)
        waiting = [node for node in waiting if any(n not in known for n in node.output)]


def label(node: onnx.NodeProto) -> str:
    """How messages name a node: its type, and its own name or its first output's."""
    return f"{node.op_type} '{node.name or ''.join(node.output[:1])}'"


def _embedded_array(tensor: onnx.TensorProto) -> Array | None:
    """Return a large initializer's array, None for a small one."""
    if tensor.data_type == onnx.TensorProto.STRING:
        return None
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    if prod(tensor.dims) * dtype.itemsize < LARGE_BYTES:
        return None
    if tensor.raw_data:
        try:
            return np.frombuffer(tensor.raw_data, dtype).reshape(tuple(tensor.dims))
        except ValueError as error:
            raise ModelError(f"initializer '{tensor.name}' is damaged: {error}") from error
    return np.asarray(numpy_helper.to_array(tensor))


def _external_array(tensor: onnx.TensorProto, folder: Path) -> Array:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    where = f"initializer '{tensor.name}'"
    location = entries.get("location", "")
    path = (folder / location).resolve()
    if not location or not path.is_relative_to(folder.resolve()):
        raise ModelError(f"{where} keeps its data outside the model's folder ({location!r})")
    if not path.is_file():
        raise ModelError(f"{where} keeps its data in {path}, which is not there; copy it along")
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    shape, offset = tuple(tensor.dims), int(entries.get("offset", "0"))
    if offset < 0 or path.stat().st_size < offset + prod(shape) * dtype.itemsize:
        raise ModelError(f"{path} is cut short: it does not hold all of {where}; copy it again")
    return np.memmap(path, dtype, "r", offset, shape)
