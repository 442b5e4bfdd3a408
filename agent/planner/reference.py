"""The whole model with more outputs: what the tensors at a plan's cuts are on a single device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import helper

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.planner.importer import ImportedModel


def with_outputs(imported: ImportedModel, outputs: Sequence[str]) -> bytes:
    """Return the imported graph with other outputs; its weights are external initializers.

    Args:
        imported: the model.
        outputs: activations of its graph.
    """
    model = onnx.load_model_from_string(imported.graph)
    graph = model.graph
    weights = {entry.name: entry for entry in imported.weights}
    known = {value.name: value for value in (*graph.value_info, *graph.output, *graph.input)}
    inputs = [value for value in graph.input if value.name not in weights]
    del graph.input[:]
    del graph.output[:]
    graph.input.extend(inputs)
    graph.output.extend(known[name] for name in outputs)
    for entry in weights.values():
        dtype = np.dtype(entry.dtype)
        tensor = onnx.TensorProto(
            name=entry.name,
            dims=entry.shape,
            data_type=helper.np_dtype_to_tensor_dtype(dtype),
            data_location=onnx.TensorProto.EXTERNAL,
        )
        nbytes = int(np.prod(entry.shape)) * dtype.itemsize
        # Never opened: the runtime is handed every one.
        for key, value in (("location", "weights"), ("offset", "0"), ("length", str(nbytes))):
            tensor.external_data.add(key=key, value=value)
        graph.initializer.append(tensor)
    model.ir_version = max(model.ir_version, 4)  # before, initializers had to be inputs
    content: bytes = model.SerializeToString()
    return content
