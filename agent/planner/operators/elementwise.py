"""Operators that compute each element, or each position, from the same one of their inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.planner.operators.entry import (
    UNEVEN,
    Operator,
    broadcast,
    everything,
    parameters,
    same,
    whole_on,
    wholly,
)

if TYPE_CHECKING:
    from agent.planner.graph import Graph, Node
    from agent.planner.operators.entry import Maps

_SOFTMAX_ON_ONE_AXIS = 13

ELEMENTWISE = (
    "Relu", "LeakyRelu", "Sigmoid", "Tanh", "Elu", "Selu", "Celu", "HardSigmoid", "HardSwish",
    "Mish", "Gelu", "Softplus", "Softsign", "ThresholdedRelu", "PRelu", "Swish", "Abs", "Neg",
    "Sqrt", "Exp", "Log", "Erf", "Sin", "Cos", "Tan", "Asin", "Acos", "Atan", "Sinh", "Cosh",
    "Asinh", "Acosh", "Atanh", "Ceil", "Floor", "Round", "Reciprocal", "Sign", "Cast", "CastLike",
    "Identity", "Add", "Sub", "Mul", "Div", "Mod", "Max", "Min", "Mean", "Pow", "Sum", "Where",
    "And", "Or", "Xor", "Not", "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual",
    "IsNaN", "IsInf", "Shrink", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot",
)  # fmt: skip
# The last few elements of a tensor are computed by other functions than the rest.
_BY_POSITION = frozenset(
    {"Elu", "Selu", "Celu", "Mish", "Softplus", "Log", "Pow"}
    | {"Sin", "Cos", "Asin", "Acos", "Atan"}
)
MICROSOFT_ELEMENTWISE = ("BiasGelu", "FastGelu", "Gelu", "QuickGelu")


def elementwise(node: Node, graph: Graph) -> Operator:
    """Describe an operator that broadcasts its inputs as numpy does."""
    output = graph.shape(node.outputs[0])
    if graph.threads and node.op in _BY_POSITION:
        return everything(node, graph, UNEVEN)
    return Operator(tuple(broadcast(graph.shape(n), output) if n else None for n in node.inputs))


def with_parameters(node: Node, graph: Graph) -> Operator:
    """Clip, Dropout and the like: the first input is the tensor, the others are parameters."""
    output = graph.shape(node.outputs[0])
    return Operator((broadcast(output, output), *parameters(node, graph)))


def batch_normalization(node: Node, graph: Graph) -> Operator:
    """Describe BatchNormalization: four parameters for each channel."""
    output = graph.shape(node.outputs[0])
    if node.attributes.get("training_mode", 0):
        return everything(node, graph, "is in training mode")
    return Operator((broadcast(output, output), *[(same(1),)] * 4))


def linear_quantization(node: Node, graph: Graph) -> Operator:
    """Describe QuantizeLinear and DequantizeLinear, by tensor or by channel."""
    shape = graph.shape(node.outputs[0])
    if node.attributes.get("block_size", 0):
        return everything(node, graph, "is quantized in blocks")
    axis = node.attributes.get("axis", 1) % max(1, len(shape))

    def by_channel(name: str) -> Maps:
        own = graph.shape(name)
        return (same(axis),) if len(own) == 1 and own[0] > 1 else wholly(own)

    rest = tuple(by_channel(name) if name else None for name in node.inputs[1:])
    return Operator((broadcast(shape, shape), *rest))


def softmax(node: Node, graph: Graph) -> Operator:
    """Describe Softmax, LogSoftmax and Hardmax, which need the whole of their axis."""
    rank = len(graph.shape(node.outputs[0]))
    if graph.opset >= _SOFTMAX_ON_ONE_AXIS:
        return whole_on((node.attributes.get("axis", -1) % rank,), node, graph)
    # Before opset 13 everything from `axis` on was flattened to one row.
    return whole_on(range(node.attributes.get("axis", 1) % rank, rank), node, graph)


def lrn(node: Node, graph: Graph) -> Operator:
    """Describe LRN, which looks at neighbouring channels."""
    if graph.threads:
        return everything(node, graph, UNEVEN)
    return whole_on((1,), node, graph)


def on_one_axis(node: Node, graph: Graph) -> Operator:
    """Describe LpNormalization and CumSum-like operators of the axis in their attribute."""
    return whole_on(
        (node.attributes.get("axis", -1) % len(graph.shape(node.outputs[0])),), node, graph
    )


def layer_normalization(node: Node, graph: Graph) -> Operator:
    """Describe LayerNormalization, which mixes all axes from `axis` on."""
    output = graph.shape(node.outputs[0])
    first = node.attributes.get("axis", -1) % len(output)
    described = whole_on(range(first, len(output)), node, graph)
    rest = tuple(broadcast(graph.shape(n), output) if n else None for n in node.inputs[1:])
    return Operator((described.maps[0], *rest), described.fixed, described.reason)


def instance_normalization(node: Node, graph: Graph) -> Operator:
    """Describe InstanceNormalization, which needs each channel's whole map."""
    described = whole_on(range(2, len(graph.shape(node.outputs[0]))), node, graph)
    return Operator((described.maps[0], (same(1),), (same(1),)), described.fixed, described.reason)
