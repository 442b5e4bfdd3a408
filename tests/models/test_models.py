"""The models that come with HaloMQ: the defects model does its job, VGG-16 is built as told."""

from __future__ import annotations

import hashlib
import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

from agent.adapters.media import decode_input
from agent.answers import answer
from agent.wire.manifest import check_fits, load_manifest, manifest_path
from models import sample_picture, vgg16
from models.defects_network import LAYERS, export, gflops
from models.defects_pictures import (
    CELL,
    LABELS,
    SAMPLE_COUNT,
    SAMPLE_SEED,
    SIZE,
    Defect,
    Picture,
    draw,
    tally,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

MODELS = Path(vgg16.__file__).parent
DEFECTS = MODELS / "defects.onnx"
FRESH = range(700_000, 700_010)  # far from the training pictures' seeds, and not the held-out ones


def session_of(model: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def defects() -> Any:
    return session_of(DEFECTS)


def found_in(payload: bytes, session: Any) -> list[dict[str, Any]]:
    manifest = load_manifest(manifest_path(DEFECTS))
    image = decode_input(payload, manifest, (1, 3, SIZE, SIZE), "float32", None).whole()
    outputs = dict(zip(["scores"], session.run(None, {"image": image}), strict=True))
    objects: list[dict[str, Any]] = answer(outputs, manifest)["objects"]
    return objects


def jpeg_of(picture: Picture) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture.pixels).save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def test_the_defects_model_finds_what_is_there_and_nothing_else(defects: Any) -> None:
    pictures = [draw(seed, count=8) for seed in FRESH]
    result = tally([(picture, found_in(jpeg_of(picture), defects)) for picture in pictures])
    assert result["all"].hits + result["all"].misses >= 60
    for label, count in result.items():
        assert count.recall >= 0.85, (label, count)
        assert count.precision >= 0.85, (label, count)


def test_the_defects_sample_shows_every_class_and_is_answered_rightly(defects: Any) -> None:
    sample = (MODELS / "defects-sample.jpg").read_bytes()
    truth = draw(SAMPLE_SEED, count=SAMPLE_COUNT)
    assert len(sample) < 100_000
    assert {defect.label for defect in truth.defects} == set(LABELS[1:])
    result = tally([(truth, found_in(sample, defects))])["all"]
    assert (result.hits, result.misses, result.false_alarms) == (SAMPLE_COUNT, 0, 0)


def test_the_defects_model_is_small_and_worth_sharing(defects: Any) -> None:
    assert DEFECTS.stat().st_size < 2_000_000
    assert 3 <= gflops(SIZE, SIZE) <= 10
    (given,), (result,) = defects.get_inputs(), defects.get_outputs()
    assert (given.name, given.shape) == ("image", [1, 3, SIZE, SIZE])
    assert result.shape == [1, len(LABELS), SIZE // CELL, SIZE // CELL]
    manifest = load_manifest(manifest_path(DEFECTS))
    assert manifest.labels == LABELS
    check_fits(manifest, given.shape, [result.shape])


def test_the_defects_file_is_the_export_of_its_table() -> None:
    model = onnx.load(DEFECTS)
    weights = {
        tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer
    }
    assert onnx.load_from_string(export(weights, SIZE, SIZE)).graph == model.graph
    kinds = {node.op_type for node in model.graph.node}
    assert kinds == {"Conv", "Relu", "MaxPool", "Add", "Concat", "Softmax"}


def test_the_arithmetic_is_counted_as_onnx_has_it() -> None:
    model = onnx.shape_inference.infer_shapes(onnx.load(DEFECTS))
    shapes = {
        value.name: [extent.dim_value for extent in value.type.tensor_type.shape.dim]
        for value in model.graph.value_info
    }
    weights = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    convs = [node for node in model.graph.node if node.op_type == "Conv"]
    total = sum(
        2 * math.prod(shapes[node.output[0]]) * math.prod(weights[node.input[1]][1:])
        for node in convs
    )
    assert len(convs) == sum(layer.kind == "conv" for layer in LAYERS)
    assert gflops(SIZE, SIZE) == pytest.approx(total / 1e9)


def test_pictures_are_those_of_their_seed_and_true_to_their_mask() -> None:
    first, again, other = (draw(seed, 384, 512, count=6) for seed in (5, 5, 6))
    assert np.array_equal(first.pixels, again.pixels)
    assert first.defects == again.defects
    assert not np.array_equal(first.pixels, other.pixels)
    assert (first.pixels.shape, first.pixels.dtype) == ((384, 512, 3), np.dtype(np.uint8))
    rest = first.mask.copy()
    for defect in first.defects:
        x0, y0, x1, y1 = defect.box
        inside = rest[y0:y1, x0:x1]
        assert set(np.unique(inside)) <= {0, LABELS.index(defect.label)}
        assert inside[0].any()
        assert inside[-1].any()
        assert inside[:, 0].any()
        assert inside[:, -1].any()
        inside[:] = 0
    assert first.defects
    assert not rest.any()


def test_defects_stand_out_from_the_surface() -> None:
    bare = draw(8, count=0)
    assert not bare.defects
    marked = draw(8, count=10)
    for defect in marked.defects:
        x0, y0, x1, y1 = defect.box
        part = marked.mask[y0:y1, x0:x1] > 0
        pixels = marked.pixels[y0:y1, x0:x1].astype(int)
        assert np.abs(pixels[part].mean(0) - pixels[~part].mean(0)).max() > 10


def located(label: str, x: float, y: float) -> dict[str, Any]:
    return {"label": label, "box": [x / 100, y / 100, x / 100, y / 100]}


@pytest.mark.parametrize(
    ("objects", "counts"),
    [
        ([located("pit", 25, 25)], (1, 0, 0)),
        ([located("pit", 38, 25)], (1, 0, 0)),  # within a cell of the box
        ([located("pit", 39, 25)], (0, 1, 1)),
        ([located("crack", 25, 25)], (0, 1, 1)),
        ([located("pit", 25, 25), located("pit", 26, 25)], (1, 0, 1)),  # once only
        ([], (0, 1, 0)),
    ],
)
def test_objects_are_matched_with_the_truth(
    objects: Sequence[dict[str, Any]], counts: tuple[int, int, int]
) -> None:
    blank = np.zeros((100, 100), np.uint8)
    picture = Picture(np.zeros((100, 100, 3), np.uint8), (Defect("pit", (20, 20, 30, 30)),), blank)
    result = tally([(picture, objects)])["all"]
    assert (result.hits, result.misses, result.false_alarms) == counts
    assert result.recall == counts[0]
    assert result.precision == (counts[0] / len(objects) if objects else 1)


# VGG-16


THIN = {"size": 32, "width": 2, "classes": 10}


def checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_thin_vgg16_runs_and_tells_pictures_apart(tmp_path: Path) -> None:
    model = vgg16.build(tmp_path / "new", size=64, width=8)
    session = session_of(model)
    rng = np.random.Generator(np.random.PCG64(3))
    results = []
    for _ in range(12):
        coarse = rng.normal(size=(1, 3, 8, 8)).astype(np.float32)
        results.append(session.run(None, {"image": coarse.repeat(8, 2).repeat(8, 3)})[0][0])
    assert [result.shape for result in results] == [(1000,)] * 12
    assert [result.sum() for result in results] == pytest.approx([1.0] * 12, rel=1e-4)
    assert len({int(result.argmax()) for result in results}) >= 4
    assert all(0.002 < result.max() < 0.9 for result in results)  # neither flat nor saturated


def test_vgg16_is_vgg16() -> None:
    """The full model's graph, which takes no weights to make."""
    weights = vgg16._weights(224, 64, 1000)
    assert sum(math.prod(weight.shape) for weight in weights) == 138_357_544
    model = vgg16._model(weights, 224, 1000)
    kinds = [node.op_type for node in model.graph.node]
    assert [kinds.count(kind) for kind in ("Conv", "Relu", "MaxPool", "Gemm")] == [13, 15, 5, 3]
    names = [node.name for node in model.graph.node]
    assert {"conv1_1", "conv5_3", "pool5", "fc6", "fc7", "fc8"} < set(names)
    assert (names[-1], model.graph.output[0].name) == ("prob", "prob")
    assert (model.ir_version, model.opset_import[0].version) == (8, 17)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    shapes = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in inferred.value_info
    }
    assert (shapes["pool5"], shapes["fc8"]) == ([1, 512, 7, 7], [1, 1000])


def test_vgg16_has_the_same_bytes_everywhere(tmp_path: Path) -> None:
    model = vgg16.build(tmp_path, **THIN)
    assert checksum(model.with_suffix(".weights")) == (
        "38c83edb0461f483cd5b4c5d23cabbbf34f6d29380e5350366e4449c7b88a7f0"
    )
    onnx.checker.check_model(str(model), full_check=True)
    weights = onnx.load(model).graph.initializer
    values = np.concatenate([onnx.numpy_helper.to_array(weight).ravel() for weight in weights])
    assert np.isfinite(values).all()
    first = onnx.numpy_helper.to_array(weights[0])
    assert first.std() == pytest.approx(math.sqrt(2 / 27), rel=0.25)  # He's


def test_the_seed_alone_decides_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = checksum(vgg16.build(tmp_path / "a", **THIN).with_suffix(".weights"))
    assert first == checksum(vgg16.build(tmp_path / "b", **THIN).with_suffix(".weights"))
    monkeypatch.setattr(vgg16, "SEED", vgg16.SEED + 1)
    assert first != checksum(vgg16.build(tmp_path / "b", **THIN).with_suffix(".weights"))


def test_vgg16_is_built_once_and_again_only_when_it_has_to_be(tmp_path: Path) -> None:
    model = vgg16.build(tmp_path, **THIN)
    data = tmp_path / "vgg16.weights"
    first, begun = checksum(data), data.stat()

    def rebuilt() -> bool:
        nonlocal begun
        before, begun = begun, data.stat()
        return (before.st_ino, before.st_mtime_ns) != (begun.st_ino, begun.st_mtime_ns)

    assert vgg16.build(tmp_path, **THIN) == model
    assert not rebuilt()
    data.write_bytes(data.read_bytes()[:-1])
    vgg16.build(tmp_path, **THIN)
    assert rebuilt()
    assert checksum(data) == first
    vgg16.build(tmp_path, **{**THIN, "classes": 11})
    assert rebuilt()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "vgg16.onnx",
        "vgg16.toml",
        "vgg16.weights",
    ]


def test_a_build_that_fails_leaves_no_model_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(vgg16, "_values", full)
    with pytest.raises(OSError, match="No space left"):
        vgg16.build(tmp_path, **THIN)
    assert list(tmp_path.iterdir()) == []


def test_vgg16_keeps_a_manifest_that_was_edited(tmp_path: Path) -> None:
    model = vgg16.build(tmp_path, **THIN)
    manifest = load_manifest(manifest_path(model))
    check_fits(manifest, (1, 3, 32, 32), [(1, 10)])
    assert manifest.task == "classification"
    manifest_path(model).write_text('task = "tensor"')
    vgg16.build(tmp_path, **THIN)
    assert load_manifest(manifest_path(model)).task == "tensor"


@pytest.mark.parametrize("size", [0, 100, -32])
def test_vgg16_wants_a_size_that_its_pools_divide(tmp_path: Path, size: int) -> None:
    with pytest.raises(ValueError, match="a positive multiple of 32"):
        vgg16.build(tmp_path, size=size)


def test_the_sample_is_a_real_jpeg_drawn_by_its_script() -> None:
    payload = (MODELS / "sample.jpg").read_bytes()
    assert len(payload) < 100_000
    image = Image.open(io.BytesIO(payload))
    assert (image.format, image.size) == ("JPEG", (640, 480))
    error = np.asarray(image).astype(int) - sample_picture.draw()
    assert np.abs(error).mean() < 5
    manifest = load_manifest(MODELS / "defects.toml")
    assert decode_input(payload, manifest, (1, 3, 224, 224), "float32", "image/jpeg").shape
