"""A small model under construction whose operators are written as its opset has them."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.planner.oracle import Builder

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from random import Random

    from tests.planner.oracle import Array

FLOAT = TensorProto.FLOAT


class Sketch(Builder):
    """A Builder that draws from `random`, and knows each tensor's type as soon as it is added."""

    def __init__(self, random: Random, shape: Sequence[int], opset: int) -> None:
        super().__init__(shape, opset=opset, seed=random.randrange(1 << 30))
        self.random = random
        self._types: dict[str, tuple[int, tuple[int, ...]]] = {"x": (FLOAT, tuple(shape))}
        self._arrays: dict[str, onnx.TensorProto] = {}

    def constant(self, array: Array) -> str:
        """Add an initializer."""
        name = super().constant(array)
        self._arrays[name] = self.initializers[-1]
        self._types[name] = (self.initializers[-1].data_type, array.shape)
        return name

    def ints(self, *values: int) -> str:
        """Add a list of integers."""
        return self.constant(np.array(values, np.int64))

    def floats(self, *values: float) -> str:
        """Add a list of floats."""
        return self.constant(np.array(values, np.float32))

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Add a node of one output and work out its type."""
        return self.several(op, 1, *inputs, **attributes)[0]

    def several(self, op: str, count: int, *inputs: str, **attributes: Any) -> list[str]:
        """Add a node of `count` outputs."""
        names = [f"t{len(self.nodes)}" + (f".{n}" if n else "") for n in range(count)]
        node = helper.make_node(
            op, list(inputs), names, name=f"{op}{len(self.nodes)}", **attributes
        )
        known = dict.fromkeys(filter(None, inputs))
        graph = helper.make_graph(
            [node],
            "one",
            [
                helper.make_tensor_value_info(name, *self._types[name])
                for name in known
                if name not in self._arrays
            ],
            [helper.make_empty_tensor_value_info(name) for name in names],
            [self._arrays[name] for name in known if name in self._arrays],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)])
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True, strict_mode=True)
        for value in inferred.graph.output:
            kind = value.type.tensor_type
            assert kind.HasField("shape"), f"the shape that {op} gives is not known"
            shape = tuple(d.dim_value for d in kind.shape.dim)
            assert all(extent > 0 for extent in shape), f"{op} gives {shape}"
            self._types[value.name] = (kind.elem_type, shape)
        self.nodes.append(node)
        return names

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return self._types[name][1]

    def size(self, name: str) -> int:
        """How many elements a tensor has."""
        return prod(self.shape(name))

    def save(self, path: Path, *outputs: str, external: bool = False) -> Path:
        """Write the model with these outputs, in the types that they have."""
        assert not external
        values = [helper.make_tensor_value_info(name, *self._types[name]) for name in outputs]
        path.write_bytes(self.model(values).SerializeToString())
        return path

    # Operators whose form depends on the opset -----------------------------------------------

    def reduce(self, op: str, x: str, axes: Sequence[int], keepdims: int) -> str:
        """Add a reduction."""
        if self.opset < (13 if op == "ReduceSum" else 18):
            return self.add(op, x, axes=list(axes), keepdims=keepdims)
        return self.add(op, x, self.ints(*axes), keepdims=keepdims)

    def squeeze(self, op: str, x: str, axes: Sequence[int]) -> str:
        """Add Squeeze or Unsqueeze."""
        if self.opset < 13:
            return self.add(op, x, axes=list(axes))
        return self.add(op, x, self.ints(*axes))

    def split(self, x: str, axis: int, lengths: Sequence[int]) -> list[str]:
        """Add a Split."""
        if self.opset < 13:
            return self.several("Split", len(lengths), x, axis=axis, split=list(lengths))
        return self.several("Split", len(lengths), x, self.ints(*lengths), axis=axis)

    def slice(self, x: str, axis: int, start: int, end: int, step: int = 1) -> str:
        """Add a Slice of one axis."""
        if self.opset < 10:
            return self.add("Slice", x, axes=[axis], starts=[start], ends=[end])
        bounds = [self.ints(value) for value in (start, end, axis, step)]
        return self.add("Slice", x, *bounds[: 4 if step != 1 else 3])

    def pad(self, x: str, pads: Sequence[int], mode: str, value: float = 0.0) -> str:
        """Add a Pad."""
        if self.opset < 11:
            return self.add("Pad", x, pads=list(pads), mode=mode, value=value)
        filling = [self.constant(np.array(value, np.float32))] if mode == "constant" else []
        return self.add("Pad", x, self.ints(*pads), *filling, mode=mode)

    def clip(self, x: str, low: float, high: float) -> str:
        """Add a Clip."""
        if self.opset < 11:
            return self.add("Clip", x, min=low, max=high)
        bounds = [self.constant(np.array(value, np.float32)) for value in (low, high)]
        return self.add("Clip", x, *bounds)

    def resize(
        self,
        x: str,
        *,
        scales: Sequence[float] = (),
        sizes: Sequence[int] = (),
        **attributes: Any,
    ) -> str:
        """Add a Resize to all of an image's axes; opset 9 has Upsample instead."""
        if self.opset < 11:
            op = "Upsample" if self.opset < 10 else "Resize"
            return self.add(op, x, self.floats(*scales), mode=attributes["mode"])
        absent = "" if self.opset >= 13 else self.floats()
        if sizes:
            return self.add("Resize", x, absent, absent, self.ints(*sizes), **attributes)
        return self.add("Resize", x, absent, self.floats(*scales), **attributes)

    # Weights ---------------------------------------------------------------------------------

    def expression(self, array: Array) -> str:
        """Add a weight, or what computes about this one from another."""
        kind = self.random.choice(("plain",) * 3 + ("turned", "half", "flat", "bytes", "by row"))
        if kind == "turned":
            order = self.random.sample(range(array.ndim), array.ndim)
            back = [order.index(axis) for axis in range(array.ndim)]
            turned = np.ascontiguousarray(array.transpose(order))
            return self.add("Transpose", self.constant(turned), perm=back)
        if kind == "half":
            return self.add("Cast", self.constant(array.astype(np.float16)), to=FLOAT)
        if kind == "flat":
            flat = self.constant(array.reshape(array.shape[0], -1))
            return self.add("Reshape", flat, self.ints(*array.shape))
        if (kind == "bytes" and self.opset >= 10) or (kind == "by row" and self.opset >= 13):
            rows = array.shape[0] if kind == "by row" else 1
            scale = np.abs(array).reshape(rows, -1).max(axis=1).astype(np.float32) / 127
            spread = scale.reshape(-1, *[1] * (array.ndim - 1))
            quantized = self.constant(np.round(array / spread).astype(np.int8))
            zero = np.zeros(rows, np.int8)
            if kind == "bytes":
                parameters = (scale[0], zero[0])
                return self.add("DequantizeLinear", quantized, *map(self._scalar, parameters))
            return self.add(
                "DequantizeLinear", quantized, self.constant(scale), self.constant(zero), axis=0
            )
        return self.constant(array)

    def _scalar(self, value: Any) -> str:
        return self.constant(np.asarray(value))

    def filters(self, *shape: int, fan_in: int) -> str:
        """Add a weight that keeps the size of what it is multiplied with."""
        drawn = self.rng.standard_normal(shape) * fan_in**-0.5
        return self.expression(drawn.astype(np.float32))
