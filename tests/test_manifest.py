"""Manifests: what they may say, and how mistakes in them are told."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from agent.errors import ConfigError, WireError
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
