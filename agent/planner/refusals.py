"""What HaloMQ refuses to serve, before anything is shipped: each by node, reason and remedy."""

from __future__ import annotations

import re
from graphlib import CycleError, TopologicalSorter
from math import prod
from typing import TYPE_CHECKING

import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from agent.errors import ModelError
from agent.planner.graph import tensor_of
from agent.planner.model_file import label, one_line
from agent.planner.operators.resize import disputed_axis
from agent.planner.windows import drops_last_window
from agent.wire.tensors import MAX_RANK

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from agent.planner.graph import Graph, Node
    from agent.planner.model_file import Array

_OLDEST_OPSET = 9
_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
_STANDARD = frozenset({"", "ai.onnx"})
_RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike"}
    | {"RandomUniform", "RandomUniformLike"}
)
_CONTROL = frozenset({"If", "Loop", "Scan", "SequenceMap"})
_GRAPHS = frozenset({AttributeProto.GRAPH, AttributeProto.GRAPHS})
# The largest tensor message that is taken (agent/wire/tensors.py); a device holds several.
MAX_TENSOR_BYTES = 1 << 30
# What the largest boards have (Raspberry Pi 5, Jetson): a device may have to serve alone.
MAX_WEIGHT_BYTES = 16 << 30
_TRAINING_INPUT = 2  # of a Dropout
_FIRST_SPATIAL_AXIS = 2
# What an input's free axes are set to in the hint: a picture's, in NCHW.
_USUAL = (1, 3, 224, 224)


def check_opset(model: onnx.ModelProto) -> None:
    """Check that the model's operators are of a version that is known here."""
    opset = max((o.version for o in model.opset_import if o.domain in _STANDARD), default=0)
    if opset < _OLDEST_OPSET:
        raise ModelError(
            f"the model uses opset {opset}; HaloMQ needs {_OLDEST_OPSET} or later "
            "(onnx.version_converter or a new export can raise it)"
        )
    newest = onnx.defs.onnx_opset_version()
    if opset > newest:
        raise ModelError(
            f"the model uses opset {opset}, which is newer than the onnx package here takes; "
            f"export it with opset {newest} or earlier"
        )


def check_structure(graph: onnx.GraphProto) -> None:
    """Check that the graph is one: names written once, inputs that are there, no cycles."""
    if graph.sparse_initializer:
        name = graph.sparse_initializer[0].values.name
        raise ModelError(f"initializer '{name}' is sparse, which HaloMQ cannot ship; make it dense")
    for value in (*graph.input, *graph.value_info, *graph.output):
        if value.type.tensor_type.elem_type not in TensorProto.DataType.values():
            raise ModelError(f"'{value.name}' has a type that ONNX does not have; export it again")
    given = [*(t.name for t in graph.initializer), *(v.name for v in graph.input)]
    writers: dict[str, onnx.NodeProto | None] = {}
    for name in given:
        if name in writers:
            raise ModelError(
                f"two inputs or initializers are named '{name}'; export the model again"
            )
        writers[name] = None
    for node in graph.node:
        for name in filter(None, node.output):
            if name in writers:
                other = writers[name]
                first = "an input" if other is None else label(other)
                raise ModelError(
                    f"{label(node)} writes '{name}', as {first} does; export the model again"
                )
            writers[name] = node
    _check_dataflow(graph, writers)


def _check_dataflow(graph: onnx.GraphProto, writers: Mapping[str, onnx.NodeProto | None]) -> None:
    before: dict[int, list[int]] = {}
    places = {id(node): number for number, node in enumerate(graph.node)}
    for number, node in enumerate(graph.node):
        before[number] = []
        for name in filter(None, node.input):
            if name not in writers:
                raise ModelError(f"{label(node)} reads '{name}', which nothing writes")
            writer = writers[name]
            if writer is not None:
                before[number].append(places[id(writer)])
    for value in graph.output:
        if value.name not in writers:
            raise ModelError(f"no node writes the output '{value.name}'")
    try:
        TopologicalSorter(before).prepare()
    except CycleError as error:
        around = " to ".join(label(graph.node[number]) for number in error.args[1])
        raise ModelError(f"the graph has a cycle, from {around}; export the model again") from error


def check_operators(graph: onnx.GraphProto, *, simplified: bool) -> None:
    """Check that each node is one that always gives the same, and that can be planned.

    An If whose condition is constant is gone once the graph is `simplified`.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.domain not in _DOMAINS:
            raise ModelError(
                f"{label(node)} is a custom operator, from the domain '{node.domain}', which "
                "onnxruntime does not have; export the model with standard operators"
            )
        if node.domain in _STANDARD and not onnx.defs.has(node.op_type):
            raise ModelError(
                f"{label(node)} is no operator of ONNX; export the model with standard operators"
            )
        if node.op_type in _RANDOM:
            raise ModelError(f"{label(node)} gives another result at each run; remove it")
        if node.op_type == "If" and not node.domain and not simplified:
            continue
        if node.op_type in _CONTROL or any(a.type in _GRAPHS for a in node.attribute):
            raise ModelError(
                f"{label(node)} is control flow, which HaloMQ cannot plan; export with fixed sizes "
                "and without it (onnxsim or onnxslim removes conditions that are constant)"
            )
        _check_training(node, constants)
        _check_pads(node, constants)
        for attribute in node.attribute:
            tensors = [attribute.t, *attribute.tensors]
            if any(t.data_location == TensorProto.EXTERNAL for t in tensors):
                raise ModelError(
                    f"{label(node)} keeps its attribute '{attribute.name}' in another file; "
                    "only initializers may be there"
                )


def _check_training(node: onnx.NodeProto, constants: Mapping[str, TensorProto]) -> None:
    trains = any(a.name == "training_mode" and a.i for a in node.attribute)
    if node.op_type == "BatchNormalization":
        trains = trains or len([name for name in node.output if name]) > 1
    if node.op_type == "Dropout" and len(node.input) > _TRAINING_INPUT:
        trains = trains or any(_values(constants.get(node.input[_TRAINING_INPUT])))
    if trains:
        raise ModelError(
            f"{label(node)} is in training mode; export the model for inference (model.eval())"
        )


def _check_pads(node: onnx.NodeProto, constants: Mapping[str, TensorProto]) -> None:
    pads = [value for a in node.attribute if a.name == "pads" for value in a.ints]
    if node.op_type == "Pad" and len(node.input) > 1:
        pads += _values(constants.get(node.input[1]))
    if any(value < 0 for value in pads):
        raise ModelError(
            f"{label(node)}: negative pads refused ({', '.join(map(str, pads))}); "
            "use a Slice node instead"
        )


def _values(tensor: onnx.TensorProto | None) -> list[int]:
    """Return the values of a constant that holds integers, none for any other."""
    if tensor is None or tensor.data_type not in {TensorProto.BOOL, TensorProto.INT64}:
        return []
    values: list[int] = numpy_helper.to_array(tensor).reshape(-1).tolist()
    return values


def check_input(graph: onnx.GraphProto, weights: Mapping[str, Array]) -> None:
    """Check that the model takes one image of a fixed size."""
    values = [value for value in graph.input if value.name not in weights]
    if len(values) != 1:
        names = ", ".join(f"'{value.name}'" for value in values)
        raise ModelError(f"the model has {len(values)} inputs ({names}); HaloMQ serves one image")
    value = values[0]
    where = f"the input '{value.name}'"
    kind = value.type.tensor_type
    dims = kind.shape.dim
    free = [d for d in dims if not d.HasField("dim_value")]
    if free or (value.type.HasField("tensor_type") and not kind.HasField("shape")):
        names = ", ".join(f"'{d.dim_param or '?'}'" for d in free) or "all of them"
        usual = _USUAL if len(dims) in {0, len(_USUAL)} else (1,) * len(dims)
        stated = [d.dim_value if d.HasField("dim_value") else 0 for d in dims] or [0] * len(usual)
        fixed = ",".join(str(a or b) for a, b in zip(stated, usual, strict=True))
        raise ModelError(
            f"{where} has free dimensions ({names}); fix them, for instance with "
            "python -m onnxruntime.tools.make_dynamic_shape_fixed --input_name "
            f"{value.name} --input_shape {fixed} MODEL.onnx FIXED.onnx"
        )
    shape = tensor_of(value, "the model").shape
    if shape and shape[0] != 1:
        raise ModelError(
            f"{where} has the shape {shape}, a batch of {shape[0]}; "
            "HaloMQ answers one image at a time: export with batch 1"
        )


def check_sizes(graph: onnx.GraphProto, weights: Mapping[str, Array]) -> None:
    """Check that devices can hold the tensors whose shapes are known; none is made for that."""
    total = sum(array.nbytes for array in weights.values())
    if total > MAX_WEIGHT_BYTES:
        raise ModelError(
            f"the model has {total / 2**30:.1f} GiB of weights; "
            f"HaloMQ serves at most {MAX_WEIGHT_BYTES >> 30} GiB"
        )
    writers = {name: node for node in graph.node for name in node.output}
    for value in (*graph.input, *graph.value_info, *graph.output):
        if value.name in weights or not value.type.HasField("tensor_type"):
            continue
        node = writers.get(value.name)
        where = f"the input '{value.name}'" if node is None else label(node)
        kind = value.type.tensor_type
        shape = [d.dim_value for d in kind.shape.dim]
        known = kind.elem_type not in {TensorProto.UNDEFINED, TensorProto.STRING}
        itemsize = helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize if known else 1
        nbytes = prod(shape) * itemsize
        if nbytes > MAX_TENSOR_BYTES:
            raise ModelError(
                f"{where}: '{value.name}' takes {nbytes / 2**30:.1f} GiB; HaloMQ serves tensors of "
                f"at most {MAX_TENSOR_BYTES >> 30} GiB: export the model for smaller images"
            )
        if len(shape) > MAX_RANK:
            raise ModelError(
                f"{where}: '{value.name}' has {len(shape)} axes; HaloMQ sends at most {MAX_RANK}"
            )


def check_declared(model: onnx.ModelProto) -> None:
    """Check that outputs have the sizes that the model declares, as far as they can be told."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.value_info[:]
    for value in bare.graph.output:
        value.type.tensor_type.ClearField("shape")
    found = onnx.shape_inference.infer_shapes(bare, data_prop=True).graph.output
    writers = {name: node for node in model.graph.node for name in node.output}
    for declared, inferred in zip(model.graph.output, found, strict=True):
        one, other = _extents(declared), _extents(inferred)
        known = [(a, b) for a, b in zip(one, other, strict=False) if a and b]
        unlike = len(one) != len(other) or any(a != b for a, b in known)
        if one and other and unlike:
            raise ModelError(
                f"the output '{declared.name}' is declared to be {one}, and "
                f"{label(writers[declared.name])} gives {other}; export the model again"
            )


def _extents(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    """Return a tensor's extents, 0 where one is not known; none where the shape is not."""
    return tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)


def check_boxes(graph: onnx.GraphProto) -> None:
    """Check that no detector's last step is left in the graph, which gives any number of boxes."""
    for node in graph.node:
        if node.op_type == "NonMaxSuppression":
            raise ModelError(
                f"{label(node)}: the size of its output depends on the data; export the detector "
                'without it (with task = "detection" in the manifest, HaloMQ picks the boxes)'
            )


def check_windows(graph: Graph) -> None:
    """Check that convolutions fit their inputs, and that poolings give what their shapes say."""
    for node in graph.nodes:
        if node.op == "Conv" and not node.proto.domain:
            shape, kernel = graph.shape(node.inputs[0]), graph.shape(node.inputs[1])
            group = node.attributes.get("group", 1)
            if group < 1 or kernel[0] % group or shape[1:2] != (kernel[1] * group,):
                raise ModelError(
                    f"{node.label} reads {shape[1]} channels of '{node.inputs[0]}', and its kernel "
                    f"{kernel} in {group} group(s) does not fit them; export the model again"
                )
        if node.op in {"Resize", "Upsample"} and not node.domain:
            _check_resize(node, graph)
        if node.op not in {"AveragePool", "LpPool", "MaxPool"}:
            continue
        inner, outer = (
            graph.shape(name)[_FIRST_SPATIAL_AXIS:] for name in (node.inputs[0], node.outputs[0])
        )
        if drops_last_window(node, inner, outer):
            raise ModelError(
                f"{node.label} rounds up (ceil_mode) to a window that lies in the padding, which "
                "onnxruntime drops and the model's shapes count; export it with ceil_mode 0"
            )


def _check_resize(node: Node, graph: Graph) -> None:
    axis = disputed_axis(node, graph)
    if axis is not None:
        raise ModelError(
            f"{node.label} scales axis {axis} to {graph.shape(node.outputs[0])[axis]} elements by "
            "the model's shapes, and to another number by onnxruntime's arithmetic; export it with "
            "sizes instead of scales"
        )


def runtime_reason(error: Exception, nodes: Sequence[onnx.NodeProto]) -> str:
    """Return why onnxruntime refuses a model, with the node's name where it tells."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", one_line(error))
    text = text.removeprefix("This is an invalid model. ").removeprefix("Fatal error: ")
    # Where in its sources it is raised: a file, a line and a signature.
    text = re.sub(r"^/\S+:\d+ .*?\) ", "", text)
    if match := re.match(r"Node \((.*?)\) Op \((\w+)\) (?:\[\w+\] )?(.*)", text):
        return f"{match[2]} '{match[1]}': {match[3]}"
    if match := re.match(r'In Node, \("(.*?)", (\w+), .*?\) : .*, Error (.*)', text):
        return f"{_found(nodes, match[2], match[1])}: {match[3]}"
    if match := re.match(r"([\w.]+):(\w+)\(-?\d+\) is not a registered", text):
        return (
            f"{_found(nodes, match[2])} is an operator that it does not have in {match[1]}; "
            "export the model with standard operators"
        )
    if match := re.search(r"Opset (\d+) is under development.* till opset (\d+)", text):
        return f"the model uses opset {match[1]}; export it with opset {match[2]} or earlier"
    return text


def _found(nodes: Iterable[onnx.NodeProto], op: str, name: str = "") -> str:
    named = (label(n) for n in nodes if n.op_type == op and (n.name == name or not name))
    return next(named, f"{op} '{name}'")
