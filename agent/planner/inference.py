"""The type and static shape of every tensor: as ONNX infers them, or as onnxruntime does."""

from __future__ import annotations

import onnx
import onnxruntime as ort

from agent.errors import ModelError

_TYPES = {
    "tensor(bool)": onnx.TensorProto.BOOL,
    "tensor(int8)": onnx.TensorProto.INT8,
    "tensor(int16)": onnx.TensorProto.INT16,
    "tensor(int32)": onnx.TensorProto.INT32,
    "tensor(int64)": onnx.TensorProto.INT64,
    "tensor(uint8)": onnx.TensorProto.UINT8,
    "tensor(uint16)": onnx.TensorProto.UINT16,
    "tensor(uint32)": onnx.TensorProto.UINT32,
    "tensor(uint64)": onnx.TensorProto.UINT64,
    "tensor(float16)": onnx.TensorProto.FLOAT16,
    "tensor(float)": onnx.TensorProto.FLOAT,
    "tensor(double)": onnx.TensorProto.DOUBLE,
}


def infer_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with the shape of every tensor that can be known.

    ONNX knows nothing of onnxruntime's own operators; onnxruntime does.

    Raises:
        ModelError: if shapes contradict each other.
    """
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ModelError(f"the model's shapes contradict each other: {reason}") from error
    unknown = without_shape(inferred.graph)
    if unknown:
        found = _asked_of_the_runtime(inferred, unknown)
        names = {value.name for value in found}
        kept = [value for value in inferred.graph.value_info if value.name not in names]
        del inferred.graph.value_info[:]
        inferred.graph.value_info.extend([*kept, *found])
    return inferred


def without_shape(graph: onnx.GraphProto) -> list[str]:
    """Return the tensors that nodes write and that have no static shape."""
    known = {v.name for v in (*graph.value_info, *graph.output) if _is_static(v)}
    return [
        name
        for node in graph.node
        for name in node.output
        if name and name not in known and not _is_output(name, graph)
    ]


def _is_static(value: onnx.ValueInfoProto) -> bool:
    kind = value.type.tensor_type
    return kind.HasField("shape") and all(dim.HasField("dim_value") for dim in kind.shape.dim)


def _is_output(name: str, graph: onnx.GraphProto) -> bool:
    return any(value.name == name for value in graph.output)


def _asked_of_the_runtime(model: onnx.ModelProto, names: list[str]) -> list[onnx.ValueInfoProto]:
    """Return what onnxruntime makes of some tensors, of those whose shape it knows."""
    asked = onnx.ModelProto()
    asked.CopyFrom(model)
    asked.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(
            asked.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception:  # noqa: BLE001 - it was loaded before; what stays unknown is named later
        return []
    wanted = set(names)
    return [
        onnx.helper.make_tensor_value_info(value.name, _TYPES[value.type], value.shape)
        for value in session.get_outputs()
        if value.name in wanted
        and value.type in _TYPES
        and all(isinstance(extent, int) for extent in value.shape)
    ]
