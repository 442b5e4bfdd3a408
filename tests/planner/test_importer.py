"""Importing: what becomes of a model's graph; and that weights are neither copied nor changed."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING
from unittest.mock import patch

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from agent.adapters.runtime import Segment, run_whole
from agent.errors import ModelError
from agent.planner import import_model, importer, read_graph
from tests.planner.oracle import OPTIONS, Builder, compare, devices, load, vgg
from tests.planner.small import model, node

if TYPE_CHECKING:
    from pathlib import Path

    from agent.planner import ImportedModel


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
        assert compare(path, devices(1, 1), layouts=2)[0] <= 1e-5


def test_constants_are_folded_and_identities_removed(tmp_path: Path) -> None:
    b = Builder((1, 3, 16, 16))
    x = b.add("Dropout", b.add("Identity", b.conv("x", 4)))
    zeros = b.add("ConstantOfShape", b.constant(np.array([1, 4, 14, 1], np.int64)))
    rows = b.add("Slice", b.add("Shape", x), *(b.constant(np.array([n], np.int64)) for n in (0, 2)))
    shape = b.add("Concat", rows, b.constant(np.array([-1], np.int64)), axis=0)
    path = b.save(tmp_path / "m.onnx", b.add("Reshape", b.add("Max", x, zeros), shape))
    _, graph = load(path)
    assert [node.op for node in graph.nodes] == ["Conv", "Max", "Reshape"]
    assert compare(path, devices(1, 1), layouts=2)[0] <= 1e-5


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
    path.write_bytes(model(node("Relu")).SerializeToString())
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
    assert compare(path, devices(1, 2), layouts=2)[0] <= 1e-5


def test_functions_of_the_model_are_inlined(tmp_path: Path) -> None:
    """As PyTorch's exporter makes them: with parameters, and calling each other."""
    b = Builder((1, 3, 16, 16))
    path = b.save(tmp_path / "m.onnx", b.add("Relu", b.conv("x", 40)))
    made = onnx.load(str(path))
    swish = helper.make_function(
        "local",
        "Swish",
        ["a"],
        ["c"],
        [
            helper.make_node("Sigmoid", ["a"], ["s"]),
            helper.make_node("Mul", ["a", "s"], ["m"]),
            onnx.parser.parse_node("c = LeakyRelu <alpha: float = @slope> (m)"),
        ],
        [helper.make_opsetid("", 17)],
        ["slope"],
    )
    weights = numpy_helper.from_array(
        b.rng.standard_normal((8, 40, 3, 3)).astype(np.float32) / 20, "kernel"
    )
    block = helper.make_function(
        "local",
        "Block",
        ["a"],
        ["d"],
        [
            helper.make_node("Constant", [], ["k"], value=weights),
            helper.make_node("Conv", ["a", "k"], ["c"]),
            helper.make_node("Swish", ["c"], ["d"], domain="local", slope=0.5),
        ],
        [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)],
    )
    made.functions.extend([swish, block])
    made.opset_import.append(helper.make_opsetid("local", 1))
    last = made.graph.output[0].name
    made.graph.node.append(helper.make_node("Block", [last], ["y"], name="end", domain="local"))
    del made.graph.output[0].type.tensor_type.shape.dim[:]
    made.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, None))
    path.write_bytes(made.SerializeToString())
    imported, graph = load(path)
    assert len(imported.weights) == 2
    assert [n.op for n in graph.nodes] == ["Conv", "Relu", "Conv", "Sigmoid", "Mul", "LeakyRelu"]
    assert graph.nodes[-1].attributes["alpha"] == 0.5
    assert compare(path, devices(1, 1), layouts=2)[0] <= 1e-5


def test_initializers_of_old_files_are_inputs_as_well(tmp_path: Path) -> None:
    b = Builder((1, 3, 16, 16))
    path = b.save(tmp_path / "m.onnx", b.add("Relu", b.normalize(b.conv("x", 40))))
    made = onnx.load(str(path))
    made.ir_version = 3
    for tensor in made.graph.initializer:
        value = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        made.graph.input.append(value)
    path.write_bytes(made.SerializeToString())
    assert compare(path, devices(1, 1), layouts=2)[0] <= 1e-5


@pytest.mark.parametrize("rows", [1, 2, 7])
@pytest.mark.parametrize("op", ["Gemm", "MatMul"])
def test_weights_by_columns_are_stored_by_output_features(
    op: str, rows: int, tmp_path: Path
) -> None:
    """And the segment that turns them back when it loads gives the same bytes."""
    b = Builder((1, rows, 64))
    x = b.add("Reshape", "x", b.constant(np.array([rows, 64], np.int64)))
    shared, single = b.weight(64, 64), b.weight(64, 50)
    for _ in range(2):
        x = b.add("Relu", b.add("Add", b.add(op, x, shared), b.weight(64)))
    path = b.save(tmp_path / "m.onnx", b.add(op, x, single))
    original = {t.name: numpy_helper.to_array(t) for t in onnx.load(str(path)).graph.initializer}
    imported = import_model(path)
    arrays = imported.arrays()
    assert arrays.keys() == {f"{shared}.rows", f"{single}.rows"}
    for name, array in arrays.items():
        assert np.array_equal(array, original[name.removesuffix(".rows")].T)
        assert not array.flags.owndata
    blobs = {ref.digest: bytes(content) for ref, content in imported.blobs()}
    for entry in imported.weights:
        content = b"".join(blobs[part.digest] for part in entry.parts)
        assert content == arrays[entry.name].tobytes()
        assert entry.shape == arrays[entry.name].shape
    value = b.rng.standard_normal((1, rows, 64)).astype(np.float32)
    segment = Segment(_external(imported), arrays, OPTIONS)
    expected = run_whole(path, [value], OPTIONS)[0]
    assert segment.run([value])[0].tobytes() == expected.tobytes()


def _external(imported: ImportedModel) -> bytes:
    """Return the whole graph as one segment, as devices get it."""
    made = onnx.load_model_from_string(imported.graph)
    names = {entry.name for entry in imported.weights}
    values = [value for value in made.graph.input if value.name not in names]
    del made.graph.input[:]
    made.graph.input.extend(values)
    for entry in imported.weights:
        tensor = made.graph.initializer.add(
            name=entry.name,
            dims=entry.shape,
            data_type=TensorProto.FLOAT,
            data_location=TensorProto.EXTERNAL,
        )
        length = sum(part.nbytes for part in entry.parts)
        for key, text in (("location", "weights"), ("offset", "0"), ("length", str(length))):
            tensor.external_data.add(key=key, value=text)
    content: bytes = made.SerializeToString()
    return content


def test_weights_that_are_read_otherwise_as_well_stay_as_they_are(tmp_path: Path) -> None:
    b = Builder((1, 64))
    tied, left = b.weight(64, 64), b.weight(64, 64)
    x = b.add("Gemm", b.add("MatMul", "x", tied), tied, transB=1)
    x = b.add("MatMul", left, b.add("Transpose", x))
    path = b.save(tmp_path / "m.onnx", x)
    assert import_model(path).arrays().keys() == {tied, left}
