"""Which tensors onnxruntime keeps in its blocked layout (NCHWc) in the whole model on x86.

In that layout it fuses a sum into the convolution before it, and normalizes by a kernel of its own,
which rounds otherwise than the plain operators. A tensor that arrives from another device is plain,
so the segment would compute the same sum with another rounding. An exact identity that has the
layout, right behind the input, makes the segment what the model is: see docs/exactness.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from agent.planner.graph import Graph, Node

# Operators that take the layout on when their inputs have it, and round differently for it.
FOLLOWERS = frozenset(
    {"Add", "Sum", "Mul", "Concat", "BatchNormalization", "Resize", "Upsample", "GlobalAveragePool"}
    | {"Relu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Clip", "LeakyRelu"}
)
_ROUNDING = FOLLOWERS - {"Concat", "Relu", "Clip", "LeakyRelu"}
_WIDE = ("AVX512", "X86_V4")
_ALIGNED = 4
_POOLS = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"})
_FUSED = frozenset({"Relu", "Sigmoid", "Tanh", "LeakyRelu", "Clip", "HardSigmoid"})
_KEPT = frozenset({"Relu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Gelu"})
_LINEAR_PLACES = frozenset({b"asymmetric", b"half_pixel", b"align_corners"})
_MAP_RANK = 4


def _block() -> int:
    """Return the channels in a block: as many as a vector register of this processor holds."""
    found = np.show_config(mode="dicts")["SIMD Extensions"]["found"]
    return 16 if any(name.startswith(_WIDE) for name in found) else 8


_BLOCK = _block()


def blocked_tensors(graph: Graph) -> frozenset[str]:
    """Return the float32 maps that are in the blocked layout in the whole model."""
    return frozenset(_Tracker(graph).blocked)


def identity_for(channels: int) -> str:
    """Return the operator that is an exact identity in the layout: "" where there is none."""
    if channels % _BLOCK == 0:
        return "MaxPool"
    return "Conv" if channels % _ALIGNED == 0 else ""


def is_blocked_conv(node: Node, graph: Graph) -> bool:
    """Tell whether a float32 convolution of maps is computed in the layout on x86."""
    if not all(graph.is_folded(name) for name in node.inputs[1:] if name):
        return False
    filters, depth = graph.shape(node.inputs[1])[:2]
    groups = node.attributes.get("group", 1)
    if groups == 1:
        return bool(depth < _BLOCK or depth % _ALIGNED == 0)
    if depth == 1 and filters == groups:
        return bool(filters % _ALIGNED == 0)
    each = filters // groups
    return bool(filters % _BLOCK == 0 and depth % _BLOCK == 0 and each % _BLOCK == 0)


def fills_blocks(channels: Any) -> Any:
    """Tell whether so many channels are whole blocks, without which a pooling stays plain."""
    return channels % _BLOCK == 0


def loses_its_layout(node: Node, graph: Graph) -> bool:
    """Tell whether a node rounds otherwise once an input is cut, because nothing brings it back."""
    return node.op in _ROUNDING and any(
        name in graph.blocked and not identity_for(graph.shape(name)[1]) for name in node.inputs
    )


class _Tracker:
    """Follows the layout from node to node; `kernels` are outputs to which more can be fused."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self.blocked: set[str] = set()
        self._kernels: set[str] = set()
        for node in graph.nodes:
            output = node.outputs[0]
            tensor = graph.tensors[output]
            if tensor.dtype == "float32" and len(tensor.shape) == _MAP_RANK and not node.domain:
                self._follow(node, output)

    def _follow(self, node: Node, output: str) -> None:
        if node.op == "Conv":
            if is_blocked_conv(node, self._graph):
                self.blocked.add(output)
                self._kernels.add(output)
        elif node.op in _POOLS:
            if fills_blocks(self._graph.shape(node.inputs[0])[1]):
                self.blocked.add(output)
        elif self._keeps(node):
            self.blocked.add(output)
            if self._extends_kernel(node):
                self._kernels.add(output)

    def _keeps(self, node: Node) -> bool:
        """Tell whether a node that is no kernel gives a blocked output."""
        first = node.inputs[0]
        inputs = [name for name in node.inputs if name]
        match node.op:
            case "BatchNormalization":
                return first in self.blocked
            case "Concat":
                aligned = all(self._graph.shape(name)[1] % _BLOCK == 0 for name in inputs)
                return node.attributes["axis"] in {1, -3} and aligned and self._all_blocked(inputs)
            case "Resize" | "Upsample":
                return first in self.blocked and _scales_in_place(node)
            case "Add" | "Sum" | "Mul":
                shapes = {self._graph.shape(name) for name in inputs}
                return (self._all_blocked(inputs) and len(shapes) == 1) or self._scaled(node)
            case _:
                return (node.op in _FUSED and self._is_fusable(first)) or (
                    node.op in _KEPT and first in self.blocked
                )

    def _all_blocked(self, names: list[str]) -> bool:
        return all(name in self.blocked for name in names)

    def _is_fusable(self, name: str) -> bool:
        """Tell whether a kernel's output is read once, so that its reader can be fused."""
        readers = self._graph.consumers.get(name, ())
        return name in self._kernels and len(readers) == 1 and name not in self._graph.outputs

    def _scaled(self, node: Node) -> bool:
        """Tell whether a node adds to or multiplies a kernel's output by a constant."""
        return self._is_fusable(node.inputs[0]) and all(
            self._graph.is_constant(name) for name in node.inputs[1:]
        )

    def _extends_kernel(self, node: Node) -> bool:
        """Tell whether an activation can still be fused behind what this node gives."""
        if node.op in {"BatchNormalization", "Add", "Sum"}:
            return any(self._is_fusable(name) for name in node.inputs)
        return node.op == "Mul" and self._scaled(node)


def _scales_in_place(node: Node) -> bool:
    mode = node.attributes.get("mode", b"nearest")
    place = node.attributes.get("coordinate_transformation_mode", b"half_pixel")
    if node.op == "Upsample":
        return True
    if mode == b"nearest":
        floor = node.attributes.get("nearest_mode", b"round_prefer_floor") == b"floor"
        return bool(place == b"asymmetric" and floor)
    return bool(mode == b"linear" and place in _LINEAR_PLACES)
