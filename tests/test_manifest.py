"""Manifests: what they may say, and how mistakes in them are told."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from agent.errors import ConfigError, WireError
from agent.wire.detection import DetectionManifest, Format
from agent.wire.manifest import (
    InputManifest,
    Manifest,
    OutputManifest,
    check_fits,
    class_count,
    decode_manifest,
    default_manifest,
    encode_manifest,
    load_manifest,
    manifest_path,
)
from tests.conftest import ROOT

if TYPE_CHECKING:
    from pathlib import Path

FULL = """
task = "heatmap"
labels = ["nothing", "scratch", "pit"]

[input]
color = "bgr"
resize = "letterbox"
mean = [0.1, 0.2, 0.3]
std = [1, 2, 3]
layout = "nhwc"

[output]
softmax = true
top = 3
background = 2
threshold = 0.25
min_cells = 4
"""

DETECTION = 'task = "detection"\n[detection]\n'
FORMS: tuple[Format, ...] = ("yolov8", "ssd")
RAW = DETECTION + 'format = "yolov5-raw"\n'


def loaded(folder: Path, text: str) -> Manifest:
    path = folder / "model.toml"
    path.write_text(text)
    return load_manifest(path)


def test_every_field_is_read_and_survives_the_wire(tmp_path: Path) -> None:
    manifest = loaded(tmp_path, FULL)
    assert manifest == Manifest(
        task="heatmap",
        labels=("nothing", "scratch", "pit"),
        input=InputManifest("bgr", "letterbox", (0.1, 0.2, 0.3), (1.0, 2.0, 3.0), "nhwc"),
        output=OutputManifest(softmax=True, top=3, background=2, threshold=0.25, min_cells=4),
    )
    assert decode_manifest(encode_manifest(manifest)) == manifest


def test_every_field_of_a_detection_is_read_and_survives_the_wire(tmp_path: Path) -> None:
    told = """
    format = "yolov5-raw"
    anchors = [[10, 13, 16, 30], [116, 90, 156, 198]]
    iou = 0.6
    per_class = false
    max_objects = 7
    outputs = [2, 1]
    """
    manifest = loaded(tmp_path, DETECTION + told)
    assert manifest.detection == DetectionManifest(
        "yolov5-raw",
        anchors=((10.0, 13.0, 16.0, 30.0), (116.0, 90.0, 156.0, 198.0)),
        iou=0.6,
        per_class=False,
        max_objects=7,
        outputs=(2, 1),
    )
    assert decode_manifest(encode_manifest(manifest)) == manifest
    ssd = loaded(tmp_path, DETECTION + 'format = "ssd"\nboxes = "yxyx"\nnormalized = false')
    assert ssd.detection == DetectionManifest("ssd", boxes="yxyx", normalized=False)


def test_background_and_threshold_follow_the_task() -> None:
    yolo, ssd = (Manifest("detection", detection=DetectionManifest(form)) for form in FORMS)
    assert (yolo.background, yolo.threshold) == (-1, 0.25)
    assert (ssd.background, ssd.threshold) == (0, 0.25)
    assert (Manifest("heatmap").background, Manifest("heatmap").threshold) == (0, 0.5)
    own = Manifest("segmentation", output=OutputManifest(background=-1, threshold=0.1))
    assert (own.background, own.threshold) == (-1, 0.1)


def test_the_wire_form_does_not_depend_on_how_the_toml_was_written(tmp_path: Path) -> None:
    first = loaded(tmp_path, 'task = "tensor"\n[input]\ncolor = "gray"\nresize = "crop"\n')
    other = loaded(tmp_path, 'input = {resize = "crop", color = "gray"}\ntask = "tensor"\n')
    assert encode_manifest(first) == encode_manifest(other)
    assert encode_manifest(first).startswith(b'{"')


def test_all_but_the_task_may_be_left_out(tmp_path: Path) -> None:
    manifest = loaded(tmp_path, 'task = "classification"')
    assert (manifest.input, manifest.output) == (InputManifest(), OutputManifest())
    assert (manifest.output.top, manifest.input.mean, manifest.input.std) == (5, (0.0,), (1.0,))


def test_labels_name_classes_and_numbers_stand_in_for_missing_ones() -> None:
    manifest = Manifest(task="classification", labels=("cat",))
    assert [manifest.label(index) for index in (0, 1)] == ["cat", "class 1"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("labels = []", "missing required field `task`"),
        ('task = "detect"', "task: Invalid enum value 'detect' (choose one of classification, "),
        ('task = "tensor"\nlabels = [3]', "labels[0]: Expected `str`, got `int`"),
        ('task = "tensor"\nnames = []', "unknown field `names`"),
        ('task = "tensor"\n[input]\ncolour = "rgb"', "input: Object contains unknown field `colo"),
        ('task = "tensor"\n[input]\nresize = "fit"', "(choose one of stretch, crop, letterbox, "),
        ('task = "tensor"\n[input]\ncolor = "cmyk"', "input.color: Invalid enum value 'cmyk'"),
        ('task = "tensor"\n[input]\nlayout = "chw"', "input.layout: Invalid enum value 'chw'"),
        ('task = "tensor"\n[input]\nmean = [1, 2]', "input: `mean` has 2 values, but color rgb"),
        ('task = "tensor"\n[input]\nmean = [nan]', "input: `mean` must be finite"),
        ('task = "tensor"\n[input]\nstd = [0.0]', "input: `std` must be above 0"),
        ('task = "tensor"\n[input]\nstd = "x"', "input.std: Expected `array`, got `str`"),
        ('task = "tensor"\n[output]\ntop = 0', "output.top: Expected `int` >= 1"),
        ('task = "tensor"\n[output]\nthreshold = 1.5', "output: `threshold` must be from 0 to 1"),
        ('task = "tensor"\n[output]\nthreshold = nan', "output: `threshold` must be from 0 to 1"),
        ('task = "tensor"\n[output]\nmin_cells = 0', "output.min_cells: Expected `int` >= 1"),
        (
            'task = "heatmap"\nlabels = ["a"]\n[output]\nbackground = 1',
            "`output.background` is 1, but there are 1 labels",
        ),
        ("task = ", "the manifest is not valid TOML"),
        ('task = "detection"', "task detection needs `detection.format` (choose one of yolov8, "),
        ('task = "tensor"\n[detection]\nformat = "ssd"', "`detection` is for task detection, but "),
        (DETECTION, "detection: Object missing required field `format`"),
        (DETECTION + 'format = "yolo"', "detection.format: Invalid enum value 'yolo' (choose one "),
        (DETECTION + 'format = "ssd"\nboxes = "xywh"', "(choose one of cxcywh, xyxy, yxyx)"),
        (DETECTION + 'format = "ssd"\niou = 1.1', "detection: `iou` must be from 0 to 1"),
        (DETECTION + 'format = "ssd"\niou = nan', "detection: `iou` must be from 0 to 1"),
        (DETECTION + 'format = "ssd"\nanchors = [[1, 2]]', "format ssd has no `anchors`"),
        (DETECTION + 'format = "yolov3-raw"', "format yolov3-raw needs `anchors`"),
        (RAW + "anchors = [[1, 2, 3]]", "`anchors` must be rows of w, h, w, h, ..."),
        (RAW + "anchors = [[1, 0]]", "`anchors` must be above 0"),
        (RAW + "anchors = [[nan, 1]]", "`anchors` must be above 0"),
        (RAW + "anchors = [[9, 9], [3, 3]]", "from the finest map's to the coarsest's"),
        (RAW + 'anchors = [[9, 9]]\nboxes = "xyxy"', "are not for yolov5-raw"),
        (RAW + "anchors = [[9, 9]]\nmax_objects = 0", "detection.max_objects: Expected `int` >= 1"),
        (
            'output = {background = 1}\nlabels = ["a"]\n' + DETECTION + 'format = "yolov8"',
            "`output.background` is 1, but there are 1 labels",
        ),
        (
            'task = "tensor"\n[output]\nsoftmax = true\nsigmoid = true',
            "output: `softmax` and `sigmoid` exclude each other",
        ),
    ],
)
def test_a_mistake_is_told_with_file_and_field(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path / 'model.toml'}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read_are_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: cannot read the manifest: No such file"):
        load_manifest(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"binary\.toml: the manifest is not a text file"):
        load_manifest(tmp_path / "binary.toml")


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"\xff", b'{"task":"tensor"', b'{"task":"\xff"}', b'{"task":"x"}']
)
def test_a_malformed_blob_is_refused(content: bytes) -> None:
    with pytest.raises(WireError, match="not a manifest of this version"):
        decode_manifest(content)


def test_the_manifest_is_beside_the_model(tmp_path: Path) -> None:
    assert manifest_path(tmp_path / "net.v2.onnx") == tmp_path / "net.v2.toml"


@pytest.mark.parametrize(
    ("input_shape", "output_shapes", "task", "color", "layout"),
    [
        ((1, 3, 8, 8), [(1, 10)], "classification", "rgb", "nchw"),
        ((1, 8, 8, 3), [(1, 10)], "classification", "rgb", "nhwc"),
        ((1, 1, 8, 8), [(1, 10)], "classification", "gray", "nchw"),
        ((1, 8, 8, 1), [(1, 10)], "classification", "gray", "nhwc"),
        # A picture of one or three columns is less likely than channels first.
        ((1, 3, 8, 3), [(1, 10)], "classification", "rgb", "nchw"),
        ((1, 3, 8, 8), [(1, 10), (1, 4)], "tensor", "rgb", "nchw"),
        ((1, 3, 8, 8), [(2, 10)], "tensor", "rgb", "nchw"),
        ((1, 3, 8, 8), [(1, 1)], "tensor", "rgb", "nchw"),
        ((1, 3, 8, 8), [(1, 5, 4, 4)], "tensor", "rgb", "nchw"),
        ((1, 16), [(1, 10)], "classification", "rgb", "nchw"),
    ],
)
def test_a_model_without_manifest_is_answered_by_its_shapes(
    input_shape: tuple[int, ...],
    output_shapes: list[tuple[int, ...]],
    task: str,
    color: str,
    layout: str,
) -> None:
    manifest = default_manifest(input_shape, output_shapes)
    assert (manifest.task, manifest.input.color, manifest.input.layout) == (task, color, layout)
    check_fits(manifest, input_shape, output_shapes)


@pytest.mark.parametrize(
    ("manifest", "input_shape", "output_shapes", "message"),
    [
        (Manifest("heatmap", input=InputManifest("gray")), (1, 3, 8, 8), [(1, 2, 4, 4)], "^input"),
        (Manifest("classification"), (1, 8, 8, 3), [(1, 2)], "^input.color: .*layout nchw"),
        (Manifest("classification", ("a", "b")), (1, 3, 8, 8), [(1, 3)], "^labels: .* has 2, .* 3"),
        (Manifest("heatmap", ("a", "b")), (1, 3, 8, 8), [(1, 3, 4, 4)], "^labels: .* has 2, .* 3"),
        (Manifest("classification"), (1, 3, 8, 8), [], "^task: .* no output"),
        (Manifest("classification"), (1, 3, 8, 8), [(1, 3, 4, 4)], "^task: .* is 1x3x4x4"),
        (Manifest("classification"), (1, 3, 8, 8), [(2, 3)], "^task: .* is 2x3"),
        (Manifest("heatmap"), (1, 3, 8, 8), [(1, 10)], "^task: .* is 1x10"),
        (
            Manifest("heatmap", output=OutputManifest(background=3)),
            (1, 3, 8, 8),
            [(1, 3, 4, 4)],
            "^output.background: it is 3",
        ),
    ],
)
def test_a_manifest_of_another_model_is_refused(
    manifest: Manifest,
    input_shape: tuple[int, ...],
    output_shapes: list[tuple[int, ...]],
    message: str,
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_fits(manifest, input_shape, output_shapes)


def test_classes_are_counted_on_the_axis_of_the_layout() -> None:
    nhwc = Manifest("heatmap", input=InputManifest(layout="nhwc"))
    assert class_count(nhwc, (1, 4, 6, 3)) == 3
    assert class_count(Manifest("heatmap"), (1, 4, 6, 3)) == 4
    assert class_count(Manifest("classification"), (1, 7, 1, 1)) == 7


def test_labels_of_a_mask_are_held_against_its_maps() -> None:
    shape, two, three = (1, 3, 8, 8), ("a", "b"), ("a", "b", "c")
    check_fits(Manifest("segmentation", three), shape, [(1, 3, 8, 8)], ["float32"])
    check_fits(Manifest("segmentation", two), shape, [(1, 1, 8, 8)], ["float32"])
    check_fits(Manifest("segmentation", two), shape, [(1, 8, 8)], ["float16"])
    check_fits(Manifest("segmentation", three), shape, [(1, 8, 8)], ["int64"])
    check_fits(Manifest("segmentation", three), shape, [(1, 1, 8, 8)], ["int64"])
    with pytest.raises(ConfigError, match=r"^labels: .* has 3, but the model has 2 classes"):
        check_fits(Manifest("segmentation", three), shape, [(1, 1, 8, 8)], ["float32"])
    with pytest.raises(ConfigError, match=r"^labels: .* has 2, but the model has 3 classes"):
        check_fits(Manifest("segmentation", two), shape, [(1, 3, 8, 8)], ["float32"])
    with pytest.raises(ConfigError, match=r"^labels: a mask has at most 255 classes, .* 256"):
        check_fits(Manifest("segmentation", ("a",) * 256), shape, [(1, 8, 8)], ["int64"])


BIG = (1, 3, 64, 128)
TWO = ((10.0, 20.0), (30.0, 40.0))


@pytest.mark.parametrize(
    ("detection", "output_shapes", "classes"),
    [
        (DetectionManifest("yolov8"), [(1, 84, 8400)], 80),
        (DetectionManifest("yolov8"), [(1, 8400, 84)], 80),
        (DetectionManifest("yolov8"), [(1, 84, 84)], 80),
        (DetectionManifest("yolov8"), [(1, 5, 2)], 1),
        (DetectionManifest("yolov5"), [(1, 25200, 85), (1, 3, 8, 16, 85)], 80),
        (DetectionManifest("yolov5", outputs=(1,)), [(1, 3, 8, 16, 85), (1, 9, 85)], 80),
        (DetectionManifest("yolov3-raw", anchors=TWO), [(1, 85, 2, 4), (1, 85, 4, 8)], 80),
        (DetectionManifest("yolov5-raw", anchors=TWO), [(1, 1, 4, 8, 6), (1, 1, 2, 4, 6)], 1),
        (DetectionManifest("yolov8-raw"), [(1, 67, 8, 16), (1, 67, 4, 8)], 3),
        (DetectionManifest("yolov8-raw", bins=1), [(1, 7, 8, 16)], 3),
        (DetectionManifest("ssd"), [(1, 9, 4), (1, 9, 3)], 3),
        (DetectionManifest("ssd"), [(1, 9, 3), (7,), (9, 4)], 3),
        (DetectionManifest("ssd"), [(1, 9, 4), (1, 9, 4)], 4),
        (DetectionManifest("nms-included"), [(1, 300, 6)], None),
        (DetectionManifest("nms-included"), [(300, 7)], None),
        (DetectionManifest("nms-included"), [(1, 9, 4), (1, 9), (9,), (1,)], None),
    ],
)
def test_detectors_that_fit_tell_their_classes(
    detection: DetectionManifest, output_shapes: list[tuple[int, ...]], classes: int | None
) -> None:
    check_fits(Manifest("detection", detection=detection), BIG, output_shapes)
    labels = tuple(f"l{number}" for number in range(classes or 5))
    check_fits(Manifest("detection", labels, detection=detection), BIG, output_shapes)
    if classes is not None:
        with pytest.raises(ConfigError, match=r"^(labels: .* but the model has|detection.format)"):
            check_fits(
                Manifest("detection", (*labels, "more"), detection=detection), BIG, output_shapes
            )


@pytest.mark.parametrize(
    ("detection", "output_shapes", "message"),
    [
        (DetectionManifest("yolov8"), [(1, 4, 4)], "boxes x (4 + classes), or transposed, but "),
        (DetectionManifest("yolov8"), [(1, 84, 8, 8)], "but the model has 1x84x8x8"),
        (DetectionManifest("yolov8"), [(2, 84, 100)], "but the model has 2x84x100"),
        (DetectionManifest("yolov5"), [(1, 5, 5)], "yolov5 needs one output 1 x boxes x (5 + cla"),
        (DetectionManifest("yolov8", outputs=(1,)), [(1, 84, 9)], "detection.outputs: it names ou"),
        (DetectionManifest("yolov8", outputs=(0, 0)), [(1, 84, 9)], "detection.outputs: yolov8 ha"),
        (DetectionManifest("ssd"), [(1, 9, 4)], "two outputs, boxes 1 x N x 4 and scores"),
        (DetectionManifest("ssd"), [(1, 9, 4), (1, 8, 3)], "but the model has 1x9x4, 1x8x3"),
        (DetectionManifest("ssd", outputs=(0, 1)), [(1, 9, 3), (1, 9, 4)], "two outputs, boxes"),
        (DetectionManifest("nms-included"), [(1, 9, 5)], "rows of 6 or 7, or three outputs"),
        (DetectionManifest("nms-included"), [(1, 9, 4), (1, 8), (1, 9)], "but the model has 1x9x4"),
        (DetectionManifest("nms-included"), [(), (), ()], "rows of 6 or 7"),
        (DetectionManifest("nms-included", outputs=(0, 0)), [(1, 9, 6)], "rows of 6 or 7"),
        (DetectionManifest("yolov8-raw"), [(1, 9)], "maps 1 x channels x height x width, but"),
        (DetectionManifest("yolov8-raw"), [(1, 64, 4, 8)], "maps of 4 x 16 + classes channels"),
        (DetectionManifest("yolov8-raw"), [(1, 65, 3, 8)], "divide the input's 64 x 128 in layout"),
        (DetectionManifest("yolov8-raw"), [(1, 65, 0, 8)], "divide the input's 64 x 128"),
        (DetectionManifest("yolov8-raw"), [(1, 65, 4, 8), (1, 66, 2, 4)], "equally many classes"),
        (
            DetectionManifest("yolov3-raw", anchors=TWO),
            [(1, 85, 2, 4)],
            "detection.anchors: there are 2 rows, but the model has 1 maps",
        ),
        (
            DetectionManifest("yolov3-raw", anchors=((1.0, 2.0, 3.0, 4.0),)),
            [(1, 85, 2, 4)],
            "a map of 2 x (5 + classes) channels, as it has 2 anchors, but the model has 1x85x2x4",
        ),
        (
            DetectionManifest("yolov5-raw", anchors=((1.0, 2.0, 3.0, 4.0),)),
            [(1, 1, 2, 4, 12)],
            "as it has 2 anchors, but the model has 1x1x2x4x12",
        ),
    ],
)
def test_a_detector_of_another_format_is_refused(
    detection: DetectionManifest, output_shapes: list[tuple[int, ...]], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        check_fits(Manifest("detection", detection=detection), BIG, output_shapes)
    assert str(caught.value).startswith("detection.")
    assert message in str(caught.value)


def test_a_detector_needs_a_picture_and_colours_that_fit() -> None:
    manifest = Manifest("detection", detection=DetectionManifest("yolov8"))
    with pytest.raises(ConfigError, match=r"^task: detection needs a model that takes pictures"):
        check_fits(manifest, (1, 9), [(1, 84, 100)])
    with pytest.raises(ConfigError, match=r"^input\.color"):
        check_fits(manifest, (1, 64, 64, 3), [(1, 84, 100)])
    none = Manifest("detection", output=OutputManifest(background=80), detection=manifest.detection)
    with pytest.raises(ConfigError, match=r"^output\.background: it is 80, .* has 80 classes"):
        check_fits(none, BIG, [(1, 84, 100)])


def test_the_manifests_in_the_documentation_are_manifests(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "requests.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    tasks = {loaded(tmp_path, block).task for block in blocks}
    assert tasks == {"heatmap", "segmentation", "detection"}
