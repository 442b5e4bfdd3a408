"""Importing a model: checked, simplified, and taken apart into a small graph and weights.

Large initializers become inputs of the graph before onnxruntime simplifies it, so that weights are
neither copied nor changed: shape arithmetic, Identity, Dropout and the like are folded, while what
onnxruntime fuses with weights (Conv with BatchNormalization) is fused by each device's session, as
it is in the whole model.
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass, field
from math import gcd, prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper

from agent.errors import ModelError
from agent.planner import refusals
from agent.planner.graph import read_graph
from agent.planner.inference import infer_shapes, without_shape
from agent.planner.model_file import (
    constants_to_initializers,
    inline_functions,
    load,
    take_large_initializers,
)
from agent.planner.quantization import as_the_runtime_has_it
from agent.wire.model import WeightEntry
from agent.wire.program import BlobRef, blob_ref

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from agent.planner.model_file import Array

_PRODUCTS = frozenset({"Gemm", "MatMul"})
_MATRIX = 2
# A device that needs some rows of a weight fetches the parts that hold them.
PART_BYTES = 8 << 20
PAGE_BYTES = 64 << 10


@dataclass(frozen=True)
class ImportedModel:
    """A model ready to be planned and shipped.

    `graph` is an ONNX graph in which every large initializer is an input, named as in `weights`;
    `path` is the file that it came from.
    """

    name: str
    path: Path
    graph: bytes
    weights: tuple[WeightEntry, ...]
    _arrays: Mapping[str, Array] = field(repr=False)

    def blobs(self) -> Iterator[tuple[BlobRef, bytes | memoryview]]:
        """Yield each blob once: the graph, then every part of every weight."""
        yield blob_ref(self.graph), self.graph
        seen = set()
        for entry in self.weights:
            for ref, content in zip(entry.parts, _parts(self._arrays[entry.name]), strict=True):
                if ref.digest not in seen:
                    seen.add(ref.digest)
                    yield ref, content

    def arrays(self) -> dict[str, Array]:
        """Return the weights; those that the file keeps externally are mapped, not read."""
        return dict(self._arrays)


def import_model(path: Path) -> ImportedModel:
    """Read, check and simplify the ONNX model at `path`.

    Raises:
        ModelError: if HaloMQ cannot serve it; says which node or value is why, and what to do.
    """
    model = load(path)
    refusals.check_opset(model)
    model, arrays = _taken_apart(model, path.parent)
    refusals.check_structure(model.graph)
    refusals.check_operators(model.graph, simplified=False)
    refusals.check_input(model.graph, arrays)
    refusals.check_sizes(_with_shapes(model).graph, arrays)
    refusals.check_declared(model)
    if not _is_best_as_it_is(model):
        # Operators that onnxruntime takes apart as functions leave shape arithmetic behind.
        model = _simplified(_simplified(model))
    as_the_runtime_has_it(model.graph)
    arrays |= take_large_initializers(model, path.parent)
    arrays = _stored_by_features(model.graph, _drop_unused(model, arrays))
    model = _with_shapes(model)
    refusals.check_operators(model.graph, simplified=True)
    refusals.check_boxes(model.graph)
    refusals.check_sizes(model.graph, arrays)
    graph = model.SerializeToString(deterministic=True)
    weights = tuple(_entry(name, array) for name, array in arrays.items())
    refusals.check_windows(read_graph(graph, weights))
    return ImportedModel(_name(path), path, graph, weights, arrays)


def _taken_apart(model: onnx.ModelProto, folder: Path) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """Return a model's graph without functions, Constant nodes and large weights, and these."""
    constants_to_initializers(model.graph)
    arrays = take_large_initializers(model, folder)
    if model.functions:
        model = inline_functions(model)
        constants_to_initializers(model.graph)
        arrays |= take_large_initializers(model, folder)
    return model, arrays


def _is_best_as_it_is(model: onnx.ModelProto) -> bool:
    """Tell whether a model is of 16-bit floats and needs no folding.

    Simplified, it would be of 32-bit floats where a processor has no kernels for 16, and round
    less than the model does.
    """
    half = onnx.TensorProto.FLOAT16
    typed = [value.type.tensor_type.elem_type for value in model.graph.input]
    typed += [tensor.data_type for tensor in model.graph.initializer]
    return half in typed and not without_shape(infer_shapes(model).graph)


def _simplified(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return what onnxruntime's basic, exact optimisations make of a model."""
    with tempfile.TemporaryDirectory(prefix="halomq-") as folder:
        simplified = Path(folder, "simplified.onnx")
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(simplified)
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        try:
            ort.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's exceptions have no common base
            reason = refusals.runtime_reason(error, model.graph.node)
            raise ModelError(f"onnxruntime cannot load the model: {reason}") from error
        return onnx.load(str(simplified))


def _drop_unused(model: onnx.ModelProto, arrays: dict[str, Array]) -> dict[str, Array]:
    """Remove nodes and weights on which no output depends; return the weights that remain."""
    graph = model.graph
    used = {value.name for value in graph.output}
    kept: list[onnx.NodeProto] = []
    for node in reversed(graph.node):
        if used.intersection(node.output):
            used.update(node.input)
            kept.append(node)
    inputs = [v for v in graph.input if v.name in used or v.name not in arrays]
    constants = [tensor for tensor in graph.initializer if tensor.name in used]
    for repeated, values in (
        (graph.node, kept[::-1]),
        (graph.input, inputs),
        (graph.initializer, constants),
    ):
        _replace(repeated, values)
    return {name: array for name, array in arrays.items() if name in used}


def _replace(repeated: Any, values: list[Any]) -> None:
    del repeated[:]
    repeated.extend(values)


def _stored_by_features(graph: onnx.GraphProto, arrays: dict[str, Array]) -> dict[str, Array]:
    """Store weights that MatMul and Gemm read by columns as rows, one for each output feature.

    A device that computes some of the features then fetches only their rows. The graph turns them
    back; onnxruntime does that once, when it loads a segment, so that kernels and results stay the
    same. The arrays are views: nothing is copied before a part is read.
    """
    other: set[str] = {value.name for value in graph.output}
    columns: set[str] = set()
    for node in graph.node:
        crossed = any(a.name == "transB" and a.i for a in node.attribute)
        product = node.op_type in _PRODUCTS and not node.domain and not crossed
        for place, name in enumerate(node.input):
            (columns if product and place == 1 else other).add(name)
    turned = [n for n, array in arrays.items() if n in columns - other and array.ndim == _MATRIX]
    taken = {*arrays, *(name for node in graph.node for name in (*node.input, *node.output))}
    stored, nodes, inputs = dict(arrays), [], {}
    for name in turned:
        rows = f"{name}.rows"
        while rows in taken:
            rows += "_"
        taken.add(rows)
        stored[rows] = stored.pop(name).T
        nodes.append(helper.make_node("Transpose", [rows], [name], name=rows, perm=[1, 0]))
        kind = helper.np_dtype_to_tensor_dtype(stored[rows].dtype)
        inputs[name] = helper.make_tensor_value_info(rows, kind, stored[rows].shape)
    _replace(graph.node, [*nodes, *graph.node])
    _replace(graph.input, [inputs.get(value.name, value) for value in graph.input])
    return stored


def _with_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with the shape of every tensor that can be known, and no free text."""
    inferred = infer_shapes(model)
    for node in inferred.graph.node:
        node.ClearField("doc_string")
    used = {node.domain for node in inferred.graph.node} | {"", "ai.onnx"}
    _replace(inferred.opset_import, [o for o in inferred.opset_import if o.domain in used])
    del inferred.metadata_props[:]
    return inferred


def _entry(name: str, array: Array) -> WeightEntry:
    parts = tuple(blob_ref(part) for part in _parts(array))
    return WeightEntry(name, array.dtype.name, tuple(array.shape), parts)


def _parts(array: Array) -> Iterator[memoryview]:
    """Yield the bytes of an array in parts of whole rows, of 8 MiB at most (or one row).

    Where rows allow, a part is a multiple of any device's page size, so that devices can map
    consecutive parts one behind the other.
    """
    row = prod(array.shape[1:]) * array.itemsize
    step = max(1, PART_BYTES // row)
    aligned = PAGE_BYTES // gcd(row, PAGE_BYTES)
    if step > aligned:
        step -= step % aligned
    for start in range(0, array.shape[0], step):
        rows = np.ascontiguousarray(array[start : start + step])
        yield rows.reshape(-1).view(np.uint8).data


def _name(path: Path) -> str:
    """Return the file's name as a model name: letters, digits, dots, dashes, underscores."""
    cleaned = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).lstrip("._-")[:64]
    return cleaned or "model"
