"""The one table of operators: which part of each input a part of the output needs.

Every operator is described by the same few facts, so that convolutions, poolings, sums, heads and
operators that nobody taught the planner go through the same code:

- for each axis of each input, an `AxisMap`: the output range [a, b) of one axis needs the input
  range [a * stride + low, (b - 1) * stride + high + 1), clipped to the tensor. With stride s,
  dilation d, kernel k and leading padding p this is the receptive-field equation of
  arXiv 2207.11293 (low = -p, high = d * (k - 1) - p); "same" is stride 1, and "the whole axis" is
  stride 0, so a region is propagated by two products and a clip, whatever the operator;
- the output axes which can only be computed whole (`fixed`), and why;
- its arithmetic per output element, and whether moving bytes limits it rather than arithmetic.

An operator that is not in the table needs all of its inputs and gives all of its outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, NamedTuple

from agent.planner.windows import pads_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agent.planner.graph import Graph, Node

_SOFTMAX_ON_ONE_AXIS = 13
_MATRIX = 2


class AxisMap(NamedTuple):
    """Output range [a, b) of `axis` needs input [a * stride + low, (b - 1) * stride + high + 1)."""

    axis: int
    stride: int
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Operator:
    """One node's entry, for its shapes; `maps` has one item for each input, None where absent."""

    maps: tuple[tuple[AxisMap, ...] | None, ...]
    fixed: tuple[int, ...] = ()
    reason: str = ""
    flops: float = 1.0
    memory_bound: bool = True
    windowed: bool = False
    reshapes: bool = False


def describe(node: Node, graph: Graph) -> Operator:
    """Return the table's entry for `node`; unknown operators need everything whole."""
    build = _TABLE.get(node.op) if node.standard else None
    used = [name for name in node.outputs if name]
    if build is None:
        return _everything(node, graph, "is not an operator that HaloMQ can split")
    if len(used) != 1 or any(name in graph.consumers for name in node.outputs[1:]):
        return _everything(node, graph, "has several outputs")
    return build(node, graph)


def _same(axis: int) -> AxisMap:
    return AxisMap(axis, 1, 0, 0)


def _whole(extent: int) -> AxisMap:
    return AxisMap(0, 0, 0, extent - 1)


def _wholly(shape: Sequence[int]) -> tuple[AxisMap, ...]:
    return tuple(_whole(extent) for extent in shape)


def _all_axes(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(range(len(shape)))


def _everything(node: Node, graph: Graph, reason: str) -> Operator:
    maps = tuple(_wholly(graph.shape(name)) if name else None for name in node.inputs)
    return Operator(maps, _all_axes(graph.shape(node.outputs[0])), reason)


def _broadcast(shape: Sequence[int], output: Sequence[int]) -> tuple[AxisMap, ...]:
    """Map an input of `shape` that numpy's rules broadcast to `output`."""
    lead = len(output) - len(shape)
    return tuple(
        _same(lead + axis) if extent > 1 else _whole(1) for axis, extent in enumerate(shape)
    )


def _elementwise(node: Node, graph: Graph) -> Operator:
    output = graph.shape(node.outputs[0])
    maps = tuple(_broadcast(graph.shape(n), output) if n else None for n in node.inputs)
    return Operator(maps)


def _parameters(node: Node, graph: Graph) -> Operator:
    """Clip, Dropout and the like: the first input is the tensor, the others are parameters."""
    output = graph.shape(node.outputs[0])
    rest = tuple(_wholly(graph.shape(name)) if name else None for name in node.inputs[1:])
    return Operator((_broadcast(output, output), *rest))


def _batch_normalization(node: Node, graph: Graph) -> Operator:
    output = graph.shape(node.outputs[0])
    if node.attributes.get("training_mode", 0):
        return _everything(node, graph, "is in training mode")
    return Operator((_broadcast(output, output), *[(_same(1),)] * 4))


def _conv(node: Node, graph: Graph) -> Operator:
    shape, weight = graph.shape(node.inputs[0]), graph.shape(node.inputs[1])
    output = graph.shape(node.outputs[0])
    if not graph.is_constant(node.inputs[1]):
        return _everything(node, graph, "has a kernel that is computed")
    windows = _windows(node, graph, weight[2:])
    if windows is None:
        return _everything(node, graph, "has padding as wide as its kernel")
    # Without rows to split, channels are: each device then needs some rows of the weight only.
    shards = prod(output[2:]) == 1 and node.attributes.get("group", 1) == 1
    kernel = (_same(1) if shards else _whole(weight[0]), *_wholly(weight[1:]))
    bias = (_same(1) if shards else _whole(weight[0]),)
    maps = ((_same(0), _whole(shape[1]), *windows), kernel, bias)
    return Operator(
        maps[: len(node.inputs)],
        () if shards else (1,),
        "is split by rows, not by channels",
        flops=2.0 * prod(weight[1:]),
        memory_bound=False,
        windowed=True,
    )


def _pool(node: Node, graph: Graph) -> Operator:
    kernel = node.ints("kernel_shape", ())
    if node.attributes.get("ceil_mode", 0) and (
        node.attributes.get("count_include_pad", 0) or max(node.ints("dilations", (1,))) > 1
    ):
        return _everything(node, graph, "rounds up over counted or dilated padding")
    windows = _windows(node, graph, kernel)
    if windows is None:
        return _everything(node, graph, "has padding as wide as its kernel")
    return Operator(((_same(0), _same(1), *windows),), flops=float(prod(kernel)), windowed=True)


def _windows(node: Node, graph: Graph, kernel: Sequence[int]) -> tuple[AxisMap, ...] | None:
    """Return the spatial axes' maps, or None where an output could lie in padding altogether."""
    inner, outer = graph.shape(node.inputs[0])[2:], graph.shape(node.outputs[0])[2:]
    ones = (1,) * len(kernel)
    strides, dilations = node.ints("strides", ones), node.ints("dilations", ones)
    reach = [d * (k - 1) for k, d in zip(kernel, dilations, strict=True)]
    begin = pads_of(node, inner, outer, reach, strides)
    maps = []
    for axis, (extent, count) in enumerate(zip(inner, outer, strict=True)):
        low = -begin[axis]
        high = reach[axis] + low
        if high < 0 or (count - 1) * strides[axis] + low >= extent:
            return None
        maps.append(AxisMap(2 + axis, strides[axis], low, high))
    return tuple(maps)


def _concat(node: Node, graph: Graph) -> Operator:
    output = graph.shape(node.outputs[0])
    joined = node.attributes["axis"] % len(output)
    maps = tuple(
        tuple(
            _whole(extent) if axis == joined else _same(axis)
            for axis, extent in enumerate(graph.shape(name))
        )
        for name in node.inputs
    )
    return Operator(maps, (joined,), "joins its inputs along the axis that is split")


def _whole_on(axes: Sequence[int], shape: Sequence[int]) -> Operator:
    """Describe an operator of one input of the output's shape that mixes values along `axes`."""
    maps = tuple(_whole(n) if axis in axes else _same(axis) for axis, n in enumerate(shape))
    return Operator((maps,), tuple(axes), "needs the whole map")


def _softmax(node: Node, graph: Graph) -> Operator:
    shape = graph.shape(node.outputs[0])
    if graph.opset >= _SOFTMAX_ON_ONE_AXIS:
        return _whole_on((node.attributes.get("axis", -1) % len(shape),), shape)
    # Before opset 13 everything from `axis` on was flattened to one row.
    return _whole_on(range(node.attributes.get("axis", 1) % len(shape), len(shape)), shape)


def _lrn(node: Node, graph: Graph) -> Operator:
    return _whole_on((1,), graph.shape(node.outputs[0]))


def _global_pool(node: Node, graph: Graph) -> Operator:
    shape = graph.shape(node.inputs[0])
    return Operator(((_same(0), _same(1), *_wholly(shape[2:])),), flops=float(prod(shape[2:])))


def _reduce(node: Node, graph: Graph) -> Operator:
    shape = graph.shape(node.inputs[0])
    given: Sequence[int] = node.ints("axes", ())
    if len(node.inputs) > 1 and node.inputs[1]:
        if node.inputs[1] not in graph.constants:
            return _everything(node, graph, "has axes that are computed")
        given = graph.constants[node.inputs[1]].tolist()
    if not given and node.attributes.get("noop_with_empty_axes", 0):
        return _everything(node, graph, "reduces nothing")
    reduced = {axis % len(shape) for axis in given} or set(range(len(shape)))
    keeps, maps, at = node.attributes.get("keepdims", 1), [], 0
    for axis, extent in enumerate(shape):
        maps.append(_whole(extent) if axis in reduced else _same(at))
        at += 1 if keeps or axis not in reduced else 0
    rest = tuple(_wholly(graph.shape(name)) if name else None for name in node.inputs[1:])
    return Operator((tuple(maps), *rest), flops=float(prod(shape[a] for a in reduced)))


def _reshape(node: Node, graph: Graph) -> Operator:
    """Flatten, Reshape, Squeeze and Unsqueeze: axes that keep their extent and place are split."""
    inner, outer = graph.shape(node.inputs[0]), graph.shape(node.outputs[0])
    maps, fixed = list(_wholly(inner)), [a for a, extent in enumerate(outer) if extent > 1]
    for old, new in _runs(inner, outer):
        if len(old) == 1 and len(new) == 1:
            maps[old[0]] = _same(new[0])
            fixed.remove(new[0])
    rest = tuple(_wholly(graph.shape(name)) if name else None for name in node.inputs[1:])
    reason = "changes the shape of the axis that is split"
    return Operator((tuple(maps), *rest), tuple(fixed), reason, flops=0.0, reshapes=True)


def _runs(inner: Sequence[int], outer: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Pair the shortest runs of axes (without those of extent 1) that hold the same elements."""
    old = [axis for axis, extent in enumerate(inner) if extent > 1]
    new = [axis for axis, extent in enumerate(outer) if extent > 1]
    runs: list[tuple[list[int], list[int]]] = []
    while old and new:
        left, right = [old.pop(0)], [new.pop(0)]
        while (a := prod(inner[x] for x in left)) != (b := prod(outer[x] for x in right)):
            if a < b:
                left.append(old.pop(0))
            else:
                right.append(new.pop(0))
        runs.append((left, right))
    return runs


def _transpose(node: Node, graph: Graph) -> Operator:
    rank = len(graph.shape(node.inputs[0]))
    order = node.ints("perm", range(rank)[::-1])
    return Operator((tuple(_same(order.index(axis)) for axis in range(rank)),))


def _gemm(node: Node, graph: Graph) -> Operator:
    left, right = graph.shape(node.inputs[0]), graph.shape(node.inputs[1])
    crossed, rows = bool(node.attributes.get("transA", 0)), bool(node.attributes.get("transB", 0))
    depth = left[0] if crossed else left[1]
    a = (_whole(depth), _same(0)) if crossed else (_same(0), _whole(depth))
    b = (_same(1), _whole(depth)) if rows else (_whole(depth), _whole(right[1]))
    maps: list[tuple[AxisMap, ...]] = [a, b]
    if any(node.inputs[2:]):
        maps.append(_broadcast(graph.shape(node.inputs[2]), graph.shape(node.outputs[0])))
    return Operator(
        tuple(maps),
        () if rows else (1,),
        "" if rows else "keeps its weight by columns (transB=0), which cannot be fetched in part",
        flops=2.0 * depth,
        memory_bound=False,
    )


def _matmul(node: Node, graph: Graph) -> Operator:
    left, right = (graph.shape(name) for name in node.inputs)
    output = graph.shape(node.outputs[0])
    if min(len(left), len(right)) < _MATRIX:
        return _everything(node, graph, "multiplies vectors")
    rank, columns = len(output), right[-1]
    constant = graph.is_constant(node.inputs[1])
    a = (*_broadcast(left[:-2], output[:-2]), _same(rank - 2), _whole(left[-1]))
    last = _whole(columns) if constant else _same(rank - 1)
    b = (*_broadcast(right[:-2], output[:-2]), _whole(right[-2]), last)
    return Operator(
        (a, b),
        (rank - 1,) if constant else (),
        "keeps its weight by columns, which cannot be fetched in part" if constant else "",
        flops=2.0 * left[-1],
        memory_bound=False,
    )


_ELEMENTWISE = (
    "Relu", "LeakyRelu", "Sigmoid", "Tanh", "Elu", "Selu", "Celu", "HardSigmoid", "HardSwish",
    "Mish", "Gelu", "Softplus", "Softsign", "ThresholdedRelu", "PRelu", "Abs", "Neg", "Sqrt",
    "Exp", "Log", "Erf", "Sin", "Cos", "Ceil", "Floor", "Round", "Reciprocal", "Sign", "Cast",
    "Identity", "Add", "Sub", "Mul", "Div", "Mod", "Max", "Min", "Mean", "Pow", "Sum", "Where",
    "And", "Or", "Xor", "Not", "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual",
)  # fmt: skip
_REDUCTIONS = ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2")
_TABLE: dict[str, Callable[[Node, Graph], Operator]] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(_REDUCTIONS, _reduce),
    **dict.fromkeys(("MaxPool", "AveragePool"), _pool),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), _global_pool),
    **dict.fromkeys(("Flatten", "Reshape", "Squeeze", "Unsqueeze"), _reshape),
    **dict.fromkeys(("Softmax", "LogSoftmax"), _softmax),
    **dict.fromkeys(("Clip", "Dropout"), _parameters),
    "BatchNormalization": _batch_normalization,
    "Concat": _concat,
    "Conv": _conv,
    "Gemm": _gemm,
    "LRN": _lrn,
    "MatMul": _matmul,
    "Transpose": _transpose,
}
