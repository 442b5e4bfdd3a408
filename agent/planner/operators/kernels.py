"""Convolutions and poolings: operators that move a window over the map."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

from agent.planner.blocked import is_blocked_conv
from agent.planner.operators.entry import (
    UNEVEN,
    AxisMap,
    Operator,
    everything,
    parameters,
    same,
    whole,
    wholly,
)
from agent.planner.operators.rounding import transposed_windows, windows
from agent.planner.quantization import is_on_integers, on_x86
from agent.planner.windows import pads_of, tile_pads

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.geometry import Region
    from agent.planner.graph import Graph, Node
    from agent.planner.operators.entry import Maps, Tile, Writer

_MAP_RANK = 4
_WIDE_PADS = "has padding as wide as its kernel"


def conv(node: Node, graph: Graph) -> Operator:
    """Describe Conv (x, w, bias)."""
    return _as_product(_convolution(node, graph, weight=1, by_filter=(2,)), node, graph)


def _as_product(described: Operator, node: Node, graph: Graph) -> Operator:
    """Have a convolution on floats keep every bit, where it must and is no kernel of its own."""
    dtype = graph.tensors[node.outputs[0]].dtype
    blocked = (
        on_x86()
        and dtype == "float32"
        and len(graph.shape(node.outputs[0])) == _MAP_RANK
        and is_blocked_conv(node, graph)
    )
    exact = blocked or is_on_integers(node, graph) or not graph.is_constant(node.inputs[1])
    if not graph.threads or exact:
        return described
    depth = prod(graph.shape(node.inputs[1])[1:])
    return replace(described, keeps=windows(depth, graph.threads))


def conv_integer(node: Node, graph: Graph) -> Operator:
    """Describe ConvInteger (x, w, zero, zero)."""
    return _convolution(node, graph, weight=1, by_filter=(3,))


def qlinear_conv(node: Node, graph: Graph) -> Operator:
    """Describe QLinearConv (x, scale, zero, w, scale, zero, scale, zero, bias)."""
    return _convolution(node, graph, weight=3, by_filter=(4, 5, 8))


def fused_conv(node: Node, graph: Graph) -> Operator:
    """Describe onnxruntime's FusedConv (x, w, bias, sum)."""
    described = _convolution(node, graph, weight=1, by_filter=(2,))
    if len(node.inputs) > 3 and node.inputs[3]:  # noqa: PLR2004
        return everything(node, graph, "adds another tensor inside its kernel")
    return _as_product(described, node, graph)


def _convolution(node: Node, graph: Graph, weight: int, by_filter: tuple[int, ...]) -> Operator:
    """Describe a convolution whose inputs in `by_filter` have one value for each filter."""
    shape, kernel = graph.shape(node.inputs[0]), graph.shape(node.inputs[weight])
    output = graph.shape(node.outputs[0])
    if not graph.is_constant(node.inputs[weight]):
        return everything(node, graph, "has a kernel that is computed")
    windows = _windows(node, graph, kernel[2:])
    if windows is None:
        return everything(node, graph, _WIDE_PADS)
    # Without rows to split, channels are: each device then needs some rows of the weight only.
    shards = prod(output[2:]) == 1 and node.attributes.get("group", 1) == 1
    maps = list(parameters(node, graph, 0))
    maps[0] = (same(0), whole(shape[1]), *windows)
    maps[weight] = (same(1) if shards else whole(kernel[0]), *wholly(kernel[1:]))
    for index in by_filter:
        if index < len(node.inputs) and node.inputs[index]:
            own = graph.shape(node.inputs[index])
            maps[index] = (same(1),) if shards and own == kernel[:1] else wholly(own)
    return Operator(
        tuple(maps),
        () if shards else (1,),
        "is split by rows and columns, not by channels",
        flops=2.0 * prod(kernel[1:]),
        memory_bound=False,
        write=_with_pads,
    )


def pool(node: Node, graph: Graph) -> Operator:
    """Describe MaxPool, AveragePool and LpPool, and their quantized forms."""
    kernel = node.ints("kernel_shape", ())
    if node.attributes.get("channels_last", 0):
        return everything(node, graph, "keeps channels last")
    if node.attributes.get("ceil_mode", 0) and (
        node.attributes.get("count_include_pad", 0) or max(node.ints("dilations", (1,))) > 1
    ):
        return everything(node, graph, "rounds up over counted or dilated padding")
    if graph.threads and _averages_integers(node, graph):
        return everything(node, graph, UNEVEN)
    windows = _windows(node, graph, kernel)
    if windows is None:
        return everything(node, graph, _WIDE_PADS)
    maps = ((same(0), same(1), *windows), *parameters(node, graph))
    return Operator(maps, flops=float(prod(kernel)), write=_with_pads)


def _averages_integers(node: Node, graph: Graph) -> bool:
    """Tell whether a pooling averages integers.

    Of averages that lie halfway between two of them onnxruntime rounds the last few of a tensor
    otherwise than the rest.
    """
    producer = graph.producers.get(node.inputs[0])
    return node.op == "QLinearAveragePool" or (
        node.op == "AveragePool" and producer is not None and producer.op == "DequantizeLinear"
    )


def _windows(node: Node, graph: Graph, kernel: Sequence[int]) -> Maps | None:
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


def _with_pads(tile: Tile, writer: Writer) -> Region:
    """Write a window whose padding is only what of it lies outside the image."""
    maps = tile.operator.maps[0] or ()
    pads = tile_pads(maps, tile.output, tile.graph.shape(tile.node.inputs[0]))
    writer.copy(tile.node, tile.inputs, pads=pads, auto_pad=None, ceil_mode=None)
    return tile.output


def conv_transpose(node: Node, graph: Graph) -> Operator:
    """Describe ConvTranspose: input i contributes to outputs i * stride - pad + dilation * k."""
    shape, kernel = graph.shape(node.inputs[0]), graph.shape(node.inputs[1])
    if not graph.is_constant(node.inputs[1]):
        return everything(node, graph, "has a kernel that is computed")
    if node.attributes.get("auto_pad", b"NOTSET") not in {b"NOTSET", b"VALID"} or (
        "output_shape" in node.attributes
    ):
        return everything(node, graph, "leaves its padding to be worked out")
    spatial = tuple(
        AxisMap(2 + axis, 1, pad - max(0, reach - stride + 1), pad, stride)
        for axis, (stride, reach, pad) in enumerate(_transposed(node, kernel))
    )
    strides = node.ints("strides", (1,) * len(kernel[2:]))
    depth = shape[1] // node.attributes.get("group", 1)
    return Operator(
        ((same(0), whole(shape[1]), *spatial), *parameters(node, graph)),
        (1,),
        "is split by rows and columns, not by channels",
        flops=2.0 * kernel[0] * prod(kernel[2:]) / node.attributes.get("group", 1) / prod(strides),
        memory_bound=False,
        keeps=transposed_windows(depth, graph.threads) if graph.threads else None,
        write=_transposed_tile,
    )


def _transposed(node: Node, kernel: Sequence[int]) -> list[tuple[int, int, int]]:
    """Return (stride, reach, leading pad) for each spatial axis."""
    ones = (1,) * len(kernel[2:])
    dilations = node.ints("dilations", ones)
    reach = [d * (k - 1) for k, d in zip(kernel[2:], dilations, strict=True)]
    valid = node.attributes.get("auto_pad", b"NOTSET") == b"VALID"
    pads = (0,) * len(ones) if valid else node.ints("pads", (0,) * 2 * len(ones))[: len(ones)]
    return list(zip(node.ints("strides", ones), reach, pads, strict=True))


def _transposed_tile(tile: Tile, writer: Writer) -> Region:
    """Write a ConvTranspose that gives the tile: what it gives beyond is cropped as padding."""
    begin, end, beyond = [], [], []
    produced = list(tile.output)
    kernel = tile.graph.shape(tile.node.inputs[1])
    for axis, (stride, reach, pad) in enumerate(_transposed(tile.node, kernel), start=2):
        first, last = tile.region()[axis]
        # Where only output_padding is wanted, the last input's own outputs come along.
        start = min(tile.output[axis][0], (last - 1) * stride - pad + reach)
        stop = tile.output[axis][1]
        full = (last - 1) * stride + reach - pad + 1
        begin.append(start - (first * stride - pad))
        end.append(max(0, full - stop))
        beyond.append(max(0, stop - full))
        produced[axis] = (start, stop)
    writer.copy(
        tile.node,
        tile.inputs,
        pads=begin + end,
        output_padding=beyond if any(beyond) else None,
        auto_pad=None,
    )
    return tuple(produced)
