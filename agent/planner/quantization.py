"""Quantized tensors, signed or not: as onnxruntime has them on x86.

There it turns signed activations into unsigned ones between a QuantizeLinear and its only
DequantizeLinear, and so decides which operators run on integers. A tensor that crosses a cut has
these two on different devices; so it is turned here, and every device computes what one device
does. On Arm, where signed kernels are the fast ones, everything stays as it is.
"""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import numpy_helper

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.planner.graph import Graph, Node

_X86 = frozenset({"x86_64", "AMD64", "amd64", "i686", "x86"})
_SHIFT = 128
_CLIPPING = frozenset({"Relu", "Clip"})
# What makes integers of floats; onnxruntime's own operators on these are QSomething.
_ROUNDING = frozenset({"QuantizeLinear", "DynamicQuantizeLinear"})


def as_the_runtime_has_it(graph: onnx.GraphProto, machine: str | None = None) -> None:
    """Turn signed activations into unsigned ones where onnxruntime does on `machine`.

    Args:
        graph: a graph whose weights are inputs or initializers; it is changed.
        machine: the processor as `platform.machine` calls it, by default this one.
    """
    if (machine or platform.machine()) not in _X86:
        return
    constants = {tensor.name: tensor for tensor in graph.initializer}
    outputs = {value.name for value in graph.output}
    for node in graph.node:
        if node.op_type != "QuantizeLinear" or node.output[0] in outputs:
            continue
        readers = [other for other in graph.node if node.output[0] in other.input]
        pair = [node, *readers]
        if len(pair) == 2 and readers[0].op_type == "DequantizeLinear":  # noqa: PLR2004
            zeros = [_signed_zero(member, constants) for member in pair]
            if all(zero is not None for zero in zeros):
                _turn(pair, [int(zero or 0) + _SHIFT for zero in zeros], graph)


def on_x86() -> bool:
    """Tell whether this processor is an x86, with onnxruntime's kernels for it."""
    return platform.machine() in _X86


def rounds_to_integers(graph: Graph) -> bool:
    """Tell whether a model rounds activations to integers: a difference is then a whole step."""
    ops = {node.op for node in graph.nodes}
    return bool(ops & _ROUNDING) or any(op.startswith(("QLinear", "QGemm")) for op in ops)


def is_on_integers(node: Node, graph: Graph) -> bool:
    """Tell whether onnxruntime computes a Conv, Gemm or MatMul of floats on integers.

    It does where all inputs are dequantized and its one reader quantizes to the type that the
    activation had; that the quantized range clips makes a Relu or Clip before it needless.
    """
    producer = graph.producers.get(node.inputs[0])
    weights = [graph.expressions.get(name) for name in node.inputs[1:] if name]
    if any(found is None or found.op != "DequantizeLinear" for found in (producer, *weights)):
        return False
    output = node.outputs[0]
    while True:
        readers = graph.consumers.get(output, ())
        if len(readers) != 1 or output in graph.outputs:
            return False
        output = readers[0].outputs[0]
        if readers[0].op not in _CLIPPING:
            break
    kind = graph.tensors[node.inputs[0] if producer is None else producer.inputs[0]].dtype
    same = readers[0].op == "QuantizeLinear" and graph.tensors[output].dtype == kind
    return same and kind in ({"uint8"} if on_x86() else {"uint8", "int8"})


def _signed_zero(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> int | None:
    """Return the signed zero point of a quantization by tensor, None where it is another one."""
    zero = constants.get(node.input[2]) if len(node.input) > 2 else None  # noqa: PLR2004
    if zero is None or zero.data_type != onnx.TensorProto.INT8:
        return None
    values = numpy_helper.to_array(zero)
    return int(values.reshape(-1)[0]) if values.size == 1 else None


def _turn(pair: Sequence[onnx.NodeProto], zeros: Sequence[int], graph: onnx.GraphProto) -> None:
    for node, zero in zip(pair, zeros, strict=True):
        name = f"{node.output[0]}.unsigned_zero"
        graph.initializer.append(numpy_helper.from_array(np.array(zero, np.uint8), name))
        node.input[2] = name
        kept = [attribute for attribute in node.attribute if attribute.name != "output_dtype"]
        del node.attribute[:]
        node.attribute.extend(kept)
    for value in graph.value_info:
        if value.name == pair[0].output[0]:
            value.type.tensor_type.elem_type = onnx.TensorProto.UINT8
