"""The blocked layout of onnxruntime, into which a segment brings what arrives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.planner.oracle import Builder, compare, devices

if TYPE_CHECKING:
    from pathlib import Path


def test_a_share_of_the_channels_has_no_more_of_them(tmp_path: Path) -> None:
    b = Builder((1, 4, 1, 1))
    path = b.save(tmp_path / "m.onnx", b.add("Add", b.conv("x", 4, 1), b.conv("x", 4, 1)))
    error, _, _ = compare(path, devices(1, 1), cuts=[1], layouts=2)
    assert error <= 1e-6
