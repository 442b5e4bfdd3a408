"""Detections: every format of boxes, read exactly, chosen by score and overlap."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from agent.answers import answer
from agent.detection import MAX_CANDIDATES, suppressed
from agent.errors import ConfigError
from agent.wire.detection import DetectionManifest
from agent.wire.manifest import InputManifest, Manifest, OutputManifest

Array = np.ndarray[Any, Any]
LABELS = ("cat", "dog", "emu")
INPUT = (1, 3, 64, 128)


def detector(form: Any, output: OutputManifest | None = None, **fields: Any) -> Manifest:
    labels = fields.pop("labels", LABELS)
    layout = fields.pop("layout", "nchw")
    return Manifest(
        "detection",
        labels,
        InputManifest(layout=layout),
        output or OutputManifest(),
        DetectionManifest(form, **fields),
    )


def ask(manifest: Manifest, *outputs: Array, **rest: Any) -> dict[str, Any]:
    named = {f"out{number}": output for number, output in enumerate(outputs)}
    result = answer(named, manifest, **{"input_shape": INPUT, **rest})
    json.dumps(result, allow_nan=False)
    return result


def found(result: dict[str, Any]) -> list[tuple[str, float, list[float]]]:
    return [(thing["label"], thing["score"], thing["box"]) for thing in result["objects"]]


def logit(share: float) -> float:
    return math.log(share / (1 - share))


# cx, cy, w, h in pixels, and scores: two dogs of which one is worse, a cat, and nothing.
V8 = np.array(
    [
        [32, 32, 64, 32, 0.1, 0.8, 0.0],
        [34, 32, 64, 32, 0.1, 0.7, 0.0],
        [96, 16, 32, 16, 0.9, 0.0, 0.0],
        [64, 32, 10, 10, 0.1, 0.1, 0.2],
        [32, 32, 64, 32, 0.75, 0.0, 0.1],
        [64, 32, 10, 10, 0.0, 0.0, 0.0],
        [64, 32, 10, 10, 0.0, 0.0, 0.0],
        [64, 32, 10, 10, 0.0, 0.0, 0.0],
    ],
    np.float32,
)[None]
CAT = {"label": "cat", "score": 0.9, "box": [0.625, 0.125, 0.875, 0.375]}
DOG = {"label": "dog", "score": 0.8, "box": [0.0, 0.25, 0.5, 0.75]}
OVER_DOG = {"label": "cat", "score": 0.75, "box": [0.0, 0.25, 0.5, 0.75]}


def test_yolov8_boxes_are_chosen_by_score_and_overlap() -> None:
    expected = {
        "task": "detection",
        "objects": [CAT, DOG, OVER_DOG],
        "counts": {"cat": 2, "dog": 1, "emu": 0},
    }
    assert ask(detector("yolov8"), V8.transpose(0, 2, 1)) == expected
    assert ask(detector("yolov8"), V8) == expected
    assert ask(detector("yolov8"), V8[0]) == expected


def test_without_labels_the_shorter_axis_has_the_attributes() -> None:
    result = ask(detector("yolov8", labels=()), V8.transpose(0, 2, 1))
    assert [thing["label"] for thing in result["objects"]] == ["class 0", "class 1", "class 0"]
    assert result["counts"] == {"class 0": 2, "class 1": 1}
    assert ask(detector("yolov8", labels=()), V8) == result


def test_classes_may_compete_and_few_may_be_told() -> None:
    assert ask(detector("yolov8", per_class=False), V8)["objects"] == [CAT, DOG]
    assert ask(detector("yolov8", max_objects=1), V8)["objects"] == [CAT]
    assert len(ask(detector("yolov8", iou=1.0), V8)["objects"]) == 4
    strict = detector("yolov8", OutputManifest(threshold=0.85))
    assert ask(strict, V8)["objects"] == [CAT]


def test_logits_and_fractions_are_read_where_the_manifest_says_so() -> None:
    values = V8.astype(np.float64).copy()
    values[..., :4] /= [128, 64, 128, 64]
    values[..., 4:] = [[logit(min(0.999, max(0.001, v))) for v in row] for row in V8[0, :, 4:]]
    manifest = detector("yolov8", OutputManifest(sigmoid=True), normalized=True)
    assert ask(manifest, values)["objects"] == [CAT, DOG, OVER_DOG]


def test_yolov5_scores_are_products_with_objectness() -> None:
    rows = np.array(
        [[[96, 16, 32, 16, 0.9, 1.0, 0.0, 0.0], [32, 32, 64, 32, 0.8, 0.5, 0.75, 0.0]]], np.float64
    )
    rows = np.concatenate([rows, np.zeros((1, 10, 8))], axis=1)
    expected = [CAT, {**DOG, "score": 0.6}]
    assert ask(detector("yolov5"), rows)["objects"] == expected
    assert ask(detector("yolov5"), rows.transpose(0, 2, 1))["objects"] == expected


def test_yolov5_objectness_may_be_a_logit_too() -> None:
    rows = np.full((1, 12, 8), -20.0)
    rows[0, 0] = [96, 16, 32, 16, logit(0.9), 20, -20, -20]
    assert ask(detector("yolov5", OutputManifest(sigmoid=True)), rows)["objects"] == [CAT]


def test_a_model_that_knows_nothing_but_background_finds_nothing() -> None:
    manifest = detector("ssd", labels=("nothing",))
    result = ask(manifest, SSD_BOXES, np.ones((1, 2, 1), np.float32))
    assert (result["objects"], result["counts"]) == ([], {})


def test_of_very_many_labels_only_those_found_are_counted() -> None:
    names = tuple(f"l{number}" for number in range(2000))
    rows = np.array([[[80, 8, 112, 24, 0.9, 1500]]], np.float32)
    assert ask(detector("nms-included", labels=names), rows)["counts"] == {"l1500": 1}


def test_a_detector_may_have_a_background() -> None:
    names = ("nothing", "cat", "dog")
    manifest = detector("yolov8", OutputManifest(background=0), labels=names)
    result = ask(manifest, V8)
    # The cats of the other tests are nothing here, but what else they may be counts.
    assert found(result) == [("cat", 0.8, DOG["box"])]
    assert result["counts"] == {"cat": 1, "dog": 0}


ANCHORS = ((16.0, 8.0, 32.0, 32.0), (64.0, 32.0, 90.0, 60.0))


def anchored_maps(raw: bool = True) -> list[Array]:  # noqa: FBT001, FBT002
    """Return maps of strides 16 and 32 with one object each, the finest last."""
    void = -20.0 if raw else 0.0
    middle = 0.0 if raw else 0.5
    sure = 20.0 if raw else 1.0
    fine = np.full((1, 2, 8, 4, 8), void)
    fine[0, 1, :, 1, 5] = [middle, middle, middle, middle, sure, void, void, sure]
    coarse = np.full((1, 2, 8, 2, 4), void)
    half = 0.0 if raw else 0.5
    coarse[0, 0, :, 1, 2] = [middle, middle, middle, middle, sure, half, void, void]
    return [coarse, fine]


def as_channels(maps: list[Array]) -> list[Array]:
    return [m.transpose(0, 1, 2, 3, 4).reshape(1, -1, *m.shape[3:]) for m in maps]


# sigmoid(0) is 0.5: the middle of the cell, and in v5 the anchor's own size.
EMU_V5 = ("emu", 1.0, [(88 - 16) / 128, (24 - 16) / 64, (88 + 16) / 128, (24 + 16) / 64])
CAT_V5 = ("cat", 0.5, [(80 - 32) / 128, (48 - 16) / 64, (80 + 32) / 128, 1.0])


@pytest.mark.parametrize("form", ["yolov5-raw", "yolov3-raw"])
def test_raw_maps_are_decoded_with_their_anchors(form: str) -> None:
    # exp(0) is 1: with v3, too, the anchor's size.
    manifest = detector(form, anchors=ANCHORS)
    assert found(ask(manifest, *as_channels(anchored_maps()))) == [EMU_V5, CAT_V5]
    last = [m.transpose(0, 1, 3, 4, 2) for m in anchored_maps()]
    assert found(ask(manifest, *last)) == [EMU_V5, CAT_V5]
    nhwc = [m.transpose(0, 2, 3, 1) for m in as_channels(anchored_maps())]
    across = detector(form, anchors=ANCHORS, layout="nhwc")
    assert found(ask(across, *nhwc, input_shape=(1, 64, 128, 3))) == [EMU_V5, CAT_V5]


def test_raw_maps_may_have_been_through_their_sigmoid() -> None:
    manifest = detector("yolov5-raw", OutputManifest(sigmoid=False), anchors=ANCHORS)
    assert found(ask(manifest, *as_channels(anchored_maps(raw=False)))) == [EMU_V5, CAT_V5]


def test_places_and_sizes_off_the_middle_follow_each_version() -> None:
    raw = np.full((1, 6, 4, 8), -20.0)
    raw[0, :, 1, 2] = [logit(0.75), logit(0.25), logit(0.75), logit(0.25), 20, 20]
    five = detector("yolov5-raw", labels=("cat",), anchors=((16.0, 8.0),))
    # x = (2 * 0.75 - 0.5 + 2) * 16 = 48, y = (2 * 0.25 - 0.5 + 1) * 16 = 16, w = 36, h = 2
    box = [0.2344, 0.2344, 0.5156, 0.2656]
    assert found(ask(five, raw)) == [("cat", 1.0, box)]
    three = detector("yolov3-raw", labels=("cat",), anchors=((16.0, 8.0),))
    raw[0, 2:4, 1, 2] = [math.log(2), math.log(0.5)]
    # x = (0.75 + 2) * 16 = 44, y = (0.25 + 1) * 16 = 20, w = 32, h = 4
    assert found(ask(three, raw)) == [("cat", 1.0, [0.2188, 0.2813, 0.4688, 0.3438])]


def test_yolov2_scores_are_a_softmax_over_the_classes() -> None:
    raw = np.full((1, 8, 2, 4), -20.0)
    raw[0, :, 0, 1] = [0, 0, 0, 0, 20, 5, 5 + math.log(3), -50]
    manifest = detector("yolov3-raw", OutputManifest(softmax=True), anchors=((32.0, 32.0),))
    assert found(ask(manifest, raw)) == [("dog", 0.75, [0.25, 0.0, 0.5, 0.5])]


def test_anchor_free_maps_are_distances_to_the_sides() -> None:
    coarse, fine = np.full((1, 7, 2, 4), -20.0), np.full((1, 7, 4, 8), -20.0)
    coarse[0, :, 1, 2] = [1.5, 0.5, 0.5, 0.25, -20, logit(0.75), -20]
    fine[0, :, 0, 7] = [0.5, 0.5, 0.5, 0.5, logit(0.875), -20, -20]
    expected = [
        ("cat", 0.875, [0.875, 0.0, 1.0, 0.25]),
        ("dog", 0.75, [1.0 / 4, 1.0 / 2, 3.0 / 4, 1.75 / 2]),
    ]
    assert found(ask(detector("yolov8-raw", bins=1), coarse, fine)) == expected


def test_distances_may_be_distributions() -> None:
    maps = np.full((1, 4 * 4 + 3, 2, 4), 0.0)
    maps[0, 16:] = -20
    maps[0, 16:, 1, 2] = [-20, 20, -20]
    sides = np.full((4, 4), -50.0)
    sides[0, 1:3] = 0  # half of 1, half of 2
    sides[1, 0] = sides[2, 1] = sides[3, 0] = 9
    maps[0, :16, 1, 2] = sides.ravel()
    maps[0, 1 + 3 * 4, 1, 2] = 9  # half of 0, half of 1
    assert found(ask(detector("yolov8-raw", bins=4), maps)) == [
        ("dog", 1.0, [1.0 / 4, 1.5 / 2, 3.5 / 4, 1.0])
    ]


SSD_BOXES = np.array([[[0.0, 0.25, 0.5, 0.75], [0.625, 0.125, 0.875, 0.375]]], np.float32)
SSD_SCORES = np.array([[[0.1, 0.8, 0.1], [0.5, 0.1, 0.4]]], np.float32)
SSD_LABELS = ("background", "dog", "cat")
SSD_FOUND = [("dog", 0.8, [0.0, 0.25, 0.5, 0.75]), ("cat", 0.4, [0.625, 0.125, 0.875, 0.375])]


def test_ssd_has_boxes_and_scores_in_outputs_of_their_own() -> None:
    manifest = detector("ssd", labels=SSD_LABELS)
    result = ask(manifest, SSD_BOXES, SSD_SCORES)
    assert found(result) == SSD_FOUND
    assert result["counts"] == {"dog": 1, "cat": 1}
    assert ask(manifest, SSD_SCORES, SSD_BOXES) == result
    logits = np.log(SSD_SCORES) + 3
    softmaxed = detector("ssd", OutputManifest(softmax=True), labels=SSD_LABELS)
    assert ask(softmaxed, SSD_BOXES, logits) == result
    assert found(ask(detector("ssd", OutputManifest(background=-1)), SSD_BOXES, SSD_SCORES)) == [
        ("dog", 0.8, [0.0, 0.25, 0.5, 0.75]),
        ("cat", 0.5, [0.625, 0.125, 0.875, 0.375]),
    ]


@pytest.mark.parametrize("pixels", [False, True])
@pytest.mark.parametrize("coding", ["xyxy", "yxyx", "cxcywh"])
def test_a_box_may_be_written_in_three_ways(coding: str, *, pixels: bool) -> None:
    corners = SSD_BOXES.astype(np.float64) * ([128, 64, 128, 64] if pixels else 1)
    x0, y0, x1, y1 = np.moveaxis(corners, -1, 0)
    written = {
        "xyxy": [x0, y0, x1, y1],
        "yxyx": [y0, x0, y1, x1],
        "cxcywh": [(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0],
    }[coding]
    manifest = detector("ssd", labels=SSD_LABELS, boxes=coding, normalized=not pixels)
    assert found(ask(manifest, np.stack(written, axis=-1), SSD_SCORES)) == SSD_FOUND


def test_four_classes_look_like_boxes_unless_the_manifest_says_which_is_which() -> None:
    scores = np.array([[[0.0, 0.9, 0.0, 0.0], [0.0, 0.0, 0.0, 0.8]]], np.float32)
    names = ("background", "dog", "cow", "cat")
    manifest = detector("ssd", labels=names, outputs=(1, 0))
    assert [label for label, *_ in found(ask(manifest, scores, SSD_BOXES))] == ["dog", "cat"]


def test_models_that_choose_themselves_are_taken_at_their_word() -> None:
    rows = np.array(
        [
            [0, 16, 64, 48, 0.8, 1.0],
            [2, 16, 64, 48, 0.7, 1.0],  # overlaps, but the model has let it pass
            [80, 8, 112, 24, 0.9, 0.0],
            [0, 0, 10, 10, 0.1, 0.0],
            [0, 0, 10, 10, 0.9, -1.0],
            [0, 0, 10, 10, 0.9, np.nan],
            [0, 0, 0, 0, 0.9, 0.0],
            [0, 0, 10, 10, 0.3, 7.0],
        ]
    )
    last = {"label": "class 7", "score": 0.3, "box": [0.0, 0.0, 0.0781, 0.1563]}
    expected = [CAT, DOG, {"label": "dog", "score": 0.7, "box": [0.0156, 0.25, 0.5, 0.75]}, last]
    result = ask(detector("nms-included"), rows[None])
    assert result["objects"] == expected
    assert result["counts"] == {"cat": 1, "dog": 2, "emu": 0, "class 7": 1}
    assert ask(detector("nms-included"), rows) == result
    batch = np.zeros((len(rows) + 1, 1))
    batch[-1] = -1  # padding
    seven = np.hstack([batch, np.vstack([rows, rows[:1]])[:, [0, 1, 2, 3, 5, 4]]])
    assert ask(detector("nms-included"), seven) == result
    boxes, scores, classes = rows[None, :, :4], rows[None, :, 4], rows[None, :, 5]
    count = np.array([8.0])
    assert ask(detector("nms-included"), boxes, classes, scores, count) == result
    manifest = detector("nms-included", outputs=(1, 3, 2))
    assert ask(manifest, count, boxes, scores, classes) == result
    few = detector("nms-included", max_objects=2)
    assert ask(few, rows)["objects"] == expected[:2]


def test_boxes_are_fractions_of_the_picture_not_of_the_models_input() -> None:
    manifest = detector("yolov8")
    barred = ask(manifest, V8, frame=(0.0, -0.5, 1.0, 1.5))["objects"]
    assert [thing["box"] for thing in barred[:2]] == [
        [0.625, 0.0, 0.875, 0.25],
        [0.0, 0.0, 0.5, 1.0],
    ]
    cropped = ask(manifest, V8, frame=(0.25, 0.0, 0.75, 1.0))["objects"]
    assert cropped[0]["box"] == [0.5625, 0.125, 0.6875, 0.375]


def test_a_box_in_a_letterboxs_bar_is_not_told() -> None:
    row = np.zeros((1, 8, 7))
    row[0, 0] = [64, 4, 20, 6, 0.9, 0, 0]
    assert ask(detector("yolov8"), row, frame=(0.0, -0.5, 1.0, 1.5))["objects"] == []


def test_equal_scores_keep_the_models_order() -> None:
    rows = np.zeros((1, 12, 7))
    rows[0, :3] = [[20 + 40 * n, 30, 20, 20, 0.5, 0, 0] for n in (2, 0, 1)]
    lefts = [box[0] for _, _, box in found(ask(detector("yolov8"), rows))]
    assert lefts == [0.7031, 0.0781, 0.3906]


def test_differences_of_rounding_give_the_same_text() -> None:
    random = np.random.default_rng(3)
    rows = np.zeros((1, 200, 7), np.float32)
    rows[0, :, :4] = random.integers(32, 240, (200, 4)) / 4  # often in the middle
    rows[0, :, 4:] = random.uniform(0, 1, (200, 3)).round(2)  # many ties
    near = (rows * (1 + random.uniform(-2e-7, 2e-7, rows.shape))).astype(np.float32)
    assert (near != rows).any()
    assert json.dumps(ask(detector("yolov8"), near)) == json.dumps(ask(detector("yolov8"), rows))


def test_odd_numbers_are_no_objects() -> None:
    rows = np.zeros((1, 16, 7))
    rows[0, :8] = [64, 32, 10, 10, 0.9, 0, 0]
    rows[0, 0, 0], rows[0, 1, 4], rows[0, 2, 5] = np.nan, np.nan, np.nan
    rows[0, 3, 2], rows[0, 4, 4] = np.inf, np.inf
    rows[0, 5, 2] = -10  # turned inside out
    rows[0, 6, 2] = 0
    rows[0, 7, 0] = 1e300
    assert ask(detector("yolov8"), rows)["objects"] == []
    wild = np.full((1, 8, 2, 4), 1e4)
    manifest = detector("yolov3-raw", anchors=((32.0, 32.0),))
    assert ask(manifest, wild)["objects"] == []


def test_many_boxes_are_cut_to_the_best_before_they_are_compared() -> None:
    count = 60_000
    rows = np.zeros((1, count, 7), np.float32)
    rows[0, :, :2] = np.stack([np.arange(count) % 128, np.arange(count) % 64], axis=1)
    rows[0, :, 2:4] = 0.5
    rows[0, :, 4] = np.linspace(0.5, 1, count)
    result = ask(detector("yolov8", max_objects=1000, iou=0.0), rows)
    assert 0 < len(result["objects"]) <= MAX_CANDIDATES
    assert result["objects"][0]["score"] == 1.0


def overlap(left: list[float], right: list[float]) -> float:
    """Return the intersection over union of two boxes, by the plainest of ways."""
    width = min(left[2], right[2]) - max(left[0], right[0])
    height = min(left[3], right[3]) - max(left[1], right[1])
    common = max(0.0, width) * max(0.0, height)
    areas = sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (left, right))
    return common / (areas - common)


@given(
    arrays(
        np.float32,
        st.tuples(st.just(1), st.integers(8, 40), st.just(7)),
        elements=st.floats(-20, 140, width=32) | st.floats(0, 1, width=32),
    ),
    st.sampled_from([0.0, 0.3, 0.45, 0.9, 1.0]),
    st.booleans(),
)
def test_what_is_told_is_within_the_picture_and_does_not_overlap(
    rows: Array,
    iou: float,
    per_class: bool,  # noqa: FBT001
) -> None:
    manifest = detector("yolov8", iou=iou, per_class=per_class)
    objects = ask(manifest, rows, frame=(-0.25, 0.0, 1.25, 1.0))["objects"]
    scores = [thing["score"] for thing in objects]
    assert scores == sorted(scores, reverse=True)
    for index, thing in enumerate(objects):
        x0, y0, x1, y1 = thing["box"]
        assert 0 <= x0 < x1 <= 1
        assert 0 <= y0 < y1 <= 1
        for other in objects[:index]:
            if other["label"] == thing["label"] or not per_class:
                assert overlap(other["box"], thing["box"]) <= iou + 1e-9


@given(
    arrays(np.float64, st.tuples(st.integers(0, 25), st.just(4)), elements=st.integers(0, 8)),
    st.sampled_from([0.0, 0.25, 0.5]),
    st.integers(1, 30),
    st.randoms(use_true_random=False),
)
def test_suppression_is_the_greedy_one(edges: Array, iou: float, most: int, random: Any) -> None:
    corners = np.stack(
        [
            edges[:, :2].min(axis=1),
            edges[:, 2:].min(axis=1),
            edges[:, :2].max(axis=1) + 1,
            edges[:, 2:].max(axis=1) + 1,
        ],
        axis=1,
    )
    classes = np.array([random.randrange(2) for _ in corners], np.int64)
    expected: list[int] = []
    for index, box in enumerate(corners.tolist()):
        clashes = (
            classes[other] == classes[index] and overlap(corners[other].tolist(), box) > iou
            for other in expected
        )
        if len(expected) < most and not any(clashes):
            expected.append(index)
    assert suppressed(corners, classes, iou, most).tolist() == expected


@given(
    st.tuples(st.integers(1, 1000), st.integers(1, 1000)),
    st.floats(0.1, 0.9),
    st.floats(0.1, 0.9),
    st.floats(0.05, 0.2),
)
def test_a_letterbox_is_undone(size: tuple[int, int], x: float, y: float, half: float) -> None:
    width, height = size
    scale = min(128 / width, 64 / height)
    bars = (128 - width * scale) / 2, (64 - height * scale) / 2
    frame = (
        -bars[0] / (width * scale),
        -bars[1] / (height * scale),
        1 + bars[0] / (width * scale),
        1 + bars[1] / (height * scale),
    )
    rows = np.zeros((1, 8, 7))
    rows[0, 0, :2] = [bars[0] + x * width * scale, bars[1] + y * height * scale]
    rows[0, 0, 2:5] = [2 * half * width * scale, 2 * half * height * scale, 0.9]
    (told,) = found(ask(detector("yolov8"), rows, frame=frame))
    wanted = [max(0, x - half), max(0, y - half), min(1, x + half), min(1, y + half)]
    assert told[2] == pytest.approx(wanted, abs=1e-4)


def test_a_detector_without_a_picture_is_refused() -> None:
    with pytest.raises(ConfigError, match="a picture as input"):
        ask(detector("yolov8"), V8, input_shape=(1, 9))
    with pytest.raises(ConfigError, match=r"^detection\.format: yolov8 needs one output"):
        ask(detector("yolov8"), np.zeros((1, 3, 3)))
