"""What the planner's tests share: running a plan in one process, and building small models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from agent.adapters.runtime import RuntimeOptions, Segment, run_whole
from agent.geometry import contains, intersect, missing, shape_of, slices_within, whole
from agent.planner import Device, check, compile_plan, import_model, read_graph

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from agent.geometry import Region
    from agent.planner import Graph, ImportedModel, Plan
    from agent.wire.program import Part, Program, WeightSpec

Array = np.ndarray[Any, Any]
OPTIONS = RuntimeOptions()


def weight(spec: WeightSpec, blobs: Mapping[str, bytes | memoryview]) -> Array:
    """Put a weight together from its parts, as a device does."""
    content = b"".join(blobs[part.digest] for part in spec.parts)
    count = int(np.prod(spec.shape))
    return np.frombuffer(content, spec.dtype, count, spec.offset).reshape(spec.shape)


class Fleet:
    """All devices of a plan in one process: runs each step once everything it reads is there."""

    def __init__(self, plan: Plan, model: ImportedModel, options: RuntimeOptions = OPTIONS) -> None:
        self.plan = plan
        blobs = {ref.digest: content for ref, content in model.blobs()}
        self._segments = {
            (device, number): Segment(
                plan.segments[spec.graph.digest],
                {w.name: weight(w, blobs) for w in spec.weights},
                options,
            )
            for device, program in plan.programs.items()
            for number, spec in enumerate(program.segments)
        }
        self._held: dict[tuple[str, str], list[tuple[Region, Array]]] = {}

    def run(self, value: Array) -> list[Array]:
        """Answer one request."""
        self._held = {}
        for device, program in self.plan.programs.items():
            self._put(device, program, program.input, whole(value.shape), value)
        steps = [(d, s) for d, p in self.plan.programs.items() for s in p.steps]
        sends = [(d, s) for d, p in self.plan.programs.items() for s in p.sends]
        while steps or sends:
            before = len(steps) + len(sends)
            steps = [(d, s) for d, s in steps if not self._step(d, s)]
            sends = [(d, s) for d, s in sends if not self._send(d, s)]
            assert len(steps) + len(sends) < before, "the programs are stuck"
        first = self.plan.programs[self.plan.devices[0]]
        answers = [self._get(self.plan.devices[0], first, part) for part in first.answers]
        assert all(answer is not None for answer in answers)
        return [answer for answer in answers if answer is not None]

    def _step(self, device: str, step: Any) -> bool:
        program = self.plan.programs[device]
        inputs = [self._get(device, program, part) for part in step.reads]
        if any(array is None for array in inputs):
            return False
        outputs = self._segments[device, step.segment].run([a for a in inputs if a is not None])
        for part, array in zip(step.writes, outputs, strict=True):
            assert array.shape == shape_of(part.region)
            self._put(device, program, part.tensor, part.region, array)
        return True

    def _send(self, device: str, send: Any) -> bool:
        program = self.plan.programs[device]
        array = self._get(device, program, send.part)
        if array is None:
            return False
        self._put(send.to, program, send.part.tensor, send.part.region, array)
        return True

    def _put(self, to: str, program: Program, tensor: int, region: Region, array: Array) -> None:
        name = program.tensors[tensor].name
        self._held.setdefault((to, name), []).append((region, array))

    def _get(self, device: str, program: Program, part: Part) -> Array | None:
        spec = program.tensors[part.tensor]
        pieces = self._held.get((device, spec.name), [])
        if missing(part.region, [region for region, _ in pieces]):
            return None
        for region, array in pieces:
            if contains(region, part.region):
                return np.ascontiguousarray(array[slices_within(part.region, region)])
        result = np.empty(shape_of(part.region), spec.dtype)
        for region, array in pieces:
            common = intersect(region, part.region)
            if common is not None:
                target = slices_within(common, part.region)
                result[target] = array[slices_within(common, region)]
        return result


def devices(*rates: float) -> list[Device]:
    """Devices of the given capacities, in GFLOP/s."""
    return [Device(f"d{number}", rate * 1e9) for number, rate in enumerate(rates)]


def load(path: Path) -> tuple[ImportedModel, Graph]:
    """Import a model and read its graph."""
    model = import_model(path)
    return model, read_graph(model.graph, model.weights)


def compare(path: Path, fleet: Sequence[Device], **forced: Any) -> tuple[float, bool, Plan]:
    """Plan a model, run it whole and distributed.

    Returns:
        The largest error relative to the largest output, whether all bytes agree, and the plan.
    """
    model, graph = load(path)
    plan = compile_plan(graph, fleet, model_name=model.name, **forced)
    check(plan.programs)
    tensor = graph.tensors[graph.input]
    value = np.random.default_rng(1).standard_normal(tensor.shape).astype(tensor.dtype)
    expected = run_whole(path, [value], OPTIONS)
    found = Fleet(plan, model).run(value)
    assert [a.shape for a in found] == [a.shape for a in expected]
    error = max(relative_error(a, b) for a, b in zip(found, expected, strict=True))
    same = all(a.tobytes() == b.tobytes() for a, b in zip(found, expected, strict=True))
    return error, same, plan


def relative_error(found: Array, expected: Array) -> float:
    largest = float(np.abs(expected).max()) or 1.0
    return float(np.abs(found.astype(np.float64) - expected).max()) / largest


class Builder:
    """A small model under construction; weights are seeded."""

    def __init__(self, shape: Sequence[int], *, opset: int = 17, seed: int = 0) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.input = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
        self.rng = np.random.default_rng(seed)

    def weight(self, *shape: int, scale: float = 1.0) -> str:
        return self.constant((self.rng.standard_normal(shape) * scale).astype(np.float32))

    def positive(self, *shape: int) -> str:
        return self.constant(self.rng.uniform(0.5, 1.5, shape).astype(np.float32))

    def constant(self, array: Array) -> str:
        name = f"w{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(op, list(inputs), [name], name=f"{op}{len(self.nodes)}", **attributes)
        )
        return name

    def conv(self, x: str, out: int, kernel: int = 3, group: int = 1, **attributes: Any) -> str:
        inner = self.shape(x)[1] // group
        weight = self.weight(out, inner, kernel, kernel, scale=(inner * kernel**2) ** -0.5)
        return self.add("Conv", x, weight, self.weight(out), group=group, **attributes)

    def normalize(self, x: str) -> str:
        c = self.shape(x)[1]
        parameters = (self.positive(c), self.weight(c), self.weight(c), self.positive(c))
        return self.add("BatchNormalization", x, *parameters)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor; (0,) where it would hold nothing."""
        if name == "x":
            return tuple(d.dim_value for d in self.input.type.tensor_type.shape.dim)
        output = helper.make_empty_tensor_value_info(name)
        model = onnx.shape_inference.infer_shapes(
            self.model([output]), data_prop=True, strict_mode=True
        )
        return tuple(d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim)

    def model(self, outputs: Sequence[onnx.ValueInfoProto]) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes, "test", [self.input], list(outputs), self.initializers
        )
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8
        )

    def save(self, path: Path, *outputs: str, external: bool = False) -> Path:
        values = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, self.shape(name))
            for name in outputs
        ]
        onnx.save(
            self.model(values),
            str(path),
            save_as_external_data=external,
            location=f"{path.name}.data" if external else None,
            size_threshold=0,
        )
        return path


def vgg(path: Path) -> Path:
    """VGG-16 with an eighth of the channels, for pictures of 64 by 64."""
    b = Builder((1, 3, 64, 64))
    x = "x"
    for width in (8, 8, 0, 16, 16, 0, 32, 32, 32, 0, 64, 64, 64, 0, 64, 64, 64, 0):
        if width:
            x = b.add("Relu", b.conv(x, width, pads=[1, 1, 1, 1]))
        else:
            x = b.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = b.add("Flatten", x)
    for width in (256, 256, 100):
        depth = b.shape(x)[1]
        x = b.add("Gemm", x, b.weight(width, depth, scale=depth**-0.5), b.weight(width), transB=1)
        x = b.add("Relu", x) if width == 256 else x
    return b.save(path, b.add("Softmax", x, axis=1), external=True)
