"""The network of the defects model as one table, and its export to ONNX.

Training (models.train_defects) and export read the same table, so they cannot drift apart. The
network is fully convolutional: it keeps its meaning at any size that is a multiple of 8, and
every layer up to the scores can be tiled. Output: softmax scores [1, 5, H/8, W/8].
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import onnx
from onnx import TensorProto, helper, numpy_helper

from models.defects_pictures import LABELS

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

INPUT = "image"
OUTPUT = "scores"
OPSET = 17
IR_VERSION = 8


class Layer(NamedTuple):
    """One layer: a conv (bias included, "same" padding), a 2x2 max pool, a sum or a concat.

    `relu` says whether a ReLU follows; `channels` is the number of output channels of a conv.
    """

    name: str
    kind: Literal["conv", "pool", "add", "concat"]
    inputs: tuple[str, ...]
    channels: int = 0
    kernel: int = 3
    stride: int = 1
    dilation: int = 1
    relu: bool = True


# Detail is found at high resolution, shape by the dilated layers at stride 8; `skip` brings the
# detail back, since a thin scratch is no longer sharp after dilations of 2 and 4.
LAYERS: tuple[Layer, ...] = (
    Layer("stem", "conv", (INPUT,), 16, stride=2),
    Layer("edge", "conv", ("stem",), 24),
    Layer("pool1", "pool", ("edge",)),
    Layer("part1", "conv", ("pool1",), 48),
    Layer("part2", "conv", ("part1",), 48),
    Layer("pool2", "pool", ("part2",)),
    Layer("shape1", "conv", ("pool2",), 64),
    Layer("shape2", "conv", ("shape1",), 64, dilation=2, relu=False),
    Layer("sum", "add", ("shape1", "shape2")),
    Layer("wide1", "conv", ("sum",), 64, dilation=4),
    Layer("wide2", "conv", ("wide1",), 64, dilation=2),
    Layer("skip", "concat", ("pool2", "wide2")),
    Layer("mix", "conv", ("skip",), 64, kernel=1),
    Layer("logits", "conv", ("mix",), len(LABELS), kernel=1, relu=False),
)


def channels_of(layers: tuple[Layer, ...] = LAYERS) -> dict[str, int]:
    """Return tensor name to number of channels, the input included."""
    channels = {INPUT: 3}
    for layer in layers:
        if layer.kind == "concat":
            channels[layer.name] = sum(channels[name] for name in layer.inputs)
        else:
            channels[layer.name] = layer.channels or channels[layer.inputs[0]]
    return channels


def gflops(height: int, width: int) -> float:
    """Return the arithmetic of one picture: 2 operations a multiply-add, convolutions only."""
    channels, stride, total = channels_of(), {INPUT: 1}, 0
    for layer in LAYERS:
        step = 2 if layer.kind == "pool" else layer.stride
        stride[layer.name] = stride[layer.inputs[0]] * step
        if layer.kind == "conv":
            positions = (height // stride[layer.name]) * (width // stride[layer.name])
            taps = channels[layer.inputs[0]] * layer.kernel**2
            total += 2 * positions * taps * layer.channels
    return total / 1e9


def export(weights: Mapping[str, NDArray[np.float32]], height: int, width: int) -> bytes:
    """Return the ONNX file of the network for pictures of one size.

    Args:
        weights: "<layer>.weight" [out, in, k, k] and "<layer>.bias" [out] of each conv, float32,
            batch normalisation folded in.
        height: of the input in pixels, a multiple of 8.
        width: of the input in pixels, a multiple of 8.
    """
    nodes = []
    for layer in LAYERS:
        result = f"{layer.name}_linear" if layer.relu and layer.kind in {"conv", "add"} else None
        out = [result or layer.name]
        inputs = list(layer.inputs)
        if layer.kind == "conv":
            inputs += [f"{layer.name}.weight", f"{layer.name}.bias"]
            nodes.append(
                helper.make_node(
                    "Conv",
                    inputs,
                    out,
                    layer.name,
                    kernel_shape=[layer.kernel] * 2,
                    strides=[layer.stride] * 2,
                    dilations=[layer.dilation] * 2,
                    pads=[layer.kernel // 2 * layer.dilation] * 4,
                )
            )
        elif layer.kind == "pool":
            nodes.append(
                helper.make_node(
                    "MaxPool", inputs, out, layer.name, kernel_shape=[2, 2], strides=[2, 2]
                )
            )
        elif layer.kind == "add":
            nodes.append(helper.make_node("Add", inputs, out, layer.name))
        else:
            nodes.append(helper.make_node("Concat", inputs, out, layer.name, axis=1))
        if result:
            nodes.append(helper.make_node("Relu", out, [layer.name], f"{layer.name}_relu"))
    nodes.append(helper.make_node("Softmax", [LAYERS[-1].name], [OUTPUT], "softmax", axis=1))
    image = helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [1, 3, height, width])
    scores = helper.make_tensor_value_info(
        OUTPUT, TensorProto.FLOAT, [1, len(LABELS), height // 8, width // 8]
    )
    initializers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "defects", [image], [scores], initializers)
    model = helper.make_model(
        graph,
        producer_name="halomq",
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
    )
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))
