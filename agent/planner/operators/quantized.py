"""onnxruntime's own operators on quantized tensors, as its quantizer writes them (QOperator)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.planner.operators.entry import (
    Operator,
    broadcast,
    everything,
    parameters,
    same,
    whole,
    whole_on,
)

if TYPE_CHECKING:
    from agent.planner.graph import Graph, Node


def unary(node: Node, graph: Graph) -> Operator:
    """Describe QLinearLeakyRelu and QLinearSigmoid: (x, scale, zero, scale, zero)."""
    output = graph.shape(node.outputs[0])
    return Operator((broadcast(output, output), *parameters(node, graph)))


def binary(node: Node, graph: Graph) -> Operator:
    """Describe QLinearAdd and QLinearMul: (a, scale, zero, b, scale, zero, scale, zero)."""
    output = graph.shape(node.outputs[0])
    maps = list(parameters(node, graph, 0))
    for index in (0, 3):
        maps[index] = broadcast(graph.shape(node.inputs[index]), output)
    return Operator(tuple(maps))


def softmax(node: Node, graph: Graph) -> Operator:
    """Describe QLinearSoftmax."""
    rank = len(graph.shape(node.outputs[0]))
    axis = node.attributes.get("axis", -1) % rank
    single = node.attributes.get("opset", graph.opset) >= 13  # noqa: PLR2004 - as for Softmax
    return whole_on((axis,) if single else range(axis, rank), node, graph)


def gemm(node: Node, graph: Graph) -> Operator:
    """Describe QGemm: (a, scale, zero, b, scale, zero, bias, scale, zero), b by rows or columns."""
    if node.attributes.get("transA", 0):
        return everything(node, graph, "multiplies by a transposed map")
    depth = graph.shape(node.inputs[0])[1]
    features = graph.shape(node.outputs[0])[1]
    rows = bool(node.attributes.get("transB", 0))
    maps = list(parameters(node, graph, 0))
    maps[0] = (same(0), whole(depth))
    by_feature = [i for i in (4, 5, 6) if node.inputs[i] and graph.shape(node.inputs[i]) != ()]
    if rows:
        maps[3] = (same(1), whole(depth))
        for index in by_feature:
            own = graph.shape(node.inputs[index])
            maps[index] = (same(1),) if own == (features,) else broadcast(own, (1, features))
    return Operator(
        tuple(maps),
        () if rows else (1,),
        "" if rows else "keeps its weight by columns, which cannot be fetched in part",
        flops=2.0 * depth,
        memory_bound=False,
    )
