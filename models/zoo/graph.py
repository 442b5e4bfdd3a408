"""An ONNX graph in the making: its nodes, initializers, and the shapes that windows give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from models.zoo.weights import Moments

    Shape = tuple[int, ...]
    Pair = int | tuple[int, int]
    Pads = int | tuple[int, int, int, int] | Literal["SAME_UPPER"] | None


@dataclass(frozen=True)
class Value:
    """A tensor of the graph: its name, shape, and the moments its elements are expected to have."""

    name: str
    shape: Shape
    mean: float = 0.0
    var: float = 1.0

    @property
    def channels(self) -> int:
        """The size of axis 1."""
        return self.shape[1]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a map in NCHW."""
        return self.shape[2], self.shape[3]

    @property
    def moments(self) -> Moments:
        """Mean and variance."""
        return self.mean, self.var


NONE = Value("", ())  # stands for an optional input that is left out


class Graph:
    """Nodes and initializers, in the order in which they are added."""

    def __init__(self, name: str, *, opset: int = 17, ir_version: int = 8) -> None:
        self.name = name
        self.opset = opset
        self._ir_version = ir_version
        self._nodes: list[NodeProto] = []
        self.initializers: dict[str, TensorProto] = {}
        self._inputs: list[Value] = []
        self._outputs: dict[str, tuple[str, Shape]] = {}

    # The graph

    def input(self, *shape: int, name: str = "image") -> Value:
        """Declare an input."""
        value = Value(name, shape)
        self._inputs.append(value)
        return value

    def output(self, value: Value, name: str) -> None:
        """Declare a value to be an output, under a name of its own."""
        self._outputs[value.name] = (name, value.shape)

    def model(self) -> ModelProto:
        """Return the model as it stands."""
        final = {before: name for before, (name, _) in self._outputs.items()}
        nodes = []
        for node in self._nodes:
            renamed = NodeProto()
            renamed.CopyFrom(node)
            renamed.input[:] = [final.get(name, name) for name in node.input]
            renamed.output[:] = [final.get(name, name) for name in node.output]
            nodes.append(renamed)
        graph = helper.make_graph(
            nodes,
            self.name,
            [_declared(value.name, value.shape) for value in self._inputs],
            [_declared(name, shape) for name, shape in self._outputs.values()],
            list(self.initializers.values()),
        )
        return helper.make_model(
            graph,
            producer_name="halomq-zoo",
            ir_version=self._ir_version,
            opset_imports=[helper.make_opsetid("", self.opset)],
        )

    def save(self, path: Path) -> None:
        """Write the model, its weights included."""
        path.write_bytes(self.model().SerializeToString(deterministic=True))

    def node(
        self,
        kind: str,
        inputs: Sequence[Value],
        shape: Shape,
        moments: Moments,
        **attributes: Any,
    ) -> Value:
        """Add a node with one output."""
        return self.multiple(kind, inputs, [shape], moments, **attributes)[0]

    def multiple(
        self,
        kind: str,
        inputs: Sequence[Value],
        shapes: Sequence[Shape],
        moments: Moments,
        **attributes: Any,
    ) -> list[Value]:
        """Add a node with an output for each shape."""
        name = f"{kind.lower()}_{len(self._nodes)}"
        outputs = [f"{name}_{index}" for index in range(len(shapes))] if shapes[1:] else [name]
        names = [value.name for value in inputs]
        self._nodes.append(helper.make_node(kind, names, outputs, name, **attributes))
        return [
            Value(output, shape, *moments) for output, shape in zip(outputs, shapes, strict=True)
        ]

    def constant(self, array: NDArray[Any], name: str = "") -> Value:
        """Add an initializer; equal ones without a name of their own are one."""
        name = name or f"{array.dtype}_" + "x".join(str(item) for item in array.ravel().tolist())
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return Value(name, array.shape)

    def integers(self, *items: int) -> Value:
        """Add a list of int64: a shape, axes, sizes."""
        return self.constant(np.array(items, np.int64))


def _declared(name: str, shape: Shape) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))


def pair_of(item: Pair) -> tuple[int, int]:
    """Return what holds for height and for width."""
    return (item, item) if isinstance(item, int) else item


def window(
    x: Value, kernel: Pair, stride: Pair, pads: Pads, dilation: int = 1, *, ceil: bool = False
) -> tuple[dict[str, Any], tuple[int, int]]:
    """Return the attributes of a window, and the size of the map that it makes."""
    kernels, strides = pair_of(kernel), pair_of(stride)
    spans = [dilation * (length - 1) + 1 for length in kernels]
    attributes: dict[str, Any] = {"kernel_shape": list(kernels), "strides": list(strides)}
    if dilation > 1:
        attributes["dilations"] = [dilation, dilation]
    if ceil:
        attributes["ceil_mode"] = 1
    if isinstance(pads, str):
        attributes["auto_pad"] = pads
        return attributes, (-(-x.shape[2] // strides[0]), -(-x.shape[3] // strides[1]))
    if pads is None:
        half = [(span - 1) // 2 for span in spans]
        pads = (half[0], half[1], half[0], half[1])
    elif isinstance(pads, int):
        pads = (pads,) * 4
    attributes["pads"] = list(pads)
    height, width = (
        (x.shape[2 + axis] + pads[axis] + pads[2 + axis] - spans[axis] + ceil * (step - 1)) // step
        + 1
        for axis, step in enumerate(strides)
    )
    return attributes, (height, width)
