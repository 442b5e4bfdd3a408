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

from agent.geometry import shape_of, slices_within, whole
from agent.planner.windows import tile_pads
from agent.wire.program import WeightSpec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agent.geometry import Region
    from agent.planner.graph import Graph
    from agent.planner.receptive_field import Boxes, Field
    from agent.wire.model import WeightEntry
    from agent.wire.program import BlobRef

# IR 4 lets initializers be no graph inputs; IR 10 is the newest that every served runtime reads.
_IR_VERSIONS = (4, 10)
_SLICE_BY_INPUTS = 10


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment: its graph, what it reads and writes in the order of the graph, its weights."""

    graph: bytes
    reads: tuple[tuple[str, Region], ...]
    writes: tuple[tuple[str, Region], ...]
    weights: tuple[WeightSpec, ...]


def build_segment(
    graph: Graph,
    computed: Sequence[tuple[Field, Boxes]],
    reads: Mapping[str, Region],
    outputs: Sequence[str],
    tile: int,
) -> Segment:
    """Build the graph that computes a tile of a block.

    Args:
        graph: the whole model.
        computed: the block's nodes in order, each with what it computes for every tile.
        reads: the region of each tensor that the segment is given.
        outputs: the tensors that it gives.
        tile: which row of the boxes to build.
    """
    builder = _Builder(graph, dict(reads))
    for field, box in computed:
        builder.add(field, box.row(tile))
    return builder.finish(reads, outputs)


class _Builder:
    """A segment under construction; `held` is the region of each tensor that is there so far."""

    def __init__(self, graph: Graph, held: dict[str, Region]) -> None:
        self._graph, self._held = graph, held
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: list[onnx.TensorProto] = []
        self._weights: list[WeightSpec] = []
        self._cut: dict[tuple[str, Region], str] = {}
        self._names: dict[str, int] = {}

    def add(self, field: Field, computed: Boxes) -> None:
        """Add one node that computes a region from exactly what it needs of each input."""
        output = computed.region(0)
        regions = {name: box.region(0) for name, box in field.needed(computed)}
        proto = onnx.NodeProto()
        proto.CopyFrom(field.node.proto)
        proto.ClearField("doc_string")
        partial = output != field.whole
        if field.operator.reshapes and partial:
            _become_reshape(proto, self._constant(f"{proto.output[0]}.shape", shape_of(output)))
            proto.input[0] = self._input(field.node.inputs[0], regions[field.node.inputs[0]])
        else:
            inputs = [self._input(n, regions[n]) if n else "" for n in field.node.inputs]
            proto.ClearField("input")
            proto.input.extend(inputs)
        if field.operator.windowed and partial:
            self._set_pads(proto, field, output)
        self._nodes.append(proto)
        for name in filter(None, field.node.outputs):
            first = name == field.node.outputs[0]
            self._held[name] = output if first else whole(self._graph.shape(name))

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

    def _set_pads(self, proto: onnx.NodeProto, field: Field, output: Region) -> None:
        maps = field.operator.maps[0]
        shape = self._graph.shape(field.node.inputs[0])
        pads = tile_pads(maps or (), output, shape)
        kept = [a for a in proto.attribute if a.name not in {"pads", "auto_pad", "ceil_mode"}]
        proto.ClearField("attribute")
        proto.attribute.extend([*kept, helper.make_attribute("pads", pads)])

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
        name = self._unique(f"{source}.part")
        if self._graph.opset < _SLICE_BY_INPUTS:
            node = helper.make_node(
                "Slice", [source], [name], name=name, axes=axes, starts=starts, ends=ends
            )
        else:
            values = {"starts": starts, "ends": ends, "axes": axes}
            inputs = [self._constant(f"{name}.{key}", value) for key, value in values.items()]
            node = helper.make_node("Slice", [source, *inputs], [name], name=name)
        self._nodes.append(node)
        return name

    def _constant(self, name: str, values: Sequence[int]) -> str:
        return self._initializer(name, np.array(values, dtype=np.int64))

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


def _become_reshape(proto: onnx.NodeProto, shape: str) -> None:
    """Turn any operator that only changes the shape into a Reshape to a constant shape."""
    source, outputs, name = proto.input[0], list(proto.output), proto.name
    proto.CopyFrom(helper.make_node("Reshape", [source, shape], outputs, name=name))
