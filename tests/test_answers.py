"""Answers: classes, objects and tensors as JSON, and as a picture."""

from __future__ import annotations

import io
import json
from base64 import b64decode, b64encode
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from agent.adapters.drawing import annotate
from agent.answers import answer
from agent.errors import ConfigError, InputError
from agent.wire.manifest import InputManifest, Manifest, OutputManifest

LABELS = ("background", "scratch", "pit")


def heatmap(**fields: Any) -> Manifest:
    return Manifest("heatmap", LABELS, output=OutputManifest(**fields))


def scores_of(rows: list[str], certain: float = 0.8) -> np.ndarray[Any, Any]:
    """Return class scores [1, 3, H, W] in which each cell's class is the digit drawn there."""
    classes = np.array([[int(cell) for cell in row] for row in rows])
    scores = np.full((1, 3, *classes.shape), (1 - certain) / 2, np.float32)
    np.put_along_axis(scores[0], classes[None], certain, axis=0)
    return scores


def ask(scores: np.ndarray[Any, Any], manifest: Manifest, **rest: Any) -> dict[str, Any]:
    result = answer({"out": scores}, manifest, **rest)
    json.dumps(result, allow_nan=False)
    return result


def test_classification_names_the_best_classes_in_order() -> None:
    manifest = Manifest("classification", ("cat", "dog", "emu"), output=OutputManifest(top=2))
    assert ask(np.array([[0.25, 0.125, 0.5]], np.float32), manifest) == {
        "task": "classification",
        "label": "emu",
        "score": 0.5,
        "top": [
            {"label": "emu", "score": 0.5, "index": 2},
            {"label": "cat", "score": 0.25, "index": 0},
        ],
    }


def test_softmax_turns_logits_into_shares_without_overflow() -> None:
    manifest = Manifest("classification", output=OutputManifest(softmax=True))
    top = ask(np.array([[1000.0, 1000.0, 999.0]], np.float32), manifest)["top"]
    shares = np.exp([0.0, 0.0, -1.0]) / np.exp([0.0, 0.0, -1.0]).sum()
    assert [entry["score"] for entry in top] == pytest.approx(shares, rel=1e-4)
    assert [entry["index"] for entry in top] == [0, 1, 2]
    assert top[2]["label"] == "class 2"


def test_equal_scores_come_by_class_and_nan_comes_last() -> None:
    manifest = Manifest("classification")
    top = ask(np.array([np.nan, 2.0, np.inf, 2.0, -np.inf]), manifest)["top"]
    assert [entry["index"] for entry in top] == [2, 1, 3, 4, 0]
    assert [entry["score"] for entry in top] == [None, 2.0, 2.0, None, None]


def test_many_equal_scores_come_by_class() -> None:
    manifest = Manifest("classification", output=OutputManifest(top=300))
    top = ask(np.tile(np.array([[0.0, 1.0]]), 150), manifest)["top"]
    assert [entry["index"] for entry in top] == [*range(1, 300, 2), *range(0, 300, 2)]


def test_differences_of_rounding_give_the_same_text() -> None:
    values = np.array([[0.123456, 0.3]], np.float32)
    near = values * np.float32(1 + 3e-7)
    assert (near != values).any()
    assert ask(values, Manifest("classification")) == ask(near, Manifest("classification"))


def test_small_scores_keep_their_digits() -> None:
    top = ask(np.array([[1.23456e-7, 0.0]]), Manifest("classification"))["top"]
    assert top[0]["score"] == 1.2346e-07


@pytest.mark.parametrize("shape", [(2, 3), (1, 3, 4, 4), (1, 1)])
def test_an_output_that_is_no_classification_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="classification needs an output of 1 x classes"):
        answer({"out": np.zeros(shape, np.float32)}, Manifest("classification"))


def test_a_missing_output_is_refused() -> None:
    with pytest.raises(ConfigError, match="there is no output"):
        answer({}, Manifest("classification"))


def test_objects_are_boxed_counted_and_scored() -> None:
    result = ask(scores_of(["0110", "0100", "0002", "0000"]), heatmap())
    assert result == {
        "task": "heatmap",
        "objects": [
            {"label": "scratch", "score": 0.8, "box": [0.25, 0.0, 0.75, 0.5], "cells": 3},
            {"label": "pit", "score": 0.8, "box": [0.75, 0.5, 1.0, 0.75], "cells": 1},
        ],
        "counts": {"scratch": 1, "pit": 1},
    }


def test_diagonal_neighbours_are_one_object_but_classes_do_not_mix() -> None:
    assert ask(scores_of(["100", "010", "001"]), heatmap())["counts"] == {"scratch": 1, "pit": 0}
    assert ask(scores_of(["001", "010", "100"]), heatmap())["counts"] == {"scratch": 1, "pit": 0}
    assert ask(scores_of(["12", "21"]), heatmap())["counts"] == {"scratch": 1, "pit": 1}


def test_an_objects_score_is_the_mean_of_its_cells() -> None:
    scores = scores_of(["011"])
    scores[0, 1, 0, 1:] = (0.6, 0.9)
    assert ask(scores, heatmap())["objects"][0]["score"] == pytest.approx(0.75)


def test_uncertain_cells_and_small_objects_do_not_count() -> None:
    scores = scores_of(["1011"], certain=0.5)
    assert len(ask(scores, heatmap(threshold=0.5))["objects"]) == 2
    assert ask(scores, heatmap(threshold=0.51))["objects"] == []
    assert [found["cells"] for found in ask(scores, heatmap(min_cells=2))["objects"]] == [2]


def test_the_background_may_be_any_class() -> None:
    result = ask(scores_of(["02", "22"]), heatmap(background=2))
    assert result["counts"] == {"background": 1, "scratch": 0}


def test_a_heatmap_of_logits_is_softmaxed_over_the_classes() -> None:
    logits = np.log(scores_of(["01"], certain=0.7)) * 1.0 + 5
    assert ask(logits, heatmap(softmax=True))["objects"][0]["score"] == pytest.approx(0.7, 1e-4)


def test_a_heatmap_may_have_its_channels_last() -> None:
    scores = scores_of(["0110", "0002"])
    manifest = Manifest("heatmap", LABELS, InputManifest(layout="nhwc"))
    assert ask(scores.transpose(0, 2, 3, 1), manifest) == ask(scores, heatmap())


def test_boxes_are_fractions_of_the_picture_not_of_the_models_crop() -> None:
    cropped = ask(scores_of(["1000"]), heatmap(), frame=(0.5, 0.0, 1.0, 1.0))
    assert cropped["objects"][0]["box"] == [0.5, 0.0, 0.625, 1.0]
    barred = ask(scores_of(["1111"]), heatmap(), frame=(-0.5, 0.0, 1.5, 1.0))
    assert barred["objects"][0]["box"] == [0.0, 0.0, 1.0, 1.0]


def test_nan_scores_are_no_objects() -> None:
    scores = scores_of(["11"])
    scores[0, 1, 0, 0] = np.nan
    assert ask(scores, heatmap())["objects"][0]["cells"] == 1


def test_a_map_of_another_rank_is_refused() -> None:
    with pytest.raises(ConfigError, match="heatmap needs an output of one map of class scores"):
        answer({"out": np.zeros((1, 3), np.float32)}, heatmap())


def flooded(classes: np.ndarray[Any, Any]) -> list[tuple[int, frozenset[tuple[int, int]]]]:
    """Return the components by the plainest of ways, in reading order."""
    left = {(int(y), int(x)) for y, x in zip(*np.nonzero(classes), strict=True)}
    found = []
    for cell in sorted(left):
        if cell not in left:
            continue
        reached, front = {cell}, [cell]
        while front:
            y, x = front.pop()
            for near in ((y + j, x + i) for j in (-1, 0, 1) for i in (-1, 0, 1)):
                if near in left - reached and classes[near] == classes[cell]:
                    reached.add(near)
                    front.append(near)
        left -= reached
        found.append((int(classes[cell]), frozenset(reached)))
    return found


@given(
    arrays(
        np.int64,
        st.tuples(st.integers(1, 7), st.integers(1, 9)),
        elements=st.sampled_from([0, 1, 1, 2]),
    )
)
def test_components_are_those_of_a_flood_fill(classes: np.ndarray[Any, Any]) -> None:
    rows = ["".join(map(str, row)) for row in classes.tolist()]
    height, width = classes.shape
    expected = []
    for label, cells in flooded(classes):
        ys, xs = [y for y, _ in cells], [x for _, x in cells]
        box = (min(xs) / width, min(ys) / height, (max(xs) + 1) / width, (max(ys) + 1) / height)
        expected.append((LABELS[label], len(cells), [round(edge, 5) for edge in box]))
    objects = ask(scores_of(rows), heatmap())["objects"]
    assert [(found["label"], found["cells"], found["box"]) for found in objects] == expected


def test_tensors_are_described_and_given_in_full_when_small() -> None:
    outputs: dict[str, np.ndarray[Any, Any]] = {
        "a": np.array([[1.5, -2.0]], np.float32),
        "b": np.arange(1025, dtype=np.int64),
        "c": np.array(True),
        "d": np.zeros((0, 2), np.float32),
    }
    result = answer(outputs, Manifest("tensor"))
    json.dumps(result, allow_nan=False)
    first, second, third, fourth = result["outputs"]
    assert first == {
        "name": "a",
        "dtype": "float32",
        "shape": [1, 2],
        "min": -2.0,
        "max": 1.5,
        "mean": -0.25,
        "data": [[1.5, -2.0]],
    }
    assert "data" not in second
    assert (second["min"], second["max"], second["mean"]) == (0, 1024, 512.0)
    assert (third["data"], third["shape"], third["max"]) == (True, [], 1)
    assert (fourth["data"], fourth["min"]) == ([], None)


def test_what_json_cannot_say_is_none() -> None:
    result = answer({"a": np.array([[np.nan, np.inf, 1.0]])}, Manifest("tensor"))
    json.dumps(result, allow_nan=False)
    assert result["outputs"][0]["data"] == [[None, None, 1.0]]
    assert result["outputs"][0]["mean"] is None


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def drawn(picture: bytes, result: dict[str, Any]) -> np.ndarray[Any, Any]:
    image = Image.open(io.BytesIO(annotate(picture, result)))
    assert (image.format, image.mode) == ("PNG", "RGB")
    return np.asarray(image).astype(int)


def test_annotate_draws_a_box_where_the_object_is() -> None:
    picture = encoded(Image.new("L", (200, 100), 128))
    found = {"label": "pit", "score": 0.9, "box": [0.5, 0.5, 0.75, 0.9], "cells": 4}
    result = {"task": "heatmap", "objects": [found], "counts": {"scratch": 0, "pit": 1}}
    pixels = drawn(picture, result)
    changed = (pixels != 128).any(axis=2)
    assert changed.shape == (100, 200)
    assert changed[90, 100:150].all()  # the lower edge
    assert changed[50:90, 100].all()  # the left edge
    assert not changed[60:85, 110:140].any()  # inside
    assert not changed[60:, :95].any()
    assert not changed[60:, 155:].any()
    assert changed[30:49, 100:120].any()  # the label above the box
    other = drawn(picture, {**result, "objects": [{**found, "label": "scratch"}]})
    assert (other[90, 120] != pixels[90, 120]).any()  # a colour for each label


def test_annotate_writes_what_there_is_for_the_other_tasks() -> None:
    picture = encoded(Image.new("RGB", (300, 200), (9, 9, 9)), "JPEG")
    top = [{"label": "cat", "score": 0.5, "index": 0}, {"label": "dog", "score": None, "index": 1}]
    blank = drawn(picture, {"task": "classification", "top": []})
    written = drawn(picture, {"task": "classification", "top": top})
    assert (written[:40, :100] != blank[:40, :100]).any()
    assert (written[100:] == blank[100:]).all()
    tensor = {"task": "tensor", "outputs": [{"name": "a", "shape": [1, 2], "dtype": "float32"}]}
    assert (drawn(picture, tensor)[:40] != blank[:40]).any()


def test_annotate_turns_the_picture_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = encoded(Image.new("RGB", (60, 40)), "JPEG", exif=exif)
    assert drawn(picture, {"task": "classification", "top": []}).shape == (60, 40, 3)


def test_annotate_refuses_what_is_no_picture() -> None:
    with pytest.raises(InputError, match="no JPEG, PNG"):
        annotate(b"hello", {"task": "classification", "top": []})


def test_annotate_draws_detections_as_it_draws_heatmaps() -> None:
    picture = encoded(Image.new("L", (200, 100), 128))
    found = {"label": "dog", "score": 0.9, "box": [0.5, 0.5, 0.75, 0.9]}
    detection = {"task": "detection", "objects": [found], "counts": {"dog": 1}}
    pixels = drawn(picture, detection)
    assert (pixels == drawn(picture, {**detection, "task": "heatmap"})).all()
    assert (pixels[90, 100:150] != 128).any(axis=1).all()


def test_annotate_lays_a_mask_over_its_part_of_the_picture() -> None:
    picture = encoded(Image.new("RGB", (400, 200), (100, 100, 100)))
    classes = np.zeros((1, 4, 4), np.int64)
    classes[0, 2:, 2:] = 2
    result = ask(classes, Manifest("segmentation", LABELS), frame=(0.5, 0.0, 1.0, 1.0))
    pixels = drawn(picture, result)
    assert (pixels[110:190, 310:390] == [50, 114, 50]).all()  # half of 100, half of VOC's green
    assert (pixels[110:190, 10:290] == 100).all()
    blank = drawn(picture, ask(np.zeros((1, 4, 4), np.int64), Manifest("segmentation", LABELS)))
    assert (blank[60:, :] == 100).all()


@pytest.mark.parametrize("png", ["no base64", "", "aGVsbG8=", None])
def test_annotate_refuses_a_mask_that_is_none(png: str | None) -> None:
    picture = encoded(Image.new("RGB", (40, 20)))
    if png is None:
        png = b64encode(picture).decode()  # a PNG, but with no palette
    result = ask(np.ones((1, 4, 4), np.int64), Manifest("segmentation", LABELS))
    result["mask"]["png"] = png
    with pytest.raises(InputError, match="mask is no"):
        annotate(picture, result)


def test_annotate_refuses_a_mask_that_is_cut_off() -> None:
    noise = np.random.default_rng(1).integers(0, 3, (1, 64, 64))
    result = ask(noise, Manifest("segmentation", LABELS))
    result["mask"]["png"] = b64encode(b64decode(result["mask"]["png"])[:-500]).decode()
    with pytest.raises(InputError, match="the mask is damaged"):
        annotate(encoded(Image.new("RGB", (40, 20))), result)


def test_sigmoid_turns_independent_logits_into_scores() -> None:
    manifest = Manifest("classification", output=OutputManifest(sigmoid=True))
    top = ask(np.array([[0.0, 2.0]], np.float32), manifest)["top"]
    assert [entry["score"] for entry in top] == [pytest.approx(0.8808, rel=1e-4), 0.5]
