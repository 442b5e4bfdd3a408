"""Segmentations: masks of every kind of output, shares, boxes, and the PNG that tells them."""

from __future__ import annotations

import io
import json
from base64 import b64decode
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from agent.adapters.pictures import MAX_MASK_BYTES, encode_mask
from agent.answers import answer
from agent.errors import ConfigError
from agent.wire.manifest import InputManifest, Manifest, OutputManifest

Array = np.ndarray[Any, Any]
LABELS = ("background", "road", "tree")


def segmenter(labels: tuple[str, ...] = LABELS, layout: Any = "nchw", **fields: Any) -> Manifest:
    output = OutputManifest(**fields)
    return Manifest("segmentation", labels, InputManifest(layout=layout), output)


def classes_of(rows: list[str]) -> Array:
    return np.array([[int(cell) for cell in row] for row in rows])


def scores_of(rows: list[str], certain: float = 0.8) -> Array:
    """Return class scores [1, 3, H, W] in which each pixel's class is the digit drawn there."""
    classes = classes_of(rows)
    scores = np.full((1, 3, *classes.shape), (1 - certain) / 2, np.float32)
    np.put_along_axis(scores[0], classes[None], certain, axis=0)
    return scores


def ask(output: Array, manifest: Manifest, **rest: Any) -> dict[str, Any]:
    result = answer({"out": output}, manifest, **rest)
    json.dumps(result, allow_nan=False)
    return result


def mask_of(result: dict[str, Any]) -> list[str]:
    """Return the mask of an answer as it would be drawn."""
    mask = result["mask"]
    image = Image.open(io.BytesIO(b64decode(mask["png"])))
    assert (image.format, image.mode) == ("PNG", "P")
    assert image.size == (mask["width"], mask["height"])
    return ["".join(map(str, row)) for row in np.asarray(image).tolist()]


ROWS = ["0110", "0112", "0000", "0000"]


def test_pixels_are_counted_boxed_and_told_as_a_picture() -> None:
    result = ask(scores_of(ROWS), segmenter())
    assert mask_of(result) == ROWS
    del result["mask"]["png"]
    assert result == {
        "task": "segmentation",
        "regions": [
            {"label": "road", "index": 1, "share": 0.25, "box": [0.25, 0.0, 0.75, 0.5]},
            {"label": "tree", "index": 2, "share": 0.0625, "box": [0.75, 0.25, 1.0, 0.5]},
        ],
        "shares": {"background": 0.6875, "road": 0.25, "tree": 0.0625},
        "mask": {
            "width": 4,
            "height": 4,
            "box": [0.0, 0.0, 1.0, 1.0],
            "classes": {"0": "background", "1": "road", "2": "tree"},
        },
    }


def test_channels_last_and_classes_themselves_are_the_same() -> None:
    expected = ask(scores_of(ROWS), segmenter())
    assert ask(scores_of(ROWS).transpose(0, 2, 3, 1), segmenter(layout="nhwc")) == expected
    classes = classes_of(ROWS)[None]
    for kind in (np.int64, np.int32, np.uint8):
        assert ask(classes.astype(kind), segmenter()) == expected
        assert ask(classes.astype(kind)[:, None], segmenter()) == expected
        assert ask(classes.astype(kind)[..., None], segmenter(layout="nhwc")) == expected


def test_labels_of_which_nothing_is_there_have_a_share_of_zero() -> None:
    result = ask(scores_of(["00"]), segmenter())
    assert result["shares"] == {"background": 1.0, "road": 0.0, "tree": 0.0}
    assert result["regions"] == []
    assert result["mask"]["classes"] == {"0": "background"}
    assert ask(scores_of(["02"]), segmenter(()))["shares"] == {"class 0": 0.5, "class 2": 0.5}


def test_one_map_of_scores_is_of_class_one() -> None:
    names = ("nothing", "person")
    shares = np.array([[[[0.4, 0.5], [0.9, np.nan]]]], np.float32)
    result = ask(shares, segmenter(names))
    assert mask_of(result) == ["01", "10"]
    assert result["shares"] == {"nothing": 0.5, "person": 0.5}
    assert ask(shares[:, 0], segmenter(names)) == result
    assert mask_of(ask(shares, segmenter(names, threshold=0.6))) == ["00", "10"]
    logits = np.log(shares / (1 - shares)) + np.float32(1e-3)
    assert ask(logits, segmenter(names, sigmoid=True)) == result
    assert mask_of(ask(np.array([[[True, False]]]), segmenter(names))) == ["10"]


def test_a_threshold_puts_uncertain_pixels_to_the_background() -> None:
    scores = scores_of(["12"])
    scores[0, 1, 0, 0] = 0.6
    assert mask_of(ask(scores, segmenter())) == ["12"]
    assert mask_of(ask(scores, segmenter(threshold=0.7))) == ["02"]
    logits = np.log(scores) + 4
    assert mask_of(ask(logits, segmenter(threshold=0.77, softmax=True))) == ["02"]
    none = ask(scores, segmenter(threshold=0.7, background=-1))
    assert none["mask"]["classes"] == {"2": "tree", "255": "nothing"}
    assert none["shares"] == {"background": 0.0, "road": 0.0, "tree": 0.5, "nothing": 0.5}
    assert [region["label"] for region in none["regions"]] == ["tree"]


def test_without_a_background_every_class_is_a_region() -> None:
    regions = ask(scores_of(["0112"]), segmenter(background=-1))["regions"]
    assert [(region["label"], region["share"]) for region in regions] == [
        ("road", 0.5),
        ("background", 0.25),
        ("tree", 0.25),
    ]


def test_numbers_that_are_no_classes_are_nothing() -> None:
    odd = np.array([[[-1, 255, 1000, 2]]])
    assert ask(odd, segmenter())["shares"] == {"background": 0.75, "road": 0.0, "tree": 0.25}
    assert ask(odd, segmenter(background=-1))["shares"]["nothing"] == 0.75
    scores = scores_of(["121"])
    scores[0, 2, 0, 0] = np.nan
    scores[0, :, 0, 1] = np.nan
    assert mask_of(ask(scores, segmenter())) == ["101"]


def test_bars_of_a_letterbox_are_left_out() -> None:
    # A picture twice as wide as high: the first and last quarter of the input's rows are bars.
    rows = ["1111", "1100", "0020", "2222"]
    result = ask(scores_of(rows), segmenter(), frame=(0.0, -0.5, 1.0, 1.5))
    assert mask_of(result) == ["1100", "0020"]
    assert result["mask"]["box"] == [0.0, 0.0, 1.0, 1.0]
    assert result["shares"] == {"background": 0.625, "road": 0.25, "tree": 0.125}
    assert [region["box"] for region in result["regions"]] == [
        [0.0, 0.0, 0.5, 0.5],
        [0.5, 0.5, 0.75, 1.0],
    ]


def test_pixels_that_are_half_a_bar_count_by_their_middle() -> None:
    rows = ["1111", "0000", "0000", "2222"]
    mostly_seen = ask(scores_of(rows), segmenter(), frame=(0.0, -0.1, 1.0, 1.1))
    assert mask_of(mostly_seen) == rows
    assert mostly_seen["regions"][0]["box"] == [0.0, 0.0, 1.0, 0.2]
    mostly_bar = ask(scores_of(rows), segmenter(), frame=(0.0, -0.2, 1.0, 1.2))
    assert mask_of(mostly_bar) == ["0000", "0000"]
    assert mostly_bar["mask"]["box"] == [0.0, 0.15, 1.0, 0.85]


def test_a_picture_thinner_than_a_pixel_has_one_row() -> None:
    assert mask_of(ask(scores_of(["01", "12"]), segmenter(), frame=(0, -9, 1, 10))) == ["12"]


def test_a_crops_mask_says_which_part_of_the_picture_it_is() -> None:
    result = ask(scores_of(["0011"]), segmenter(), frame=(0.25, 0.0, 0.75, 1.0))
    assert result["mask"]["box"] == [0.25, 0.0, 0.75, 1.0]
    assert result["regions"][0]["box"] == [0.5, 0.0, 0.75, 1.0]
    assert result["shares"]["road"] == 0.5


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3), "1 x classes x height x width, or 1 x height x width"),
        ((2, 4, 4), "1 x classes x height x width"),
        ((2, 3, 4, 4), "one map of class scores"),
        ((1, 256, 4, 4), "at most 255 classes in layout nchw"),
    ],
)
def test_an_output_that_is_no_segmentation_is_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        answer({"out": np.zeros(shape, np.float32)}, segmenter())


@given(
    arrays(
        np.uint8,
        st.tuples(st.integers(1, 9), st.integers(1, 9)),
        elements=st.sampled_from([0, 1, 2, 2, 254]),
    ),
    st.tuples(st.floats(-2, 0.4), st.floats(-2, 0.4), st.floats(0.6, 3), st.floats(0.6, 3)),
)
def test_shares_boxes_and_mask_say_the_same(
    classes: Array, frame: tuple[float, float, float, float]
) -> None:
    result = ask(classes[None], segmenter(()), frame=frame)
    mask = np.asarray(Image.open(io.BytesIO(b64decode(result["mask"]["png"]))))
    assert {str(index) for index in np.unique(mask)} == result["mask"]["classes"].keys()
    assert sum(result["shares"].values()) == pytest.approx(1, abs=1e-4)
    height, width = mask.shape
    for region in result["regions"]:
        at = mask == region["index"]
        assert region["share"] == pytest.approx(at.mean(), abs=1e-5)
        x0, y0, x1, y1 = region["box"]
        left, top, right, bottom = result["mask"]["box"]
        assert left <= x0 <= x1 <= right
        assert top <= y0 <= y1 <= bottom
        if all(0 <= edge <= 1 for edge in frame):  # so no pixel is cut
            columns, rows = np.flatnonzero(at.any(axis=0)), np.flatnonzero(at.any(axis=1))
            assert x0 == pytest.approx(left + (right - left) * columns[0] / width, abs=3e-5)
            assert y1 == pytest.approx(top + (bottom - top) * (rows[-1] + 1) / height, abs=3e-5)


def test_a_mask_that_is_too_large_is_made_smaller() -> None:
    noise = np.random.default_rng(1).integers(0, 20, (900, 1200)).astype(np.uint8)
    png, width, height = encode_mask(noise)
    assert MAX_MASK_BYTES / 4 < len(png) <= MAX_MASK_BYTES
    image = Image.open(io.BytesIO(png))
    assert image.size == (width, height)
    assert width / height == pytest.approx(4 / 3, rel=0.01)
    assert np.isin(np.asarray(image), noise).all()
    assert encode_mask(noise)[0] == png
    stripes = np.repeat(np.arange(2, dtype=np.uint8), 3000)[None].repeat(3000, axis=0)
    png, width, height = encode_mask(stripes)
    assert width * height <= 1 << 22
    small = np.asarray(Image.open(io.BytesIO(png)))
    assert np.array_equal(small, np.repeat([[0, 1]], width // 2, axis=1).repeat(height, axis=0))


def test_a_mask_of_one_long_row_keeps_it() -> None:
    noise = np.random.default_rng(2).integers(0, 256, (1, 400_000)).astype(np.uint8)
    png, width, height = encode_mask(noise)
    assert (height, len(png) <= MAX_MASK_BYTES) == (1, True)
    assert width > 50_000


def test_masks_have_the_colours_of_pascal_voc() -> None:
    image = Image.open(io.BytesIO(encode_mask(np.arange(256, dtype=np.uint8)[None])[0]))
    palette = np.asarray(image.convert("RGB"))[0]
    assert palette[:4].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
    assert palette[255].tolist() == [224, 224, 192]
    assert len({tuple(colour) for colour in palette.tolist()}) == 256
