"""Convolutions and poolings: operators that move a window over the map."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from agent.planner.operators.entry import (
    AxisMap,
    Operator,
    everything,
    parameters,
    same,
    whole,
    wholly,
)
from agent.planner.quantization import kinds_of_integer_kernels
from agent.planner.windows import pads_of, tile_pads

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.geometry import Region
    from agent.planner.graph import Graph, Node
    from agent.planner.operators.entry import Maps, Tile, Writer

_WIDE_PADS = "has padding as wide as its kernel"
# onnxruntime's matrix products sum so many inputs at a time, more of them where a map, or a tile,
# has no more than 64 pixels: (most pixels, inputs).
_SUMMED = ((16, 1024), (32, 512), (64, 256))
_SUMMED_AT_LEAST = 128
# A tile of a larger map has more than 64 pixels, unless it is less than a sixteenth of it.
_SMALL_MAP = 1024


def conv(node: Node, graph: Graph) -> Operator:
    """Describe Conv (x, w, bias)."""
    if _sums_quantized_floats(node, graph):
        return everything(node, graph, "sums dequantized floats in another order in tiles")
    return _convolution(node, graph, weight=1, by_filter=(2,))


def _sums_quantized_floats(node: Node, graph: Graph) -> bool:
    """Tell whether a quantized convolution is computed on floats, in an order that tiles change.

    It is a matrix product then, and where its sum is rounded otherwise an integer changes by one.
    """
    producer, weight = graph.producers.get(node.inputs[0]), graph.expressions.get(node.inputs[1])
    if producer is None or weight is None:
        return False
    if producer.op != "DequantizeLinear" or weight.op != "DequantizeLinear":
        return False
    readers = graph.consumers.get(node.outputs[0], ())
    if len(readers) == 1 and readers[0].op in {"Relu", "Clip"}:
        # The range that is quantized clips already, so these go.
        readers = graph.consumers.get(readers[0].outputs[0], ())
    kinds = {graph.tensors[name].dtype for reader in readers for name in reader.outputs[:1]}
    kinds.add(graph.tensors[producer.inputs[0]].dtype)
    if len(kinds) == 1 and kinds <= kinds_of_integer_kernels():
        return False
    depth, pixels = prod(graph.shape(node.inputs[1])[1:]), prod(graph.shape(node.outputs[0])[2:])
    summed = next((count for most, count in _SUMMED if pixels <= most), _SUMMED_AT_LEAST)
    return _SUMMED[0][0] < pixels <= _SMALL_MAP and depth > summed


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
    return described


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
    if _meets_ties(node, graph, kernel):
        return everything(node, graph, "rounds halves of integers differently in tiles")
    windows = _windows(node, graph, kernel)
    if windows is None:
        return everything(node, graph, _WIDE_PADS)
    maps = ((same(0), same(1), *windows), *parameters(node, graph))
    return Operator(maps, flops=float(prod(kernel)), write=_with_pads)


def _meets_ties(node: Node, graph: Graph, kernel: Sequence[int]) -> bool:
    """Tell whether averages of integers may lie halfway between two of them.

    onnxruntime rounds these up or down according to where an element lies in a row.
    """
    producer = graph.producers.get(node.inputs[0])
    quantized = node.op == "QLinearAveragePool" or (
        node.op == "AveragePool" and producer is not None and producer.op == "DequantizeLinear"
    )
    return quantized and prod(kernel) % 2 == 0


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
    return Operator(
        ((same(0), whole(shape[1]), *spatial), *parameters(node, graph)),
        (1,),
        "is split by rows and columns, not by channels",
        flops=2.0 * kernel[0] * prod(kernel[2:]) / node.attributes.get("group", 1) / prod(strides),
        memory_bound=False,
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
