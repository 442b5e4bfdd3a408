"""Segments: the ONNX graph that computes one block for one tile.

Every input and output has its static shape, because onnxruntime fuses otherwise-shaped graphs
differently. Nothing in a segment names a device or a position, so that equal tiles are one blob.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from agent.geometry import contains, shape_of, slices_within, whole
from agent.planner.blocked import FOLLOWERS, identity_for
from agent.planner.lowering import LOWERED
from agent.planner.operators import Tile
from agent.planner.operators.shapes import write_slice
from agent.planner.receptive_field import Demand, Field, boxes
from agent.wire.program import WeightSpec

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from agent.geometry import Region
    from agent.planner.graph import Graph, Node
    from agent.planner.receptive_field import Boxes, Reading
    from agent.wire.model import WeightEntry
    from agent.wire.program import BlobRef

# IR 4 lets initializers be no graph inputs; IR 10 is the newest that every served runtime reads.
_IR_VERSIONS = (4, 10)


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment: its graph, what it reads and writes in the order of the graph, its weights."""

    graph: bytes
    reads: tuple[tuple[str, Region], ...]
    writes: tuple[tuple[str, Region], ...]
    weights: tuple[WeightSpec, ...]


def build_segment(
    graph: Graph,
    computed: Sequence[Reading],
    reads: Mapping[str, Region],
    outputs: Sequence[str],
    tile: int,
    *,
    blocked: Collection[str] = (),
) -> Segment:
    """Build the graph that computes a tile of a block.

    Args:
        graph: the whole model.
        computed: the block's nodes in order, each with what it computes and reads for every tile.
        reads: the region of each tensor that the segment is given.
        outputs: the tensors that it gives.
        tile: which row of the boxes to build.
        blocked: the tensors that the whole model has in onnxruntime's blocked layout.
    """
    builder = _Builder(graph, reads, blocked)
    whole_again = _complete(computed)
    restored: set[tuple[Node, ...]] = set()
    for reading in computed:
        origin = reading.field.node.origin
        last = whole_again.pop(origin, None)
        if last is not None and builder.restore(origin, last.computed.row(tile)):
            restored.add(origin)
        if origin not in restored:
            builder.add(reading, tile)
    return builder.finish(reads, outputs)


def _complete(computed: Sequence[Reading]) -> dict[tuple[Node, ...], Reading]:
    """Return the last step of every operator that was taken apart and is all in this block.

    Its first step then has the whole map, so the operator can run as the model has it.
    """
    steps: dict[tuple[Node, ...], list[Reading]] = {}
    for reading in computed:
        if reading.field.node.origin:
            steps.setdefault(reading.field.node.origin, []).append(reading)
    return {
        origin: readings[-1]
        for origin, readings in steps.items()
        if readings[0].field.node.inputs[0] == origin[0].inputs[0]
        and readings[-1].field.node.outputs[0] == origin[-1].outputs[0]
    }


class _Builder:
    """A segment under construction; `held` is the region of each tensor that is there so far."""

    def __init__(self, graph: Graph, reads: Mapping[str, Region], blocked: Collection[str]) -> None:
        self._graph, self._held, self._plain = graph, dict(reads), set(reads)
        self._blocked = blocked
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: list[onnx.TensorProto] = []
        self._weights: list[WeightSpec] = []
        self._cut: dict[tuple[str, Region], str] = {}
        self._names: dict[str, int] = {}

    @property
    def opset(self) -> int:
        """Version of ONNX's operator set."""
        return self._graph.opset

    def constant(self, array: np.ndarray[Any, Any]) -> str:
        """Add a constant and return its name."""
        return self._initializer("constant", array)

    def node(self, op: str, inputs: Sequence[str], output: str = "", **attributes: Any) -> str:
        """Add a node and return the name of its output."""
        name = output or self._unique(f"{inputs[0]}.{op}")
        self._nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name

    def copy(self, node: Node, inputs: Sequence[str], **changed: Any) -> None:
        """Add a node as it is, but for its inputs and the attributes in `changed`."""
        proto = onnx.NodeProto()
        proto.CopyFrom(node.proto)
        proto.ClearField("doc_string")
        proto.ClearField("input")
        proto.input.extend(inputs)
        if changed:
            kept = [attribute for attribute in proto.attribute if attribute.name not in changed]
            new = [helper.make_attribute(k, v) for k, v in changed.items() if v is not None]
            proto.ClearField("attribute")
            proto.attribute.extend([*kept, *new])
        self._nodes.append(proto)

    def add(self, reading: Reading, tile: int) -> None:
        """Add one node that computes a region from exactly what it needs of each input."""
        field, box = reading.field, reading.computed.row(tile)
        needs = {index: boxes.row(tile) for index, boxes in reading.reads.items()}
        self._write(field, box, needs)
        for name in field.node.outputs[1:]:
            if name:
                self._held[name] = whole(self._graph.shape(name))

    def restore(self, nodes: Sequence[Node], wanted: Boxes) -> bool:
        """Add an operator that was taken apart as the model has it, if what it needs is here."""
        demand = Demand(self._graph, {nodes[-1].outputs[0]: wanted})
        walked = [demand.through(Field(node, self._graph)) for node in nodes[::-1]]
        for name, needed in demand.boxes.items():
            if not contains(self._held[name], needed.region(0)):
                return False
        for reading in walked[::-1]:
            self.add(reading, 0)
        return True

    def _write(self, field: Field, computed: Boxes, needs: Mapping[int, Boxes]) -> None:
        """Add a node for the one region in `computed`; `needs` is known for activations."""
        source = field.node.inputs[0]
        if field.node.op == "QuantizeLinear" and source in self._held.keys() - self._plain:
            # Cut off before it, what an operator gives too much would have it computed otherwise.
            computed = boxes([self._held[source]])
            needs = {**needs, 0: computed}
        inputs: list[str] = []
        regions: list[Region | None] = []
        for index, name in enumerate(field.node.inputs):
            if not name:
                inputs.append("")
                regions.append(None)
                continue
            needed = needs[index] if index in needs else field.needed(index, computed)
            regions.append(needed.region(0))
            if name in field.expressions:
                inputs.append(self._expression(field.expressions[name], needed))
            else:
                inputs.append(self._input(name, needed.region(0)))
        inputs = self._in_layout(field.node, inputs, regions)
        output = computed.region(0)
        entire = output == field.whole and all(
            region is None or region == whole(self._graph.shape(name))
            for name, region in zip(field.node.inputs, regions, strict=True)
        )
        if entire and field.node.domain != LOWERED:
            self.copy(field.node, inputs)
        else:
            operator = field.operator
            tile = Tile(field.node, self._graph, operator, tuple(inputs), tuple(regions), output)
            output = operator.write(tile, self)
            if self._nodes[-1].op_type == "Slice":
                self._plain.add(field.node.outputs[0])
        self._held[field.node.outputs[0]] = output

    def _in_layout(
        self, node: Node, inputs: list[str], regions: Sequence[Region | None]
    ) -> list[str]:
        """Bring inputs that arrive plain into the layout that they have in the whole model."""
        if node.domain or node.op not in FOLLOWERS:
            return inputs
        found = list(inputs)
        for index, (name, source) in enumerate(zip(node.inputs, inputs, strict=True)):
            arrives = source in self._plain or source != name
            region = regions[index]
            if name in self._blocked and arrives and region is not None:
                # Of channels that are shared the tile has some.
                found[index] = self._identity(source, shape_of(region)[1])
        if node.op in {"Add", "Sum"} and found[0] != inputs[0] and len(found) == 2:  # noqa: PLR2004
            # A sum is fused into its first convolution, which must not be the identity.
            found.reverse()
        return found

    def _identity(self, source: str, channels: int) -> str:
        op = identity_for(channels)
        if not op:
            return source
        key = (source, ())
        if key not in self._cut:
            if op == "Conv":
                ones = self.constant(np.ones((channels, 1, 1, 1), np.float32))
                made = self.node(op, [source, ones], kernel_shape=[1, 1], group=channels)
            else:
                made = self.node(op, [source], kernel_shape=[1, 1])
            self._cut[key] = made
        return self._cut[key]

    def _expression(self, field: Field, needed: Boxes) -> str:
        """Add what computes a region of a constant from weights; return its name."""
        name, region = field.node.outputs[0], needed.region(0)
        if (name, region) not in self._cut:
            # Each region is an expression of its own: a shard must not hold the whole weight.
            self._write(field, field.computed(needed), {})
            made = self._unique(f"{name}.constant")
            self._nodes[-1].output[0] = made
            held = self._held.pop(name)
            self._cut[name, region] = made if held == region else self._slice(made, held, region)
        return self._cut[name, region]

    def finish(self, reads: Mapping[str, Region], outputs: Sequence[str]) -> Segment:
        """Close the graph and return the segment."""
        writes = {name: self._held[name] for name in outputs}
        body = helper.make_graph(
            self._nodes,
            "segment",
            [self._value(name, region) for name, region in reads.items()],
            [self._value(name, region) for name, region in writes.items()],
            self._initializers,
        )
        model = helper.make_model(
            body,
            producer_name="halomq",
            opset_imports=[helper.make_opsetid(*opset) for opset in self._graph.opsets],
            ir_version=min(max(self._graph.ir_version, _IR_VERSIONS[0]), _IR_VERSIONS[1]),
        )
        content = model.SerializeToString(deterministic=True)
        return Segment(content, (*reads.items(),), (*writes.items(),), tuple(self._weights))

    def _input(self, name: str, region: Region) -> str:
        """Return the name of a tensor that holds exactly `region` of `name`."""
        if (name, region) not in self._cut:
            self._cut[name, region] = self._make_input(name, region)
        return self._cut[name, region]

    def _make_input(self, name: str, region: Region) -> str:
        if name in self._graph.constants:
            array = self._graph.constants[name]
            held = whole(array.shape)
            return self._initializer(name, array[slices_within(region, held)])
        if name in self._graph.weights:
            entry = self._graph.weights[name]
            rows = (region[0], *whole(entry.shape)[1:])
            given = self._weight(entry, rows)
            return given if rows == region else self._slice(given, rows, region)
        held = self._held[name]
        return name if held == region else self._slice(name, held, region)

    def _weight(self, entry: WeightEntry, rows: Region) -> str:
        """Add the rows `rows` of a weight, which is loaded from blobs when the segment is."""
        if (entry.name, rows) in self._cut:
            return self._cut[entry.name, rows]
        name = self._unique(entry.name)
        spec = weight_rows(entry, *rows[0], name=name)
        nbytes = int(np.prod(spec.shape)) * np.dtype(spec.dtype).itemsize
        tensor = onnx.TensorProto(
            name=name,
            dims=spec.shape,
            data_type=helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype)),
            data_location=onnx.TensorProto.EXTERNAL,
        )
        # Never opened, because the runtime is handed every one; it only wants them to be there.
        for key, value in (("location", "weights"), ("offset", "0"), ("length", str(nbytes))):
            tensor.external_data.add(key=key, value=value)
        self._weights.append(spec)
        self._initializers.append(tensor)
        self._cut[entry.name, rows] = name
        return name

    def _slice(self, source: str, held: Region, region: Region) -> str:
        axes = [axis for axis, pair in enumerate(region) if pair != held[axis]]
        starts = [region[axis][0] - held[axis][0] for axis in axes]
        ends = [region[axis][1] - held[axis][0] for axis in axes]
        return write_slice(self, source, starts, ends, axes)

    def _initializer(self, name: str, array: np.ndarray[Any, Any]) -> str:
        name = self._unique(name)
        content = np.ascontiguousarray(array).reshape(array.shape)
        self._initializers.append(numpy_helper.from_array(content, name))
        return name

    def _unique(self, name: str) -> str:
        """Return `name` the first time, then with a number."""
        uses = self._names.get(name, 0)
        self._names[name] = uses + 1
        return f"{name}#{uses}" if uses else name

    def _value(self, name: str, region: Region) -> onnx.ValueInfoProto:
        dtype = helper.np_dtype_to_tensor_dtype(np.dtype(self._graph.tensors[name].dtype))
        return helper.make_tensor_value_info(name, dtype, shape_of(region))


def weight_rows(entry: WeightEntry, start: int, stop: int, *, name: str) -> WeightSpec:
    """Return rows [start, stop) of a weight: only the parts that hold some of them.

    Args:
        entry: the whole weight.
        start: first row (axis 0).
        stop: row after the last.
        name: the initializer's name in the segment.
    """
    row = int(np.prod(entry.shape[1:])) * np.dtype(entry.dtype).itemsize
    first, last = start * row, stop * row
    at, offset = 0, 0
    parts: list[BlobRef] = []
    for part in entry.parts:
        if at < last and at + part.nbytes > first:
            if not parts:
                offset = first - at
            parts.append(part)
        at += part.nbytes
    return WeightSpec(name, entry.dtype, (stop - start, *entry.shape[1:]), tuple(parts), offset)
