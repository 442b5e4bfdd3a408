"""Reading an ONNX file: its graph, and its large initializers without copying them."""

from __future__ import annotations

from functools import cache
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]
from onnx import TensorProto, helper, inliner, numpy_helper

from agent.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

Array = np.ndarray[Any, Any]

# Smaller initializers are shapes, scales and biases: they stay in the graph and in its segments.
LARGE_BYTES = 4096
# Indices and shapes do as well, because they tell what a tile needs.
_LARGE_INDICES_BYTES = 1 << 20
# Newer ones only describe what HaloMQ refuses; in older ones initializers are inputs as well.
_IR_VERSIONS = (4, 10)
# Functions that call each other twice at each level would grow beyond any memory.
_MOST_NODES = 100_000
_LONGEST_NUMBER = 19
_FREE_TEXTS = frozenset({"doc_string", "metadata_props"})
# The types of which numpy has arrays and messages have tensors.
_DTYPES = frozenset(
    {TensorProto.BOOL, TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.DOUBLE}
    | {TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64}
    | {TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64}
)


def load(path: Path) -> onnx.ModelProto:
    """Read a model without its external data.

    Raises:
        ModelError: if the file cannot be read or is no ONNX model.
    """
    try:
        model = onnx.load(str(path), format="protobuf", load_external_data=False)
    except OSError as error:
        raise ModelError(f"cannot read the model {path}: {error.strerror or error}") from error
    except DecodeError as error:
        raise ModelError(
            f"{path} is not an ONNX model, or is cut short; copy or export it again"
        ) from error
    for text in _texts(model):
        if not (isinstance(text, str) and text.isprintable()):
            raise ModelError(f"{path} is damaged: {text!r} is no name; export it again")
    if not model.graph.node or not model.opset_import:
        raise ModelError(f"{path} is not an ONNX model: it has no nodes")
    model.ir_version = min(max(model.ir_version, _IR_VERSIONS[0]), _IR_VERSIONS[1])
    return model


def inline_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """Put the bodies of the model's own functions where they are called.

    Raises:
        ModelError: if a function calls itself, or they would be too large.
    """
    functions = {(f.domain, f.name, f.overload): f for f in model.functions}

    @cache
    def size(key: tuple[str, str, str]) -> int:
        return count(functions[key].node)

    def count(nodes: Iterable[onnx.NodeProto]) -> int:
        keys = [(node.domain, node.op_type, node.overload) for node in nodes]
        return sum(size(key) if key in functions else 1 for key in keys)

    try:
        total = count(model.graph.node)
    except RecursionError as error:
        raise ModelError(
            "a function of the model calls itself, which HaloMQ cannot plan; export without it"
        ) from error
    if total > _MOST_NODES:
        raise ModelError(
            f"the model's functions make {total} nodes; at most {_MOST_NODES} are taken"
        )
    try:
        return inliner.inline_local_functions(model, convert_version=True)
    except Exception as error:  # the inliner raises whatever its C++ does
        reason = one_line(error)
        raise ModelError(f"the model's functions cannot be inlined: {reason}") from error


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
        ModelError: if one is damaged or of no type that can be sent, or if external data is
            missing, too short, or outside `folder`.
    """
    graph = model.graph
    taken: dict[str, Array] = {}
    small = []
    constant: set[str] = set()
    for tensor in graph.initializer:
        external = tensor.data_location == TensorProto.EXTERNAL
        size = _declared_bytes(tensor)
        indices = tensor.data_type == TensorProto.INT64
        limit = _LARGE_INDICES_BYTES if indices else LARGE_BYTES
        array = None
        if external:
            array = _external_array(tensor, size, folder)
        elif size >= limit:
            array = _embedded_array(tensor)
        if array is None:
            small.append(tensor)
        elif size < limit:
            small.append(numpy_helper.from_array(np.array(array), tensor.name))
        else:
            taken[tensor.name] = array
        if tensor.name in constant:
            raise ModelError(f"two weights are named '{tensor.name}'; export the model again")
        constant.add(tensor.name)
    inputs = [value for value in graph.input if value.name not in constant]
    types = {t.name: (t.data_type, list(t.dims)) for t in graph.initializer if t.name in taken}
    del graph.initializer[:]
    del graph.input[:]
    graph.initializer.extend(small)
    graph.input.extend(inputs)
    graph.input.extend(helper.make_tensor_value_info(n, *kind) for n, kind in types.items())
    return taken


def label(node: onnx.NodeProto) -> str:
    """How messages name a node: its type, and its own name or its first output's."""
    return f"{node.op_type} '{node.name or ''.join(node.output[:1])}'"


def one_line(error: Exception) -> str:
    """Return the first line of what a library says of a failure."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _texts(message: Message) -> Iterator[str | bytes]:
    """Yield the names that a message holds at any depth; bytes where one is no text."""
    for field in message.DESCRIPTOR.fields:
        if field.type not in {field.TYPE_STRING, field.TYPE_MESSAGE} or field.name in _FREE_TEXTS:
            continue
        value = getattr(message, field.name)
        if isinstance(value, str | bytes):
            yield value
        elif not isinstance(value, Message):
            for item in value:
                yield from [item] if field.type == field.TYPE_STRING else _texts(item)
        elif message.HasField(field.name):
            yield from _texts(value)


def _declared_bytes(tensor: onnx.TensorProto) -> int:
    """Return how many bytes an initializer must have; check that those it embeds are as many."""
    where = f"initializer '{tensor.name}'"
    if tensor.data_type == TensorProto.STRING:
        raise ModelError(f"{where} holds strings, which HaloMQ cannot send; export without them")
    if any(extent < 0 for extent in tensor.dims):
        raise ModelError(f"{where} is damaged: its shape is {tuple(tensor.dims)}; export it again")
    external = tensor.data_location == TensorProto.EXTERNAL
    count = prod(tensor.dims)
    if tensor.data_type not in _DTYPES:
        if external or count >= LARGE_BYTES:
            known = tensor.data_type in TensorProto.DataType.values()
            kind = TensorProto.DataType.Name(tensor.data_type) if known else tensor.data_type
            raise ModelError(f"{where} has type {kind}, which HaloMQ cannot send; convert it")
        return 0
    size: int = count * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    if not external:
        field = helper.tensor_dtype_to_field(tensor.data_type)
        raw = tensor.HasField("raw_data")
        wanted, found = (
            (size, len(tensor.raw_data)) if raw else (count, len(getattr(tensor, field)))
        )
        if wanted != found:
            unit = "bytes" if raw else "values"
            raise ModelError(
                f"{where} is damaged: its shape needs {wanted} {unit}, it has {found}; "
                "export it again"
            )
    return size


def _embedded_array(tensor: onnx.TensorProto) -> Array:
    if tensor.HasField("raw_data"):
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        return np.frombuffer(tensor.raw_data, dtype).reshape(tuple(tensor.dims))
    return np.asarray(numpy_helper.to_array(tensor))


def _external_array(tensor: onnx.TensorProto, size: int, folder: Path) -> Array:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    where = f"initializer '{tensor.name}'"
    path = _external_path(entries.get("location", ""), where, folder)
    offset = _number(entries.get("offset", "0"), "offset", where)
    length = _number(entries.get("length", str(size)), "length", where)
    if length != size:
        raise ModelError(
            f"{where} is damaged: its shape needs {size} bytes, its length says {length}; "
            "export it again"
        )
    shape, dtype = tuple(tensor.dims), helper.tensor_dtype_to_np_dtype(tensor.data_type)
    try:
        if path.stat().st_size < offset + size:
            raise ModelError(f"{path} is cut short: it does not hold all of {where}; copy it again")
        # An empty file, or nothing of a file, cannot be mapped.
        return np.memmap(path, dtype, "r", offset, shape) if size else np.empty(shape, dtype)
    except OSError as error:
        raise ModelError(f"cannot read {path}, which holds {where}: {error.strerror}") from error


def _external_path(location: str, where: str, folder: Path) -> Path:
    """Return the file at `location`, which must be in `folder` once all links are followed."""
    try:
        path = (folder / location).resolve()
        inside = bool(location) and path.is_relative_to(folder.resolve())
        there = inside and path.is_file()
    except (OSError, ValueError, RuntimeError):  # too long, a NUL character, links in a circle
        raise ModelError(f"{where} keeps its data in {location!r}, which is no file") from None
    if not inside:
        raise ModelError(
            f"{where} keeps its data outside the model's folder ({location!r}); copy the file "
            "into the folder and save the model with that location"
        )
    if not there:
        raise ModelError(f"{where} keeps its data in {path}, which is not there; copy it along")
    return path


def _number(text: str, key: str, where: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= _LONGEST_NUMBER):
        raise ModelError(f"{where} is damaged: the {key} of its data is {text!r}; export it again")
    return int(text)
