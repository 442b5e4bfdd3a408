"""Builds agent/adapters/probe.onnx, the convolutions by which an agent measures its speed.

`python -m models.build_probe`. Weights are folded from constants, so the file is tiny.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto, checker, helper, numpy_helper

TARGET = Path(__file__).parent.parent / "agent" / "adapters" / "probe.onnx"


def build(target: Path = TARGET) -> Path:
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
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    checker.check_model(model)
    target.write_bytes(model.SerializeToString(deterministic=True))
    return target


if __name__ == "__main__":
    print(build())
