"""What is refused, by the importer and by every command, and with which words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from agent.errors import ModelError
from agent.planner import import_model
from tests.field.support import halomq
from tests.planner.oracle import Builder
from tests.planner.small import calling, changed, conv, function, kernel, model, node, tensor

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def boxes() -> onnx.ModelProto:
    return model(
        node("Reshape", "x", "as boxes", to="boxes"),
        node("ReduceMax", "boxes", to="best", axes=[2]),
        node("Transpose", "best", to="scores", perm=[0, 2, 1]),
        node("NonMaxSuppression", "boxes", "scores", to="kept", name="nms"),
        cast("kept"),
        tensors=(tensor("as boxes", [1, -1, 4], np.int64),),
    )


def cast(name: str) -> onnx.NodeProto:
    return helper.make_node("Cast", [name], ["y"], name="cast", to=TensorProto.FLOAT)


def normalization(**attributes: Any) -> onnx.ModelProto:
    made = node("BatchNormalization", "x", "c", "c", "c", "c", **attributes)
    made.output.extend(["mean", "variance"])
    return model(made, tensors=(tensor("c", [1, 1, 1]),))


def branch() -> onnx.ModelProto:
    value = helper.make_tensor_value_info("b", TensorProto.FLOAT, None)
    inner = helper.make_graph([node("Relu", to="b")], "then", [], [value])
    return model(
        node("ReduceSum", to="sum", keepdims=0),
        helper.make_node("Cast", ["sum"], ["flag"], to=TensorProto.BOOL),
        node("If", "flag", then_branch=inner, else_branch=inner),
    )


SPARSE = helper.make_sparse_tensor(
    tensor("w", [1.0]), tensor("places", [0], np.int64), [40 * 3 * 4 * 4]
)
HUGE = (1, 3, 200_000, 200_000)
REFUSED: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    # The input.
    "dynamic batch": (
        lambda: model(node("Relu"), shape=("N", 3, 8, 8)),
        "'N'.*make_dynamic_shape_fixed --input_name x --input_shape 1,3,8,8 ",
    ),
    "dynamic size": (
        lambda: model(node("Relu"), shape=(1, 1, "H", None)),
        "free dimensions .'H', '.'.*--input_shape 1,1,224,224 ",
    ),
    "dynamic sequence": (lambda: model(node("Relu"), shape=("N", "T")), "--input_shape 1,1 "),
    "no shape": (lambda: model(node("Relu"), shape=None), "all of them.*1,3,224,224"),
    "batch of two": (lambda: model(node("Relu"), shape=(2, 3, 8, 8)), "batch of 2.*batch 1"),
    "two inputs": (
        lambda: changed(
            model(node("Add", "x", "z")),
            lambda g: g.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1])),
        ),
        "2 inputs .'x', 'z'.",
    ),
    "text input": (lambda: model(node("Identity"), kind=TensorProto.STRING), "'x'.*type STRING"),
    # Versions and operators.
    "old opset": (lambda: model(node("Relu"), opset=8), "opset 8; HaloMQ needs 9.*converter"),
    "new opset": (lambda: model(node("Relu"), opset=999), "opset 999.*or earlier"),
    "custom domain": (
        lambda: model(node("Relu", domain="acme")),
        "Relu 'it' is a custom operator.*'acme'.*standard operators",
    ),
    "unknown operator": (
        lambda: model(node("Frobnicate")),
        "Frobnicate 'it' is no operator of ONNX.*standard operators",
    ),
    "unknown contribution": (
        lambda: model(node("Frobnicate", domain="com.microsoft")),
        "cannot load.*Frobnicate 'it' is an operator that it does not have in com.microsoft",
    ),
    "wrong attribute": (
        lambda: model(node("Relu", speed=3)),
        "cannot load the model: Relu 'it': Unrecognized attribute: speed",
    ),
    "shape error": (lambda: conv(pads=[1, 1, 1]), "cannot load the model: Conv 'it': .*pads"),
    "control flow": (branch, "If 'it' is control flow.*onnxsim"),
    "loop": (lambda: model(node("Loop", "", "", "x")), "Loop 'it' is control flow"),
    "random": (lambda: model(node("RandomNormalLike")), "RandomNormalLike 'it'.*another result"),
    "training": (
        lambda: normalization(training_mode=1),
        "BatchNormalization 'it' is in training mode.*eval",
    ),
    "training of old": (
        lambda: changed(normalization(), lambda g: g.node[0].output.extend(["a", "b"])),
        "BatchNormalization 'it' is in training mode",
    ),
    "training dropout": (
        lambda: model(
            node("Dropout", "x", "r", "t"), tensors=(tensor("r", 0.5), tensor("t", 1, np.bool_))
        ),
        "Dropout 'it' is in training mode",
    ),
    "declared size": (
        lambda: changed(
            model(node("Relu"), shape=(1, 3, 8, 8)),
            lambda g: g.output[0].CopyFrom(
                helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 9, 8, 8])
            ),
        ),
        r"'y' is declared to be \(1, 9, 8, 8\), and Relu 'it' gives \(1, 3, 8, 8\); export",
    ),
    "negative pads": (lambda: conv(pads=[-1, 0, 0, 0]), "Conv 'it': negative pads refused.*Slice"),
    "negative pads of a pooling": (
        lambda: model(node("MaxPool", kernel_shape=[2, 2], pads=[0, -1, 0, 0])),
        "MaxPool 'it': negative pads refused",
    ),
    "negative pads of old": (
        lambda: model(node("Pad", pads=[0, 0, 0, -1, 0, 0, 0, 0]), opset=9),
        "Pad 'it': negative pads refused .0, 0, 0, -1",
    ),
    "negative pads by input": (
        lambda: model(
            node("Pad", "x", "p"), tensors=(tensor("p", [0, 0, -1, 0] + [0] * 4, np.int64),)
        ),
        "Pad 'it': negative pads refused",
    ),
    "negative pads computed": (
        lambda: model(
            node("Neg", "p", to="q"),
            node("Pad", "x", "q"),
            tensors=(tensor("p", [0, 0, 1, 0] + [0] * 4, np.int64),),
        ),
        "Pad 'it': negative pads refused",
    ),
    "dropped window": (
        lambda: model(
            node("MaxPool", kernel_shape=[2, 2], strides=[2, 2], pads=[0, 0, 1, 1], ceil_mode=1)
        ),
        "MaxPool 'it' rounds up.*ceil_mode 0",
    ),
    "channels": (
        lambda: conv(tensor("w", np.zeros((4, 5, 3, 3)))),
        "Conv 'it' reads 3 channels of 'x'.*does not fit",
    ),
    "groups": (lambda: conv(group=0), "Conv 'it' reads 3 channels.*0 group"),
    # Sizes and types inside.
    "size that depends on data": (
        lambda: model(node("NonZero", to="i", name="nz"), cast("i")),
        "NonZero 'nz'.*depends on the data.*export",
    ),
    "boxes": (boxes, "NonMaxSuppression 'nms'.*depends on the data.*export the detector without"),
    "sequence": (
        lambda: model(
            node("SequenceConstruct", "x", "x", to="s", name="both"),
            node("ConcatFromSequence", "s", axis=0),
        ),
        "SequenceConstruct 'both': 's' is not a tensor",
    ),
    "optional": (
        lambda: model(node("Optional", to="o", name="may"), node("OptionalGetElement", "o")),
        "Optional 'may': 'o' is not a tensor",
    ),
    "texts": (
        lambda: model(
            helper.make_node("Cast", ["x"], ["t"], name="told", to=TensorProto.STRING), cast("t")
        ),
        "Cast 'told': 't' has type STRING",
    ),
    "large input": (lambda: model(node("Relu"), shape=HUGE), "input 'x'.*447.0 GiB.*at most 1 GiB"),
    "large activation": (
        lambda: model(
            node("Expand", "x", "s", to="t", name="more"),
            node("ReduceMax", "t"),
            shape=(1, 3, 1, 1),
            tensors=(tensor("s", HUGE, np.int64),),
        ),
        "Expand 'more': 't' takes 447.0 GiB.*smaller images",
    ),
    "large constant": (
        lambda: model(
            node("ConstantOfShape", "s", to="c", name="fill"),
            node("Add", "x", "c"),
            tensors=(tensor("s", HUGE, np.int64),),
        ),
        "ConstantOfShape 'fill': 'c' takes 447.0 GiB",
    ),
    "large constant of a computed size": (
        lambda: model(
            node("Sqrt", "f", to="r"),
            helper.make_node("Cast", ["r"], ["s"], to=TensorProto.INT64),
            node("ConstantOfShape", "s", to="c", name="fill"),
            node("ReduceMax", "c", to="m", keepdims=0),
            node("Add", "x", "m"),
            tensors=(tensor("f", (1, 9, 20_000**2, 20_000**2)),),
        ),
        "ConstantOfShape 'fill': 'c' takes 4.5 GiB",
    ),
    "many axes": (lambda: model(node("Relu"), shape=(1,) * 9), "'x' has 9 axes.*at most 8"),
    # The graph.
    "no nodes": (model, "no nodes"),
    "missing input": (lambda: model(node("Add", "x", "gone")), "Add 'it' reads 'gone'"),
    "cycle": (
        lambda: model(node("Add", "x", "y", to="t"), node("Relu", "t")),
        "a cycle, from (Add 't' to Relu 'it' to Add 't'|Relu 'it' to Add 't' to Relu 'it');",
    ),
    "output without writer": (
        lambda: changed(model(node("Relu")), lambda g: setattr(g.output[0], "name", "nothing")),
        "no node writes the output 'nothing'",
    ),
    "written twice": (
        lambda: model(node("Relu"), node("Abs", name="again")),
        "Abs 'again' writes 'y', as Relu 'it' does",
    ),
    "input written": (lambda: model(node("Relu", to="x"), node("Abs")), "writes 'x', as an input"),
    "weight twice": (lambda: conv(kernel(), kernel()), "two weights are named 'w'"),
    # Weights.
    "sparse weight": (
        lambda: changed(conv(), lambda g: g.sparse_initializer.append(SPARSE)),
        "'w' is sparse.*make it dense",
    ),
    "text weight": (
        lambda: model(
            node("Relu"),
            tensors=(TensorProto(name="s", data_type=8, dims=[1], string_data=[b"cat"]),),
        ),
        "initializer 's' holds strings",
    ),
    "short weight": (
        lambda: conv(kernel(dims=[40, 3, 5, 4])),
        "initializer 'w' is damaged: its shape needs 9600 bytes, it has 7680",
    ),
    "huge weight of few bytes": (
        lambda: conv(kernel(dims=[1 << 40, 3, 4, 4])),
        "initializer 'w' is damaged: its shape needs 211106232532992 bytes, it has 7680",
    ),
    "weight of few values": (
        lambda: conv(TensorProto(name="w", data_type=1, dims=[3], float_data=[1, 2])),
        "initializer 'w' is damaged: its shape needs 3 values, it has 2",
    ),
    "negative extent": (lambda: conv(kernel(dims=[-40, 3, 4, 4])), "shape is .-40, 3, 4, 4."),
    "weight of another type": (
        lambda: conv(kernel(data_type=TensorProto.BFLOAT16, dims=[40, 3, 8, 8])),
        "initializer 'w' has type BFLOAT16.*convert",
    ),
    "weight of no type": (lambda: conv(kernel(data_type=99, dims=[9999])), "'w' has type 99"),
    "attribute elsewhere": (
        lambda: model(
            node("ConstantOfShape", "s", value=kernel(data_location=TensorProto.EXTERNAL)),
            tensors=(tensor("s", [1, 3], np.int64),),
        ),
        "ConstantOfShape 'it' keeps its attribute 'value' in another file",
    ),
    # Functions.
    "endless function": (lambda: calling(function("F", "F")), "calls itself"),
    "functions in a circle": (
        lambda: calling(function("F", "G"), function("G", "Relu", "F")),
        "calls itself",
    ),
    "exploding functions": (
        lambda: calling(
            *(function(f"F{n}", *[f"F{n + 1}"] * 4) for n in range(20)), function("F20", "Relu")
        ),
        "1099511627776 nodes; at most 100000",
    ),
    "function with a custom operator": (
        lambda: calling(function("F", "Mystery")),
        "Mystery '.*' is a custom operator",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_cannot_be_served_is_refused(name: str, tmp_path: Path) -> None:
    make, message = REFUSED[name]
    path = tmp_path / "model.onnx"
    path.write_bytes(make().SerializeToString())
    with pytest.raises(ModelError, match=message) as refused:
        import_model(path)
    assert "\n" not in str(refused.value)
    for command in ("plan", "verify", "deploy"):
        halomq(command, path).check_refused(3, str(refused.value))


def test_a_resize_whose_size_is_disputed_is_refused(tmp_path: Path) -> None:
    b = Builder((1, 2, 10, 8), opset=13)
    scales = b.constant(np.array([1, 1, 2.3, 2], np.float32))
    y = b.add("Resize", "x", "", scales, mode="nearest")
    path = b.save(tmp_path / "m.onnx", y)
    with pytest.raises(ModelError, match=r"Resize0' scales axis 2 to 22 .*export it with sizes"):
        import_model(path)
