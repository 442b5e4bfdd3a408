"""The zoo: every small model is valid, runs, and answers with something that can be compared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest

from models.zoo import ZOO, build
from models.zoo.builder import Builder
from models.zoo.converted import half, quantized
from models.zoo.weights import FUNCTIONS, through

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SMALL = 2_000_000  # bytes
EXPECTED = {
    "alexnet": {"LRN", "MaxPool", "Gemm"},
    "densenet121": {"Concat", "AveragePool", "BatchNormalization"},
    "shufflenet_v2": {"Split", "Concat", "Reshape", "Transpose"},
    "mobilenet_v3": {"HardSwish", "HardSigmoid", "ReduceMean"},
    "unet_transposed": {"ConvTranspose", "Concat"},
    "unet_resize": {"Resize", "Pad", "Concat"},
    "instance_norm_style": {"InstanceNormalization", "Pad", "Resize"},
    "espcn": {"DepthToSpace"},
    "nhwc": {"Transpose", "ReduceMean", "MatMul", "Clip"},
    "convnext": {"LayerNormalization", "MatMul", "Gelu"},
    "resnet50_int8": {"QuantizeLinear", "DequantizeLinear", "Conv"},
    "mobilenet_v2_int8": {"QuantizeLinear", "DequantizeLinear", "Conv"},
    "squeezenet_int8": {"QLinearConv", "QLinearConcat", "QLinearGlobalAveragePool"},
    "mobilenet_v2_fp16": {"Cast", "Conv"},
}


@pytest.fixture(params=ZOO, scope="module")
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(request.param, tmp_path_factory.mktemp("zoo"), small=True)


def operators(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(path).graph.node}


def picture(shape: list[int], seed: int) -> NDArray[np.float32]:
    """Draw patches of one colour: like photographs, pictures that differ after pooling too."""
    drawn = np.random.default_rng(seed).standard_normal(shape)
    rows, columns = (2, 3) if shape[1] <= 3 else (1, 2)
    for axis in (rows, columns):
        drawn = drawn.take(np.arange(shape[axis]) // 8, axis=axis)
    return drawn.astype(np.float32)


def answers(path: Path, seeds: range) -> list[list[NDArray[Any]]]:
    """Run a model on a random picture for each seed."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (image,) = session.get_inputs()
    kind = np.float16 if image.type == "tensor(float16)" else np.float32
    return [
        session.run(None, {image.name: picture(image.shape, seed).astype(kind)}) for seed in seeds
    ]


def test_valid(path: Path) -> None:
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version <= 10
    assert all(min(weight.dims, default=1) > 0 for weight in model.graph.initializer)
    assert path.stat().st_size < SMALL
    assert path.stem in ZOO


def test_announces_the_shapes_that_it_makes(path: Path) -> None:
    declared = [
        tuple(item.dim_value for item in output.type.tensor_type.shape.dim)
        for output in onnx.load(path).graph.output
    ]
    (outputs,) = answers(path, range(1))
    assert [output.shape for output in outputs] == declared


def test_answers_are_alive(path: Path) -> None:
    first, second = answers(path, range(2))
    for one, other in zip(first, second, strict=True):
        wide = one.astype(np.float64)
        assert np.isfinite(wide).all()
        assert 0.01 < wide.std() < 30
        assert np.abs(wide - other).max() > 0.05 * wide.std()
        if one.ndim == 4:
            assert wide.std(axis=(2, 3)).mean() > 0.2 * wide.std()


@pytest.mark.parametrize("name", EXPECTED)
def test_has_what_it_is_there_for(name: str, tmp_path: Path) -> None:
    assert operators(build(name, tmp_path, small=True)) >= EXPECTED[name]


@pytest.mark.parametrize("name", ["googlenet", "yolo", "mobilenet_v2_int8", "mobilenet_v2_fp16"])
def test_is_the_same_bytes_again(name: str, tmp_path: Path) -> None:
    once, again = (build(name, tmp_path / folder, small=True) for folder in ("once", "again"))
    assert once.read_bytes() == again.read_bytes()


def test_recipes_say_what_they_are() -> None:
    assert all(recipe.description and "\n" not in recipe.description for recipe in ZOO.values())


def test_unknown_name(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        build("lenet", tmp_path)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("activations", ["u8", "s8"])
@pytest.mark.parametrize("format_", ["qdq", "qoperator"])
def test_quantized_answers_are_near(
    format_: Any,
    activations: Any,
    per_channel: bool,  # noqa: FBT001
    tmp_path: Path,
) -> None:
    plain = build("resnet50", tmp_path, small=True)
    out = tmp_path / "out.onnx"
    quantized(plain, out, format_, activations=activations, per_channel=per_channel)
    types = {item.data_type for item in onnx.load(out).graph.initializer}
    assert onnx.TensorProto.INT8 in types
    assert (onnx.TensorProto.UINT8 in types) == (activations == "u8")
    assert ("QLinearConv" in operators(out)) == (format_ == "qoperator")
    (expected,), (found,) = answers(plain, range(1)), answers(out, range(1))
    assert np.corrcoef(expected[0].ravel(), found[0].ravel())[0, 1] > 0.9


@pytest.mark.parametrize("keep_io_types", [False, True])
def test_half_answers_are_near(keep_io_types: bool, tmp_path: Path) -> None:  # noqa: FBT001
    plain = build("resnet50", tmp_path, small=True)
    out = half(plain, tmp_path / "out.onnx", keep_io_types=keep_io_types)
    model = onnx.load(out)
    kept = onnx.TensorProto.FLOAT if keep_io_types else onnx.TensorProto.FLOAT16
    for value in [*model.graph.input, *model.graph.output]:
        assert value.type.tensor_type.elem_type == kept
    (expected,), (found,) = answers(plain, range(1)), answers(out, range(1))
    np.testing.assert_allclose(found[0], expected[0], atol=0.02 * np.abs(expected[0]).max())


@pytest.mark.parametrize("kind", sorted(FUNCTIONS))
def test_moments_are_those_of_the_activation(kind: str) -> None:
    drawn = np.random.default_rng(1).normal(0.3, 1.5, 20_000)
    values = [FUNCTIONS[kind](item) for item in drawn.tolist()]
    assert through(kind, (0.3, 1.5**2)) == pytest.approx((np.mean(values), np.var(values)), rel=0.1)


def test_versions_are_those_asked_for(tmp_path: Path) -> None:
    b = Builder("tiny", opset=21, ir_version=10)
    b.output(b.reduce_mean(b.input(1, 2, 4, 4), 2, 3), "means")
    b.save(tmp_path / "tiny.onnx")
    model = onnx.load(tmp_path / "tiny.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert (model.opset_import[0].version, model.ir_version) == (21, 10)
