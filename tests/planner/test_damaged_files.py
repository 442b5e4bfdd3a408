"""Files that are damaged or not all there are refused, whatever is wrong with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from agent.errors import ModelError
from agent.planner import import_model
from tests.planner.oracle import Builder, vgg
from tests.planner.small import conv, function, kernel, node

if TYPE_CHECKING:
    from pathlib import Path


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cat.onnx"
    with pytest.raises(ModelError, match="cannot read"):
        import_model(path)
    for content in (b"\xff\xd8\xff\xe0 a picture", b""):
        path.write_bytes(content)
        with pytest.raises(ModelError, match="not an ONNX model"):
            import_model(path)


# External data -----------------------------------------------------------------------------------


def external(folder: Path, **entries: str | None) -> Path:
    """Write a Conv whose kernel is in `w.bin`, with some entries of its reference changed."""
    folder.mkdir(exist_ok=True)
    made = kernel()
    (folder / "w.bin").write_bytes(made.raw_data)
    made.ClearField("raw_data")
    made.data_location = TensorProto.EXTERNAL
    values = {"location": "w.bin", "offset": "0", "length": "7680"} | entries
    for key, value in values.items():
        if value is not None:
            made.external_data.add(key=key, value=value)
    path = folder / "model.onnx"
    path.write_bytes(conv(made).SerializeToString())
    return path


def test_external_data_may_be_in_the_folder_or_below(tmp_path: Path) -> None:
    assert import_model(external(tmp_path)).weights
    assert import_model(external(tmp_path, offset=None, length=None)).weights
    (tmp_path / "below").mkdir()
    (tmp_path / "w.bin").rename(tmp_path / "below" / "w.bin")
    (tmp_path / "w.bin").symlink_to("below/w.bin")
    path = tmp_path / "model.onnx"
    assert import_model(path).weights


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"location": "../secret"}, "'w' keeps its data outside the model's folder.*copy"),
        ({"location": "/etc/passwd"}, "outside the model's folder"),
        ({"location": ""}, "outside the model's folder"),
        ({"location": None}, "outside the model's folder"),
        ({"location": "link"}, "outside the model's folder .'link'"),
        ({"location": "links/secret"}, "outside the model's folder"),
        ({"location": "circle"}, "no file|not there"),
        ({"location": "a" * 5000}, "no file"),
        ({"location": "gone.bin"}, "gone.bin, which is not there; copy it along"),
        ({"location": "."}, "is not there"),
        ({"offset": "-4"}, "'w' is damaged: the offset of its data is '-4'"),
        ({"offset": "1e3"}, "the offset of its data is '1e3'"),
        ({"offset": "9" * 5000}, "the offset of its data is '999"),
        ({"offset": "1"}, "w.bin is cut short: it does not hold all of initializer 'w'"),
        ({"offset": str(1 << 60)}, "cut short"),
        ({"length": "many"}, "the length of its data is 'many'"),
        ({"length": "100"}, "its shape needs 7680 bytes, its length says 100"),
    ],
)
def test_external_data_that_is_wrong_is_refused(
    entries: dict[str, str | None], message: str, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    (tmp_path / "secret").write_bytes(bytes(8000))
    path = external(folder, **entries)
    (folder / "link").symlink_to("../secret")
    (folder / "links").symlink_to("..")
    (folder / "circle").symlink_to("circle")
    with pytest.raises(ModelError, match=message):
        import_model(path)


def test_external_data_must_be_complete(tmp_path: Path) -> None:
    path = vgg(tmp_path / "vgg.onnx")
    data = tmp_path / "vgg.onnx.data"
    data.write_bytes(data.read_bytes()[:-1000])
    with pytest.raises(ModelError, match="cut short"):
        import_model(path)


def test_more_weights_than_any_device_holds_are_refused(tmp_path: Path) -> None:
    path = external(tmp_path, length=None)
    made = onnx.load(str(path), load_external_data=False)
    made.graph.initializer[0].dims[0] = 100_000_000
    path.write_bytes(made.SerializeToString())
    with (tmp_path / "w.bin").open("wb") as file:
        file.truncate(100_000_000 * 192)
    with pytest.raises(ModelError, match=r"17\.9 GiB of weights.*at most 16 GiB"):
        import_model(path)


# Damage ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of operators that are checked in most ways, and of a function."""
    b = Builder((1, 3, 16, 16))
    x = b.add("Relu", b.normalize(b.conv("x", 4, pads=[1] * 4)))
    x = b.add("Pad", x, b.constant(np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)))
    x = b.add("Dropout", b.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]))
    x = b.add("Reshape", x, b.constant(np.array([1, -1], np.int64)))
    x = b.add("Gemm", x, b.weight(b.shape(x)[1], 10), b.weight(10))
    path = b.save(tmp_path_factory.mktemp("damage") / "whole.onnx", b.add("Softmax", x, axis=1))
    made = onnx.load(str(path))
    made.functions.append(function("F", "Relu"))
    made.opset_import.append(helper.make_opsetid("acme", 1))
    made.graph.node[-1].input[0] = "f"
    made.graph.node.insert(len(made.graph.node) - 1, node("F", x, to="f", domain="acme"))
    path.write_bytes(made.SerializeToString())
    assert import_model(path).weights
    return path


def test_a_model_that_is_cut_short_is_refused(whole: Path, tmp_path: Path) -> None:
    content = whole.read_bytes()
    path = tmp_path / "cut.onnx"
    for length in range(0, len(content), 97):
        path.write_bytes(content[:length])
        with pytest.raises(ModelError):
            import_model(path)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_damaged_model_is_imported_or_refused(
    data: st.DataObject, whole: Path, tmp_path: Path
) -> None:
    content = bytearray(whole.read_bytes())
    # Not the values of the largest weight: any others would do as well.
    start = content.index(b"w7") if b"w7" in content else 0
    places = st.one_of(st.integers(0, 1500), st.integers(start, len(content) - 1))
    for at in data.draw(st.lists(places, min_size=1, max_size=3)):
        content[at] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.onnx"
    path.write_bytes(content)
    try:
        import_model(path)
    except ModelError as error:
        assert "\n" not in str(error)  # noqa: PT017
