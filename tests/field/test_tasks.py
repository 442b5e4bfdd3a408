"""Detections and segmentations over MQTT: from a picture on a topic to JSON that a home can use."""

from __future__ import annotations

import io
import json
from base64 import b64decode
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from agent.adapters.drawing import annotate
from agent.adapters.fleet import ProcessFleet
from agent.errors import ConfigError
from agent.packaging import package_model
from tests.conftest import need_mosquitto
from tests.field.support import NOMINAL, V311, Field, Reference, field_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.field

Array = np.ndarray[Any, Any]
Head = tuple[Array, Array, int]
"""The weights, bias and stride of an output that is a convolution of the picture."""

SIZE, STRIDE = 64, 16

DETECTOR = """
task = "detection"
labels = ["red", "green"]
[input]
resize = "letterbox"
[detection]
format = "yolov8-raw"
bins = 1
"""
SEGMENTER = """
task = "segmentation"
labels = ["nothing", "red", "green"]
[input]
resize = "letterbox"
"""


def build(
    path: Path, heads: dict[str, tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], int]]
) -> Path:
    """Write a model whose outputs are convolutions of the picture, smoothed a little."""
    smooth = np.zeros((3, 3, 3, 3), np.float32)
    for channel in range(3):
        smooth[channel, channel] = 1 / 9
    weights = [numpy_helper.from_array(smooth, "smooth")]
    nodes = [helper.make_node("Conv", ["image", "smooth"], ["soft"], pads=[1, 1, 1, 1])]
    outputs = []
    for name, (kernel, bias, stride) in heads.items():
        weights += [numpy_helper.from_array(kernel, f"{name}_k")]
        weights += [numpy_helper.from_array(bias, f"{name}_b")]
        inputs = ["soft", f"{name}_k", f"{name}_b"]
        nodes.append(helper.make_node("Conv", inputs, [name], strides=[stride, stride]))
        shape = [1, len(bias), SIZE // stride, SIZE // stride]
        outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, SIZE, SIZE])
    graph = helper.make_graph(nodes, "colours", [image], outputs, weights)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path
    )
    return path


def pick(channel: int) -> list[float]:
    """Return weights of red, green and blue that are high for one of them alone."""
    return [1.0 if channel == other else -1.0 for other in range(3)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reference]:
    """A detector with two maps and a segmenter, of red and green things."""
    folder = tmp_path_factory.mktemp("tasks")
    heads = {}
    for stride in (STRIDE // 2, STRIDE):
        # Distances of half a cell, and logits from the colour of the cell's middle.
        kernel = np.zeros((6, 3, stride, stride), np.float32)
        at = (stride // 2, stride // 2) if stride == STRIDE else (0, 0)
        for number in range(2):
            kernel[4 + number, :, *at] = np.multiply(pick(number), 20)
        # The fine map sees nothing: its biases are too low.
        low = -10 if stride == STRIDE else -50
        heads[f"map{stride}"] = kernel, np.array([0.5] * 4 + [low] * 2, np.float32), stride
    build(folder / "detector.onnx", heads)
    (folder / "detector.toml").write_text(DETECTOR)
    kernel = np.zeros((3, 3, 1, 1), np.float32)
    kernel[1:, :, 0, 0] = [pick(0), pick(1)]
    scores = (kernel, np.array([0.5, 0, 0], np.float32), 1)
    build(folder / "segmenter.onnx", {"scores": scores})
    (folder / "segmenter.toml").write_text(SEGMENTER)
    return {name: Reference(folder / f"{name}.onnx", name) for name in ("detector", "segmenter")}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, models: dict[str, Reference]) -> Iterator[Field]:
    """Two agents that serve both."""
    need_mosquitto()
    folder = tmp_path_factory.mktemp("pair")
    with ProcessFleet(folder, 2, settings=NOMINAL) as fleet:
        field = field_of(fleet, folder)
        field.wait_online()
        for model in models.values():
            field.deploy(model)
        yield field
        fleet.check()


def wide_picture() -> bytes:
    """Return a PNG of 128 x 64 with a red and a green square, which a letterbox halves."""
    pixels = np.zeros((64, 128, 3), np.uint8)
    pixels[0:32, 32:64, 0] = 255
    pixels[32:64, 96:128, 1] = 255
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def asked(field: Field, model: Reference, payload: bytes) -> dict[str, Any]:
    """Ask as a camera does that knows MQTT 3.1.1 alone, and return the answer's JSON."""
    topic = field.topics.result(model.name, "door-1")
    with field.mqtt(topic, protocol=V311) as user:
        user.publish(field.topics.infer(model.name, "door-1"), payload)
        (message,) = user.wait_for(1)
    told: dict[str, Any] = json.loads(message.payload)
    assert told["ok"], told
    return told


def test_a_detection_over_mqtt_is_boxes_and_counts(
    pair: Field, models: dict[str, Reference]
) -> None:
    payload = wide_picture()
    told = asked(pair, models["detector"], payload)
    result = told["result"]
    assert result == models["detector"].result(payload)
    assert result["task"] == "detection"
    assert result["counts"] == {"red": 1, "green": 1}
    # Cells of 16 x 16 of the input, which is the picture at half its size below a bar of 16 rows.
    assert {thing["label"]: thing["box"] for thing in result["objects"]} == {
        "red": [0.25, 0.0, 0.5, 0.5],
        "green": [0.75, 0.5, 1.0, 1.0],
    }
    assert annotate(payload, result).startswith(b"\x89PNG")


def test_a_segmentation_over_mqtt_is_shares_and_a_mask(
    pair: Field, models: dict[str, Reference]
) -> None:
    payload = wide_picture()
    result = asked(pair, models["segmenter"], payload)["result"]
    assert result == models["segmenter"].result(payload)
    assert result["shares"].keys() == {"nothing", "red", "green"}
    assert result["shares"]["red"] == pytest.approx(1 / 8, abs=0.02)
    assert {region["label"] for region in result["regions"]} == {"red", "green"}
    assert result["mask"]["classes"] == {"0": "nothing", "1": "red", "2": "green"}
    mask = np.asarray(Image.open(io.BytesIO(b64decode(result["mask"]["png"]))))
    assert mask.shape == (32, 64)  # without the bars
    assert (mask[2:14, 18:30] == 1).all()
    assert (mask[18:30, 50:62] == 2).all()
    assert (mask[:, :14] == 0).all()


def test_a_manifest_of_another_detector_is_refused_before_it_is_deployed(
    models: dict[str, Reference], tmp_path: Path
) -> None:
    path = tmp_path / "detector.onnx"
    path.write_bytes(models["detector"].path.read_bytes())
    (tmp_path / "detector.toml").write_text(DETECTOR.replace("bins = 1", ""))
    with pytest.raises(ConfigError, match=r"detector\.toml: detection\.format: yolov8-raw needs"):
        package_model(path)
