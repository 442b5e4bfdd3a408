"""Importing: what is refused, with which words; and that weights are neither copied nor changed."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from agent.errors import ModelError
from agent.planner import import_model, importer, read_graph
from tests.planner.oracle import Builder, compare, devices, load, vgg

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def _model(*nodes: onnx.NodeProto, shape: tuple[Any, ...] = (1, 3, 8, 8)) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(list(nodes), "g", [x], [y])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("acme", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def _relu(**extra: Any) -> onnx.NodeProto:
    return helper.make_node("Relu", ["x"], ["y"], name="act", **extra)


def _two_inputs() -> onnx.ModelProto:
    model = _model(helper.make_node("Add", ["x", "z"], ["y"]))
    model.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1]))
    return model


def _opset(version: int) -> onnx.ModelProto:
    model = _model(_relu())
    model.opset_import[0].version = version
    return model


def _strings() -> onnx.ModelProto:
    model = _model(_relu())
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.STRING
    return model


def _cycle() -> onnx.ModelProto:
    first = helper.make_node("Add", ["x", "y"], ["t"], name="first")
    return _model(first, helper.make_node("Relu", ["t"], ["y"]))


def _no_writer() -> onnx.ModelProto:
    model = _model(_relu())
    model.graph.output[0].name = "nothing"
    return model


def _data_dependent() -> onnx.ModelProto:
    nodes = [helper.make_node("NonZero", ["x"], ["i"], name="nz")]
    return _model(*nodes, helper.make_node("Cast", ["i"], ["y"], to=1))


def _ceil() -> onnx.ModelProto:
    attributes: dict[str, Any] = {
        "kernel_shape": [2, 2],
        "strides": [2, 2],
        "pads": [0, 0, 1, 1],
        "ceil_mode": 1,
    }
    return _model(helper.make_node("MaxPool", ["x"], ["y"], name="pool", **attributes))


def _random() -> onnx.ModelProto:
    return _model(helper.make_node("RandomNormalLike", ["x"], ["y"], name="noise"))


REFUSED: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "dynamic batch": (lambda: _model(_relu(), shape=("N", 3, 8, 8)), "'N'.*make_dynamic_shape"),
    "batch of two": (lambda: _model(_relu(), shape=(2, 3, 8, 8)), "batch of 2"),
    "two inputs": (_two_inputs, "2 inputs .'x', 'z'."),
    "old opset": (lambda: _opset(8), "opset 8; HaloMQ needs 9"),
    "custom domain": (lambda: _model(_relu(domain="acme")), "Relu 'act'.*'acme'"),
    "unknown operator": (
        lambda: _model(helper.make_node("Frobnicate", ["x"], ["y"], name="odd")),
        "onnxruntime cannot load the model.*Frobnicate",
    ),
    "missing input": (
        lambda: _model(helper.make_node("Add", ["x", "gone"], ["y"], name="sum")),
        "Add 'sum' reads 'gone'",
    ),
    "cycle": (_cycle, "Add 'first'.*cycle"),
    "output without writer": (_no_writer, "no node writes the output 'nothing'"),
    "strings": (_strings, "type STRING"),
    "size that depends on data": (_data_dependent, "NonZero 'nz'.*depends on the data"),
    "dropped window": (_ceil, "MaxPool 'pool' rounds up"),
    "random": (_random, "RandomNormalLike 'noise'.*another result"),
    "control flow": (
        lambda: _model(helper.make_node("Loop", ["", "", "x"], ["y"], name="again")),
        "Loop 'again' is control flow",
    ),
    "no nodes": (_model, "no nodes"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_cannot_be_served_is_refused(name: str, tmp_path: Path) -> None:
    make, message = REFUSED[name]
    path = tmp_path / "model.onnx"
    path.write_bytes(make().SerializeToString())
    with pytest.raises(ModelError, match=message) as refused:
        import_model(path)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cat.onnx"
    with pytest.raises(ModelError, match="cannot read"):
        import_model(path)
    path.write_bytes(b"\xff\xd8\xff\xe0 a picture")
    with pytest.raises(ModelError, match="not an ONNX model"):
        import_model(path)
    path.write_bytes(b"")
    with pytest.raises(ModelError, match="not an ONNX model"):
        import_model(path)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    b = Builder((1, 3, 16, 16))
    path = b.save(tmp_path / "model.onnx", b.conv(b.conv("x", 40), 40))
    whole = path.read_bytes()
    for length in (20, len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelError):
            import_model(path)


def test_external_data_must_be_complete_and_in_the_folder(tmp_path: Path) -> None:
    path = vgg(tmp_path / "vgg.onnx")
    data = tmp_path / "vgg.onnx.data"
    content = data.read_bytes()
    data.write_bytes(content[:-1000])
    with pytest.raises(ModelError, match="cut short"):
        import_model(path)
    data.rename(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match="is not there"):
        import_model(path)
    model = onnx.load(str(path), load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../vgg.onnx.data"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="outside the model's folder"):
        import_model(path)


def test_external_weights_are_mapped_and_blobs_hold_every_byte(tmp_path: Path) -> None:
    path = vgg(tmp_path / "vgg.onnx")
    with patch.object(importer, "PART_BYTES", 1 << 14):
        model = import_model(path)
        blobs = {ref.digest: bytes(content) for ref, content in model.blobs()}
    assert all(sha256(content).hexdigest() == digest for digest, content in blobs.items())
    assert all(isinstance(array, np.memmap) for array in model.arrays().values())
    original = {t.name: t for t in onnx.load(str(path)).graph.initializer}
    for entry in model.weights:
        content = b"".join(blobs[part.digest] for part in entry.parts)
        assert content == numpy_helper.to_array(original[entry.name]).tobytes()
        row = len(content) // entry.shape[0]
        assert all(part.nbytes % row == 0 for part in entry.parts)
        assert all(part.nbytes <= max(row, 1 << 14) for part in entry.parts)
    assert max(len(entry.parts) for entry in model.weights) > 5
    assert len(model.graph) < 40_000


def test_initializers_may_be_constants_or_inputs(tmp_path: Path) -> None:
    b = Builder((1, 3, 16, 16))
    path = b.save(tmp_path / "model.onnx", b.conv(b.conv("x", 40), 40))
    expected = load(path)[0]
    model = onnx.load(str(path))
    as_inputs = onnx.ModelProto()
    as_inputs.CopyFrom(model)
    for tensor in model.graph.initializer:
        value = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        as_inputs.graph.input.append(value)
    as_nodes = onnx.ModelProto()
    as_nodes.CopyFrom(model)
    for tensor in model.graph.initializer:
        node = helper.make_node("Constant", [], [tensor.name], value=tensor)
        as_nodes.graph.node.insert(0, node)
    del as_nodes.graph.initializer[:]
    for variant in (as_inputs, as_nodes):
        path.write_bytes(variant.SerializeToString())
        imported = import_model(path)
        assert {w.name: w.parts for w in imported.weights} == {
            w.name: w.parts for w in expected.weights
        }
        assert compare(path, devices(1, 1), counts=2)[0] <= 1e-5


def test_constants_are_folded_and_identities_removed(tmp_path: Path) -> None:
    b = Builder((1, 3, 16, 16))
    x = b.add("Dropout", b.add("Identity", b.conv("x", 4)))
    zeros = b.add("ConstantOfShape", b.constant(np.array([1, 4, 14, 1], np.int64)))
    rows = b.add("Slice", b.add("Shape", x), *(b.constant(np.array([n], np.int64)) for n in (0, 2)))
    shape = b.add("Concat", rows, b.constant(np.array([-1], np.int64)), axis=0)
    path = b.save(tmp_path / "m.onnx", b.add("Reshape", b.add("Max", x, zeros), shape))
    _, graph = load(path)
    assert [node.op for node in graph.nodes] == ["Conv", "Max", "Reshape"]
    assert compare(path, devices(1, 1), counts=2)[0] <= 1e-5


def test_unused_weights_are_not_shipped(tmp_path: Path) -> None:
    b = Builder((1, 3, 16, 16))
    y = b.conv("x", 40)
    b.conv("x", 50)
    model, graph = load(b.save(tmp_path / "m.onnx", y))
    assert len(model.weights) == 1
    assert [node.op for node in graph.nodes] == ["Conv"]


@pytest.mark.parametrize(
    ("stem", "name"),
    [("vgg16", "vgg16"), ("my model (1)", "my-model-1-"), (".hidden", "hidden"), ("___", "model")],
)
def test_names_are_fit_for_topics(stem: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / f"{stem}.onnx"
    path.write_bytes(_model(_relu()).SerializeToString())
    assert import_model(path).name == name


def test_a_damaged_graph_is_refused() -> None:
    with pytest.raises(ModelError, match="damaged"):
        read_graph(b"\xff\xff\xff", [])


@pytest.mark.parametrize("opset", [9, 11, 13, 15, 18, 20])
def test_opsets(opset: int, tmp_path: Path) -> None:
    b = Builder((1, 3, 16, 16), opset=opset)
    x = b.add("Relu", b.normalize(b.conv("x", 4, pads=[1] * 4)))
    x = b.add("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])
    path = b.save(tmp_path / "m.onnx", b.add("Softmax", b.add("Flatten", x), axis=1))
    assert compare(path, devices(1, 2), counts=2)[0] <= 1e-5
