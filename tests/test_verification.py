"""Whole against split through the real worker cores: what `halomq verify` does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from agent.adapters.runtime import RuntimeOptions, run_whole
from agent.packaging import package_model
from agent.planner import Device, compile_plan, import_model, read_graph
from agent.planner.layout import Shape
from agent.verification import (
    Verification,
    equal,
    relative_error,
    run_plan,
    seeded_input,
    verify_model,
)
from models.vgg16 import build
from tests.planner.oracle import Builder, devices

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def thin_vgg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("vgg"), size=64, width=8, classes=50)


@pytest.mark.parametrize("devices", range(1, 9))
def test_vgg_is_identical_on_any_number_of_devices(thin_vgg: Path, devices: int) -> None:
    verdict = verify_model(thin_vgg, devices)
    assert verdict.identical
    assert verdict.max_rel_error == 0.0
    assert (verdict.distributed_share > 0.9) == (devices > 1)


def test_devices_that_sit_out_some_blocks_take_part_in_others(thin_vgg: Path) -> None:
    imported = import_model(thin_vgg)
    graph = read_graph(imported.graph, imported.weights)
    layers = 17
    members = [Device(f"d{number}", 1e9) for number in range(3)]
    cuts, counts = list(range(2, layers, 3)), [3, 1, 2, 3, 1, 3]
    layouts = [Shape(count, 1) for count in counts]
    plan = compile_plan(graph, members, model_name="vgg", cuts=cuts, layouts=layouts)
    assert [len(block.devices) for block in plan.blocks] == counts
    image = seeded_input((1, 3, 64, 64), "float32", 1)
    options = RuntimeOptions()
    split = run_plan(
        plan, {ref.digest: content for ref, content in imported.blobs()}, image, options
    )
    assert equal(split["prob"], run_whole(thin_vgg, [image], options)[0])


def test_the_error_is_relative_to_the_largest_output() -> None:
    reference = np.array([0.5, -4.0], np.float32)
    assert relative_error(reference, np.array([0.5, -4.0], np.float32)) == 0.0
    assert relative_error(reference, np.array([0.7, -4.0], np.float32)) == pytest.approx(0.05)
    assert relative_error(reference, np.zeros(3, np.float32)) == float("inf")
    assert relative_error(np.array([np.nan, 1.0]), np.array([0.0, 1.0])) != 0.0


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8", "int8", "bool"])
def test_inputs_are_the_same_for_the_same_seed(dtype: str) -> None:
    first = seeded_input((2, 5), dtype, 3)
    assert first.dtype == np.dtype(dtype)
    assert equal(first, seeded_input((2, 5), dtype, 3))


def test_exact_splits_without_partial_sums(tmp_path: Path) -> None:
    b = Builder((1, 8, 24, 24))
    x = b.conv("x", 16, pads=[1] * 4)
    gate = b.add("Sigmoid", b.conv(b.add("GlobalAveragePool", x), 16, 1))
    path = b.save(tmp_path / "m.onnx", b.conv(b.add("Mul", x, gate), 16, pads=[1] * 4))
    labels = {}
    for exact in (False, True):
        graph = package_model(path, exact=exact).graph
        plan = compile_plan(graph, devices(1, 1), model_name="m", layouts=2, exact=exact)
        labels[exact] = " ".join(label for block in plan.blocks for label in block.layers)
    assert "step of GlobalAveragePool" in labels[False]
    assert "step of" not in labels[True]
    assert Verification(path, exact=True).verify(4).identical
