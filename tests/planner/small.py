"""Models of a few nodes, right and wrong, for what is said of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Callable

OPSETS = {"acme": 1, "com.microsoft": 1}
PICTURE = (1, 3, 8, 8)


def node(
    op: str, *inputs: str, name: str | None = None, to: str = "y", **attributes: Any
) -> onnx.NodeProto:
    """A node that is called "it" where it writes the model's output and nothing else is said."""
    name = name if name is not None else "it" * (to == "y")
    return helper.make_node(op, list(inputs or ["x"]), [to], name=name, **attributes)


def model(
    *nodes: onnx.NodeProto,
    shape: tuple[Any, ...] | None = PICTURE,
    opset: int = 17,
    tensors: tuple[onnx.TensorProto, ...] = (),
    kind: int = TensorProto.FLOAT,
    functions: tuple[onnx.FunctionProto, ...] = (),
) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", kind, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(list(nodes), "g", [x], [y], tensors)
    opsets = [helper.make_opsetid(*pair) for pair in {"": opset, **OPSETS}.items()]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=functions)


def tensor(name: str, values: Any, kind: type = np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, kind), name)


def changed(made: onnx.ModelProto, change: Callable[[onnx.GraphProto], Any]) -> onnx.ModelProto:
    change(made.graph)
    return made


def kernel(**fields: Any) -> onnx.TensorProto:
    """Large weights of a Conv, with some fields changed."""
    made = tensor("w", np.zeros((40, 3, 4, 4)))
    for key, value in fields.items():
        made.ClearField(key)
        if isinstance(value, list):
            getattr(made, key).extend(value)
        else:
            setattr(made, key, value)
    return made


def conv(*tensors: onnx.TensorProto, **attributes: Any) -> onnx.ModelProto:
    return model(node("Conv", "x", "w", **attributes), tensors=tensors or (kernel(),))


def function(name: str, *calls: str) -> onnx.FunctionProto:
    """A function of one tensor that calls others one after the other."""
    names = ["a", *(f"t{number}" for number in range(len(calls) - 1)), "b"]
    nodes = [
        node(call, names[i], to=names[i + 1], domain="" if call == "Relu" else "acme")
        for i, call in enumerate(calls)
    ]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("acme", 1)]
    return helper.make_function("acme", name, ["a"], ["b"], nodes, opsets)


def calling(*functions: onnx.FunctionProto) -> onnx.ModelProto:
    return model(node(functions[0].name, domain="acme"), functions=functions)
