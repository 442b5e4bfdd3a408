"""A model as the planner sees it: nodes in topological order, and the static shape of every tensor.

Large initializers are known by name, dtype, shape and blobs only (`weights`); small ones are arrays
(`constants`), and what is computed from these alone (a weight that is dequantized or transposed) is
an `expression`. Everything else that nodes read or write is an activation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import numpy_helper

from agent.errors import ModelError
from agent.planner.blocked import blocked_tensors

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from agent.wire.model import WeightEntry

# What travels in messages and is held in numpy arrays; strings, sequences and bfloat16 are not.
_DTYPES: dict[int, str] = {
    onnx.TensorProto.BOOL: "bool",
    onnx.TensorProto.INT8: "int8",
    onnx.TensorProto.INT16: "int16",
    onnx.TensorProto.INT32: "int32",
    onnx.TensorProto.INT64: "int64",
    onnx.TensorProto.UINT8: "uint8",
    onnx.TensorProto.UINT16: "uint16",
    onnx.TensorProto.UINT32: "uint32",
    onnx.TensorProto.UINT64: "uint64",
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.DOUBLE: "float64",
}
_STANDARD_DOMAINS = ("", "ai.onnx")


@dataclass(frozen=True, slots=True)
class Tensor:
    """An activation: numpy dtype name and static shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return np.dtype(self.dtype).itemsize


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One ONNX node; an absent optional input or output has the empty name.

    `domain` is "" for ONNX's own operators and "halomq" for steps of an operator that was taken
    apart (`agent/planner/lowering.py`); such a step's `origin` are the nodes that it stands for.
    """

    index: int
    op: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    proto: onnx.NodeProto
    origin: tuple[Node, ...] = ()

    @property
    def label(self) -> str:
        """How messages name the node: its type, and its own name or its first output's."""
        if self.origin:
            return f"{self.op.lower()} step of {self.origin[0].label}"
        return f"{self.op} '{self.proto.name or self.outputs[0]}'"

    def ints(self, name: str, default: Sequence[int]) -> tuple[int, ...]:
        """Return a list attribute, or `default` where the node has none."""
        return tuple(int(value) for value in self.attributes.get(name, default))


@dataclass(frozen=True, eq=False)
class Graph:
    """A model with one image input, batch 1 and only static shapes.

    `nodes` are in topological order and compute activations; `expressions` are the nodes, by their
    output, that depend on weights alone. `tensors` are the outputs of both, and the input.
    `threads` is not 0 where every bit is to be what one device computes: the most threads with
    which a device runs a segment, on which the order of sums depends.
    """

    nodes: tuple[Node, ...]
    expressions: Mapping[str, Node]
    tensors: Mapping[str, Tensor]
    input: str
    outputs: tuple[str, ...]
    weights: Mapping[str, WeightEntry]
    constants: Mapping[str, np.ndarray[Any, Any]]
    opsets: tuple[tuple[str, int], ...]
    ir_version: int
    threads: int = 0

    @property
    def opset(self) -> int:
        """Version of ONNX's own operator set."""
        return next(version for domain, version in self.opsets if domain in _STANDARD_DOMAINS)

    @cached_property
    def consumers(self) -> Mapping[str, tuple[Node, ...]]:
        """The nodes that read each tensor."""
        readers: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(filter(None, node.inputs)):
                readers.setdefault(name, []).append(node)
        return {name: tuple(nodes) for name, nodes in readers.items()}

    @cached_property
    def blocked(self) -> frozenset[str]:
        """The tensors that are in onnxruntime's blocked layout in the whole model."""
        return blocked_tensors(self)

    @cached_property
    def producers(self) -> Mapping[str, Node]:
        """The node that writes each tensor."""
        return {name: node for node in self.nodes for name in node.outputs if name}

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of an activation, weight or constant."""
        if name in self.tensors:
            return self.tensors[name].shape
        if name in self.weights:
            return self.weights[name].shape
        return tuple(self.constants[name].shape)

    def is_constant(self, name: str) -> bool:
        """Tell whether `name` is known before any request."""
        return name in self.constants or name in self.weights or name in self.expressions

    def is_folded(self, name: str) -> bool:
        """Tell whether onnxruntime knows a constant when it loads a graph.

        It does not compute weights that are dequantized before they are used.
        """
        node = self.expressions.get(name)
        if node is None:
            return name in self.constants or name in self.weights
        return node.op != "DequantizeLinear" and all(map(self.is_folded, filter(None, node.inputs)))

    def itemsize(self, name: str) -> int:
        """Return the bytes of one element of an activation, weight or constant."""
        if name in self.tensors:
            return self.tensors[name].itemsize
        if name in self.weights:
            return np.dtype(self.weights[name].dtype).itemsize
        return self.constants[name].itemsize


def read_graph(graph: bytes, weights: Sequence[WeightEntry]) -> Graph:
    """Read a graph that `import_model` wrote, and check that the planner can use it.

    Args:
        graph: an ONNX model whose large initializers are graph inputs, named as in `weights`.
        weights: the large initializers.

    Raises:
        ModelError: if it is no such graph, or a tensor has no static shape.
    """
    try:
        model = onnx.load_model_from_string(graph)
    except DecodeError as error:
        raise ModelError(f"the graph is damaged: {error}") from error
    entries = {entry.name: entry for entry in weights}
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    nodes = tuple(node_of(index, proto) for index, proto in enumerate(model.graph.node))
    known = entries.keys() | constants.keys()
    inputs = [value.name for value in model.graph.input if value.name not in known]
    if len(inputs) != 1:
        raise ModelError(f"the graph has {len(inputs)} inputs ({', '.join(inputs)}), not one")
    outputs = tuple(value.name for value in model.graph.output)
    expressions = _expressions(nodes, known, outputs)
    activations = [node for node in nodes if node.outputs[0] not in expressions]
    return Graph(
        nodes=tuple(replace(node, index=index) for index, node in enumerate(activations)),
        expressions=expressions,
        tensors=_tensors(model.graph, nodes, known),
        input=inputs[0],
        outputs=outputs,
        weights=entries,
        constants=constants,
        opsets=tuple((o.domain, o.version) for o in model.opset_import),
        ir_version=model.ir_version,
    )


def tensor_of(value: onnx.ValueInfoProto, where: str) -> Tensor:
    """Return a value's dtype and static shape.

    Raises:
        ModelError: if it is no tensor, of no usable dtype, or not of static shape; names `where`.
    """
    if not value.type.HasField("tensor_type"):
        raise ModelError(f"{where}: '{value.name}' is not a tensor, which HaloMQ cannot send")
    kind = value.type.tensor_type
    if kind.elem_type not in _DTYPES:
        name = onnx.TensorProto.DataType.Name(kind.elem_type)
        raise ModelError(f"{where}: '{value.name}' has type {name}, which HaloMQ cannot send")
    dims = kind.shape.dim
    if not kind.HasField("shape") or any(not d.HasField("dim_value") for d in dims):
        raise ModelError(
            f"{where}: the size of '{value.name}' depends on the data or is not stated; "
            "export the model with fixed sizes and without what follows this node"
        )
    shape = tuple(d.dim_value for d in dims)
    if any(extent <= 0 for extent in shape):
        raise ModelError(f"{where}: '{value.name}' has the shape {shape}, which holds nothing")
    return Tensor(value.name, _DTYPES[kind.elem_type], shape)


def node_of(index: int, proto: onnx.NodeProto, origin: tuple[Node, ...] = ()) -> Node:
    """Read one node."""
    return Node(
        index=index,
        op=proto.op_type,
        domain="" if proto.domain in _STANDARD_DOMAINS else proto.domain,
        inputs=tuple(proto.input),
        outputs=tuple(proto.output),
        attributes={a.name: onnx.helper.get_attribute_value(a) for a in proto.attribute},
        proto=proto,
        origin=origin,
    )


def _expressions(
    nodes: Sequence[Node], known: Iterable[str], outputs: Sequence[str]
) -> dict[str, Node]:
    """Return the nodes of one output that depend on nothing but weights and constants."""
    constant, found = set(known), {}
    for node in nodes:
        if (
            len(node.outputs) == 1
            and all(name in constant for name in node.inputs if name)
            and node.outputs[0] not in outputs
        ):
            constant.add(node.outputs[0])
            found[node.outputs[0]] = node
    return found


def _tensors(graph: onnx.GraphProto, nodes: Sequence[Node], known: set[str]) -> dict[str, Tensor]:
    values = {v.name: v for v in (*graph.value_info, *graph.output, *graph.input)}
    tensors = {
        v.name: tensor_of(v, f"input '{v.name}'") for v in graph.input if v.name not in known
    }
    for node in nodes:
        for name in filter(None, node.inputs):
            if name not in tensors and name not in known:
                raise ModelError(f"{node.label} reads '{name}', which nothing before it writes")
        for name in filter(None, node.outputs):
            value = values.get(name, onnx.ValueInfoProto(name=name))
            tensors[name] = tensor_of(value, node.label)
    for value in graph.output:
        if value.name not in tensors:
            raise ModelError(f"no node writes the output '{value.name}'")
    return tensors
