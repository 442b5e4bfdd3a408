"""Builds the graphs by which an agent measures its speed: agent/adapters/{probe,step}.onnx.

`python -m models.build_probe`. The probe's weights are folded from constants, so it is tiny; the
step does next to nothing, which is what any step costs.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import GraphProto, TensorProto, checker, helper, numpy_helper

FOLDER = Path(__file__).parent.parent / "agent" / "adapters"


def build_probe(folder: Path = FOLDER) -> Path:
    """Write the probe: two 3x3 convolutions with ReLU, 64 to 128 to 128 channels at 56x56."""
    nodes = []
    value = numpy_helper.from_array(np.array([0.01], np.float32))
    previous, channels = "image", 64
    constants = []
    for number, wide in enumerate((128, 128)):
        shape = np.array([wide, channels, 3, 3], np.int64)
        constants.append(numpy_helper.from_array(shape, f"shape{number}"))
        nodes += [
            helper.make_node("ConstantOfShape", [f"shape{number}"], [f"w{number}"], value=value),
            helper.make_node("Conv", [previous, f"w{number}"], [f"c{number}"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", [f"c{number}"], [f"r{number}"]),
        ]
        previous, channels = f"r{number}", wide
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 64, 56, 56])
    output = helper.make_tensor_value_info(previous, TensorProto.FLOAT, [1, 128, 56, 56])
    graph = helper.make_graph(nodes, "probe", [image], [output], constants)
    return _write(graph, folder / "probe.onnx")


def build_step(folder: Path = FOLDER) -> Path:
    """Write the step: one ReLU of one number."""
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 1, 1, 1]) for n in "xy"]
    node = helper.make_node("Relu", ["x"], ["y"])
    graph = helper.make_graph([node], "step", values[:1], values[1:])
    return _write(graph, folder / "step.onnx")


def _write(graph: GraphProto, target: Path) -> Path:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    checker.check_model(model)
    target.write_bytes(model.SerializeToString(deterministic=True))
    return target


if __name__ == "__main__":
    print(build_probe(), build_step())
