"""Matrix products: Gemm and MatMul, sharded by output features where the weight allows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.planner.operators.entry import Operator, broadcast, everything, parameters, same, whole
from agent.planner.operators.rounding import products
from agent.planner.quantization import is_on_integers

if TYPE_CHECKING:
    from agent.planner.graph import Graph, Node
    from agent.planner.operators.entry import Maps
    from agent.planner.operators.rounding import Keeps

_MATRIX = 2
_BY_COLUMNS = "keeps its weight by columns, which cannot be fetched in part"


def gemm(node: Node, graph: Graph) -> Operator:
    """Describe Gemm."""
    left, right = graph.shape(node.inputs[0]), graph.shape(node.inputs[1])
    crossed, rows = bool(node.attributes.get("transA", 0)), bool(node.attributes.get("transB", 0))
    depth = left[0] if crossed else left[1]
    by_columns = not rows and node.inputs[1] in graph.weights
    a = (whole(depth), same(0)) if crossed else (same(0), whole(depth))
    features = whole(right[1]) if by_columns else same(1)
    b = (same(1), whole(depth)) if rows else (whole(depth), features)
    maps: list[Maps] = [a, b]
    if any(node.inputs[2:]):
        maps.append(broadcast(graph.shape(node.inputs[2]), graph.shape(node.outputs[0])))
    return Operator(
        tuple(maps),
        (1,) if by_columns else (),
        _BY_COLUMNS if by_columns else "",
        flops=2.0 * depth,
        memory_bound=False,
        keeps=_keeps(node, graph, depth),
    )


def _keeps(node: Node, graph: Graph, depth: int) -> Keeps | None:
    """Return the rule of a product of floats, which onnxruntime packs where it knows the weight."""
    floats = graph.tensors[node.outputs[0]].dtype in {"float32", "float64"}
    packed = graph.is_folded(node.inputs[1]) or is_on_integers(node, graph)
    return products(depth, graph.threads) if graph.threads and floats and not packed else None


def matmul(node: Node, graph: Graph) -> Operator:
    """Describe MatMul and MatMulInteger of at least two axes each."""
    return _product(node, graph, 0, 1)


def qlinear_matmul(node: Node, graph: Graph) -> Operator:
    """Describe QLinearMatMul: (a, scale, zero, b, scale, zero, scale, zero)."""
    return _product(node, graph, 0, 3)


def _product(node: Node, graph: Graph, first: int, second: int) -> Operator:
    left, right = graph.shape(node.inputs[first]), graph.shape(node.inputs[second])
    output = graph.shape(node.outputs[0])
    if min(len(left), len(right)) < _MATRIX:
        return everything(node, graph, "multiplies vectors")
    rank, columns = len(output), right[-1]
    # Scales by column would have to be cut along with the columns.
    by_columns = node.inputs[second] in graph.weights or any(
        graph.shape(name) not in {(), (1,)}
        for place, name in enumerate(node.inputs)
        if name and place not in {first, second}
    )
    a = (*broadcast(left[:-2], output[:-2]), same(rank - 2), whole(left[-1]))
    last = whole(columns) if by_columns else same(rank - 1)
    b = (*broadcast(right[:-2], output[:-2]), whole(right[-2]), last)
    maps = list(parameters(node, graph, 0))
    maps[first], maps[second] = a, b
    return Operator(
        tuple(maps),
        (rank - 1,) if by_columns else (),
        _BY_COLUMNS if by_columns else "",
        flops=2.0 * left[-1],
        memory_bound=False,
        keeps=_keeps(node, graph, left[-1]),
    )
