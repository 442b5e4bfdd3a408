"""Lowering: operators that would need the whole map, taken apart so that they can be split.

- A reduction of the axes that are split (GlobalAveragePool of a squeeze-and-excitation, ReduceMean
  over space) becomes `Partial` and `Combined` steps: `agent/planner/operators/reductions.py`. Not
  so at the end of a network: there the map is small, and gathering it keeps every bit.
- InstanceNormalization and GroupNormalization become two such reductions and elementwise steps.
- Split becomes Slices, which have one output each.

A step knows the nodes it stands for, its `origin`: a block that has all steps of an operator runs
the operator itself, so that a device alone computes what the model says, to the bit.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import helper

from agent.planner.graph import Tensor, node_of
from agent.planner.layers import layers_of
from agent.planner.layout import split_axes
from agent.planner.operators.reductions import (
    COMBINED,
    PARTIAL,
    REDUCTIONS,
    reduced_axes,
)
from agent.planner.quantization import rounds_to_integers

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from agent.planner.cost import Device
    from agent.planner.graph import Graph, Node

Array = np.ndarray[Any, Any]

LOWERED = "halomq"
_SLICE_BY_INPUTS = 10
_PICTURE_RANK = 4
_FLOATS = frozenset({"float16", "float32", "float64"})


def lowered_for(
    graph: Graph, devices: Sequence[Device], *, exact: bool, whole: bool = False
) -> Graph:
    """Return the graph as it is planned for some devices.

    Args:
        graph: the model.
        devices: those that may be used.
        exact: whether every bit is to be what one device computes. Of a model that rounds to
            integers it always is: there a difference of rounding is a whole step.
        whole: whether reductions stay whole.
    """
    if exact or rounds_to_integers(graph):
        return lower(replace(graph, threads=max(device.threads for device in devices)), 1)
    return lower(graph, 1 if whole else len(devices))


def lower(graph: Graph, slots: int) -> Graph:
    """Return the graph with such operators taken apart, for up to `slots` devices."""
    graph = _Lowering(graph, {}, 0).run(_splits)
    if slots <= 1:
        return graph
    whole: set[str] = set()
    while True:
        lowered, axes = _taken_apart(graph, slots, whole)
        misplaced = _misplaced(lowered, axes)
        if not misplaced:
            return lowered
        whole |= misplaced


def _taken_apart(
    graph: Graph, slots: int, whole: Collection[str]
) -> tuple[Graph, Mapping[str, tuple[int, ...]]]:
    """Take apart all that can be but what gives `whole`; return also the axes that are split.

    Once a normalization is taken apart, other axes are split behind it than before.
    """
    while True:
        axes = split_axes(graph, layers_of(graph))
        lowered = _Lowering(graph, axes, slots, whole).run(_reductions)
        if len(lowered.nodes) == len(graph.nodes):
            return graph, axes
        graph = lowered


def _misplaced(graph: Graph, axes: Mapping[str, tuple[int, ...]]) -> set[str]:
    """Return what operators give whose partial results would not be of whole tiles.

    That is so where what was taken apart before them changed the axes that are split.
    """
    return {
        node.origin[-1].outputs[0]
        for node in graph.nodes
        if node.op == PARTIAL
        and node.domain == LOWERED
        and not set(axes.get(node.inputs[0], ())) <= set(node.ints("axes", ()))
    }


class _Lowering:
    """A graph under reconstruction; nodes that give one of `whole` stay as they are."""

    def __init__(
        self,
        graph: Graph,
        axes: Mapping[str, tuple[int, ...]],
        slots: int,
        whole: Collection[str] = (),
    ) -> None:
        self.graph, self.slots = graph, slots
        self._axes, self._whole = axes, whole
        self._nodes: list[Node] = []
        self._tensors = dict(graph.tensors)
        self._constants = dict(graph.constants)
        self._replaced: set[int] = set()

    def run(self, rule: Callable[[_Lowering, Node], bool]) -> Graph:
        for node in self.graph.nodes:
            if node.index not in self._replaced and not rule(self, node):
                self._nodes.append(replace(node, index=len(self._nodes)))
        return replace(
            self.graph,
            nodes=tuple(self._nodes),
            tensors=self._tensors,
            constants=self._constants,
        )

    def skip(self, nodes: Sequence[Node]) -> None:
        """Leave out nodes that come later, because something stands for them already."""
        self._replaced.update(node.index for node in nodes)

    def reduces_what_is_split(self, name: str, axes: Sequence[int]) -> bool:
        split = self._axes.get(name, ())
        return bool(split) and set(split) <= set(axes)

    def stays_whole(self, node: Node) -> bool:
        return node.outputs[0] in self._whole

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of an activation, new ones included."""
        return self._tensors[name].shape

    def dtype(self, name: str) -> str:
        """Return the type of an activation's elements, new ones included."""
        return self._tensors[name].dtype

    def constant(self, name: str, array: Array) -> str:
        self._constants[name] = array
        return name

    def step(
        self,
        op: str,
        inputs: Sequence[str],
        output: str,
        shape: Sequence[int] | None,
        origin: tuple[Node, ...],
        *,
        dtype: str | None = None,
        domain: str = "",
        **attributes: Any,
    ) -> str:
        """Append a node that writes `output`; its tensor is new where a shape is given."""
        proto = helper.make_node(
            op, list(inputs), [output], name=output, domain=domain, **attributes
        )
        self._nodes.append(node_of(len(self._nodes), proto, origin))
        if shape is not None:
            kind = dtype or self._tensors[inputs[0]].dtype
            self._tensors[output] = Tensor(output, kind, tuple(shape))
        return output

    def reshape(
        self, value: str, output: str, shape: Sequence[int] | None, origin: tuple[Node, ...]
    ) -> str:
        """Append a Reshape to `shape`, or to that of the model's tensor `output`."""
        extents = self.graph.shape(output) if shape is None else shape
        target = self.constant(f"{output}.shape", np.array(extents, dtype=np.int64))
        return self.step("Reshape", [value, target], output, shape, origin)

    def reduce(
        self, value: str, axes: Sequence[int], rule: str, output: str, origin: tuple[Node, ...]
    ) -> str:
        """Append a reduction in two steps that keeps its axes."""
        tensor = self._tensors[value]
        partial = [1 if axis in axes else n for axis, n in enumerate(tensor.shape)]
        slotted = [self.slots if axis == axes[0] else n for axis, n in enumerate(partial)]
        wide = "float32" if tensor.dtype == "float16" else tensor.dtype
        parts = self.step(
            PARTIAL, [value], f"{output}.parts", slotted, origin,
            dtype=wide, domain=LOWERED, axes=list(axes), reduction=rule,
        )  # fmt: skip
        return self.step(
            COMBINED, [parts], output, partial, origin,
            dtype=tensor.dtype, domain=LOWERED, slot=axes[0], reduction=rule,
        )  # fmt: skip


def _splits(lowering: _Lowering, node: Node) -> bool:
    """Make Slices of a Split."""
    graph = lowering.graph
    if (node.op, node.domain) != ("Split", ""):
        return False
    shape = graph.shape(node.inputs[0])
    axis, start = node.attributes.get("axis", 0) % len(shape), 0
    for output in node.outputs:
        if not output:
            return False
    for output in node.outputs:
        stop = start + graph.shape(output)[axis]
        if output in graph.consumers or output in graph.outputs:
            if graph.opset < _SLICE_BY_INPUTS:
                lowering.step(
                    "Slice", node.inputs[:1], output, None, (),
                    axes=[axis], starts=[start], ends=[stop],
                )  # fmt: skip
            else:
                bounds = [
                    lowering.constant(f"{output}.{key}", np.array([value], dtype=np.int64))
                    for key, value in (("start", start), ("end", stop), ("axis", axis))
                ]
                lowering.step("Slice", [node.inputs[0], *bounds], output, None, ())
        start = stop
    return True


def _reductions(lowering: _Lowering, node: Node) -> bool:
    if node.domain or lowering.graph.tensors[node.outputs[0]].dtype not in _FLOATS:
        return False
    if lowering.stays_whole(node):
        return False
    if node.op in REDUCTIONS:
        return _reduction(lowering, node)
    if node.op == "InstanceNormalization":
        return _instance_normalization(lowering, node)
    return node.op == "Reshape" and _group_normalization(lowering, node)


def _reduction(lowering: _Lowering, node: Node) -> bool:
    graph, (value, output) = lowering.graph, (node.inputs[0], node.outputs[0])
    axes = reduced_axes(node, graph)
    if axes is None or not lowering.reduces_what_is_split(value, axes):
        return False
    if not _joins_others(output, graph):
        # At the end of a network gathering the small map costs little, and keeps every bit.
        return False
    kept = [1 if a in axes else n for a, n in enumerate(graph.shape(value))]
    if tuple(kept) == graph.shape(output):
        lowering.reduce(value, axes, node.op, output, (node,))
        return True
    reduced = lowering.reduce(value, axes, node.op, f"{output}.kept", (node,))
    lowering.reshape(reduced, output, None, (node,))
    return True


def _joins_others(name: str, graph: Graph) -> bool:
    """Tell whether what is computed from a tensor is ever joined with what is not."""
    derived, joins = {name}, False
    for node in graph.nodes:
        activations = [n for n in node.inputs if n and not graph.is_constant(n)]
        if derived.intersection(activations):
            derived.update(node.outputs)
            joins = joins or not derived.issuperset(activations)
    return joins


def _instance_normalization(lowering: _Lowering, node: Node) -> bool:
    """Take InstanceNormalization apart."""
    graph = lowering.graph
    value, scale, bias = node.inputs
    shape = graph.shape(value)
    axes = tuple(range(2, len(shape)))
    if not {scale, bias} <= graph.constants.keys():
        return False
    if not lowering.reduces_what_is_split(value, axes):
        return False
    by_channel = (1, shape[1], *[1] * len(axes))
    _normalize(
        lowering,
        value,
        axes,
        (graph.constants[scale].reshape(by_channel), graph.constants[bias].reshape(by_channel)),
        node.outputs[0],
        (node,),
    )
    return True


def _group_normalization(lowering: _Lowering, before: Node) -> bool:
    """Take apart a normalization of groups of channels, as it is exported.

    That is an InstanceNormalization of [1, groups, channels / groups * rows * columns] between
    two Reshapes; rows and columns are kept apart here, so that they can be split.
    """
    graph = lowering.graph
    node = _only_reader(before, graph)
    after = _only_reader(node, graph) if node and node.op == "InstanceNormalization" else None
    if node is None or after is None or after.op != "Reshape" or lowering.stays_whole(after):
        return False
    value, shape = before.inputs[0], graph.shape(before.inputs[0])
    groups = graph.shape(node.inputs[0])[1]
    if (
        len(shape) != _PICTURE_RANK
        or shape != graph.shape(after.outputs[0])
        or shape[1] % groups
        or not set(node.inputs[1:]) <= graph.constants.keys()
        or not lowering.reduces_what_is_split(value, (1, 2, 3))
    ):
        return False
    origin, name = (before, node, after), after.outputs[0]
    grouped = (1, groups, shape[1] // groups, *shape[2:])
    apart = lowering.reshape(value, f"{name}.grouped", grouped, origin)
    by_group = (1, groups, 1, 1, 1)
    scale, bias = (graph.constants[parameter].reshape(by_group) for parameter in node.inputs[1:])
    together = f"{name}.normalized"
    _normalize(lowering, apart, (2, 3, 4), (scale, bias), together, origin)
    lowering.reshape(together, name, None, origin)
    lowering.skip((node, after))
    return True


def _only_reader(node: Node, graph: Graph) -> Node | None:
    readers = graph.consumers.get(node.outputs[0], ())
    return readers[0] if len(readers) == 1 and node.outputs[0] not in graph.outputs else None


def _normalize(  # noqa: PLR0917 - what it normalizes, and how
    lowering: _Lowering,
    value: str,
    axes: Sequence[int],
    affine: tuple[Array, Array],
    output: str,
    origin: tuple[Node, ...],
) -> None:
    """Append (value - mean) / sqrt(variance + epsilon) * scale + bias."""
    norm = next(node for node in origin if node.op == "InstanceNormalization")
    epsilon = norm.attributes.get("epsilon", 1e-5)
    shape = lowering.shape(value)
    kept = [1 if axis in axes else n for axis, n in enumerate(shape)]
    kind = lowering.dtype(value)

    def step(op: str, inputs: Sequence[str], name: str, result: Sequence[int] | None) -> str:
        return lowering.step(op, inputs, name, result, origin)

    small = lowering.constant(f"{output}.epsilon", np.array(epsilon, kind))
    scale = lowering.constant(f"{output}.scale", affine[0].astype(kind))
    bias = lowering.constant(f"{output}.bias", affine[1].astype(kind))
    mean = lowering.reduce(value, axes, "ReduceMean", f"{output}.mean", origin)
    centred = step("Sub", [value, mean], f"{output}.centred", shape)
    variance = lowering.reduce(centred, axes, "MeanSquare", f"{output}.variance", origin)
    stable = step("Add", [variance, small], f"{output}.stable", kept)
    deviation = step("Sqrt", [stable], f"{output}.deviation", kept)
    inverse = step("Reciprocal", [deviation], f"{output}.inverse", kept)
    factor = step("Mul", [inverse, scale], f"{output}.factor", _joint(kept, affine[0].shape))
    scaled = step("Mul", [centred, factor], f"{output}.scaled", shape)
    step("Add", [scaled, bias], output, shape)


def _joint(left: Sequence[int], right: Sequence[int]) -> tuple[int, ...]:
    return tuple(max(a, b) for a, b in zip(left, right, strict=True))
