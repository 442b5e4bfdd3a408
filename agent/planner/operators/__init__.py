"""The one table of operators: which part of each input a part of the output needs.

Convolutions, poolings, sums, heads and operators that nobody taught the planner go through the same
code; adding an operator is one entry here (see docs/operators.md). What an entry says, and how a
tile is written, is in `entry`. An operator that is not in the table needs all of its inputs and
gives all of its outputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.planner.blocked import loses_its_layout
from agent.planner.operators import elementwise as each
from agent.planner.operators import kernels, products, quantized, reductions, resize, shapes
from agent.planner.operators.entry import UNEVEN, AxisMap, Operator, Tile, Writer, everything

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.planner.graph import Graph, Node

__all__ = ["AxisMap", "Operator", "Tile", "Writer", "describe"]

_REDUCTIONS = (
    "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceProd",
    "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp",
)  # fmt: skip
_ONNX: dict[str, Callable[[Node, Graph], Operator]] = {
    **dict.fromkeys(each.ELEMENTWISE, each.elementwise),
    **dict.fromkeys(("Clip", "Dropout"), each.with_parameters),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), each.linear_quantization),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), each.softmax),
    **dict.fromkeys(("MaxPool", "AveragePool", "LpPool"), kernels.pool),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"), reductions.global_pool),
    **dict.fromkeys(
        _REDUCTIONS,
        reductions.reduce,
    ),
    **dict.fromkeys(("ArgMax", "ArgMin"), reductions.arg_extreme),
    **dict.fromkeys(("Flatten", "Reshape", "Squeeze", "Unsqueeze"), shapes.reshape),
    **dict.fromkeys(("Resize", "Upsample"), resize.resize),
    "BatchNormalization": each.batch_normalization,
    "InstanceNormalization": each.instance_normalization,
    "LayerNormalization": each.layer_normalization,
    "LpNormalization": each.on_one_axis,
    "LRN": each.lrn,
    "Conv": kernels.conv,
    "ConvInteger": kernels.conv_integer,
    "ConvTranspose": kernels.conv_transpose,
    "QLinearConv": kernels.qlinear_conv,
    "Gemm": products.gemm,
    "MatMul": products.matmul,
    "MatMulInteger": products.matmul,
    "QLinearMatMul": products.qlinear_matmul,
    "Concat": shapes.concat,
    "DepthToSpace": shapes.depth_to_space,
    "Expand": shapes.expand,
    "Gather": shapes.gather,
    "Pad": shapes.pad,
    "Slice": shapes.slice_,
    "SpaceToDepth": shapes.space_to_depth,
    "Tile": shapes.tile_,
    "Transpose": shapes.transpose,
}
_MICROSOFT: dict[str, Callable[[Node, Graph], Operator]] = {
    **dict.fromkeys(each.MICROSOFT_ELEMENTWISE, each.elementwise),
    **dict.fromkeys(("QLinearAdd", "QLinearMul"), quantized.binary),
    **dict.fromkeys(("QLinearLeakyRelu", "QLinearSigmoid"), quantized.unary),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), each.linear_quantization),
    "FusedConv": kernels.fused_conv,
    "QGemm": quantized.gemm,
    "QLinearAveragePool": kernels.pool,
    "QLinearConcat": shapes.qlinear_concat,
    "QLinearGlobalAveragePool": reductions.global_pool,
    "QLinearSoftmax": quantized.softmax,
}
_LOWERED: dict[str, Callable[[Node, Graph], Operator]] = {
    reductions.PARTIAL: reductions.partial,
    reductions.COMBINED: reductions.combined,
}
_TABLES = {"": _ONNX, "ai.onnx": _ONNX, "com.microsoft": _MICROSOFT, "halomq": _LOWERED}


def describe(node: Node, graph: Graph) -> Operator:
    """Return the table's entry for `node`; unknown operators need everything whole."""
    build = _TABLES.get(node.domain, {}).get(node.op)
    used = [name for name in node.outputs if name]
    if build is None:
        return everything(node, graph, "is not an operator that HaloMQ can split")
    if len(used) != 1 or any(name in graph.consumers for name in node.outputs[1:]):
        return everything(node, graph, "has several outputs")
    if graph.threads and loses_its_layout(node, graph):
        return everything(node, graph, UNEVEN)
    return build(node, graph)
