"""Padding of windowed operators: what it is, and what of it a tile keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from agent.geometry import Region
    from agent.planner.graph import Node
    from agent.planner.operators import AxisMap


def pads_of(
    node: Node,
    inner: Sequence[int],
    outer: Sequence[int],
    reach: Sequence[int],
    strides: Sequence[int],
) -> tuple[int, ...]:
    """Return the leading padding of each spatial axis, with auto_pad made explicit.

    Args:
        node: a Conv or a pooling.
        inner: spatial extents of its input.
        outer: spatial extents of its output.
        reach: dilation * (kernel - 1) for each axis.
        strides: the stride of each axis.
    """
    mode = node.attributes.get("auto_pad", b"NOTSET").decode()
    if mode == "VALID":
        return (0,) * len(inner)
    if mode == "NOTSET":
        return node.ints("pads", (0,) * 2 * len(inner))[: len(inner)]
    totals = [
        max(0, (count - 1) * stride + far + 1 - extent)
        for extent, count, far, stride in zip(inner, outer, reach, strides, strict=True)
    ]
    # SAME_UPPER puts the odd element at the end, SAME_LOWER at the beginning.
    return tuple((total + (mode == "SAME_LOWER")) // 2 for total in totals)


def drops_last_window(node: Node, inner: Sequence[int], outer: Sequence[int]) -> bool:
    """Tell whether a pooling with ceil_mode has fewer outputs than ONNX's shape rule says.

    onnxruntime leaves out a last window that begins in the padding; shape inference before opset
    22 counts it.

    Args:
        node: a pooling.
        inner: spatial extents of its input.
        outer: spatial extents of its output, as inferred.
    """
    if not node.attributes.get("ceil_mode", 0):
        return False
    strides = node.ints("strides", (1,) * len(inner))
    begin = node.ints("pads", (0,) * 2 * len(inner))[: len(inner)]
    return any(
        (count - 1) * stride >= extent + pad
        for count, stride, extent, pad in zip(outer, strides, inner, begin, strict=True)
    )


def tile_pads(maps: Iterable[AxisMap], output: Region, shape: Sequence[int]) -> list[int]:
    """Return the `pads` attribute with which a tile gives `output`.

    Only what of the receptive field lies outside the image stays padding; what lies inside is data
    that the tile has. It is also exactly as much as the output needs, so ceil_mode is not needed.

    Args:
        maps: the input's maps, one for each axis.
        output: the region that is computed.
        shape: the input's whole shape.
    """
    begin, end = [], []
    for axis_map, extent in list(zip(maps, shape, strict=True))[2:]:
        start, stop = output[axis_map.axis]
        begin.append(max(0, -(start * axis_map.stride + axis_map.low)))
        end.append(max(0, (stop - 1) * axis_map.stride + axis_map.high + 1 - extent))
    return begin + end
