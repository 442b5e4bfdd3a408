"""Where a split model first differs: the operators that are named."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from agent import first_difference
from agent.adapters.runtime import RuntimeOptions
from agent.comparison import equal, relative_error
from agent.first_difference import Locator
from agent.packaging import package_model
from agent.planner import Device, compile_plan
from agent.planner.layers import layers_of
from agent.verification import BOUND, HALF_BOUND, Verification, seeded_input, verify_model
from models.vgg16 import build
from models.zoo import build as build_zoo

if TYPE_CHECKING:
    from pathlib import Path

    from agent.planner.plan import Form
    from agent.wire.manifest import Strategy


@pytest.fixture(scope="module")
def thin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("vgg"), size=64, width=8, classes=50)


def spoil(verification: Verification, weight: str) -> None:
    """Give the devices, and not the whole model, another weight."""
    packaged = verification._packaged
    entry = next(e for e in packaged.package.weights if e.name == weight)
    part = entry.parts[0].digest
    packaged.blobs[part] = (-np.frombuffer(packaged.blobs[part], np.float32)).tobytes()


def weights_of(path: Path) -> list[str]:
    return [entry.name for entry in package_model(path).package.weights]


@pytest.mark.parametrize("layout", ["any", "rows", "columns", "grid"])
@pytest.mark.parametrize("held_bytes", [1, 1 << 30])
def test_the_operator_whose_weights_differ_is_named(
    thin: Path, layout: Form, held_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(first_difference, "_HELD_BYTES", held_bytes)
    for weight in weights_of(thin)[3::4]:
        verification = Verification(thin)
        spoil(verification, weight)
        graph = verification._packaged.graph
        (reader,) = graph.consumers.get(weight, ())
        first = verification.verify(4, layout, locate=True).first_difference
        assert first is not None
        (label,) = (
            layer.label
            for layer in layers_of(graph)
            if reader.index in {made.node.index for made in layer.fields}
        )
        # A pool whose map is too small for the block's layout stays with what follows it.
        assert label == first.operators[-1]
        assert len(first.operators) <= 2
        assert first.max_rel_error > BOUND


@pytest.mark.parametrize("strategy", ["modnn", "deepthings", "halp", "dpfp-paper"])
def test_the_operator_is_named_of_every_strategy(strategy: Strategy, thin: Path) -> None:
    weight = weights_of(thin)[3]
    verification = Verification(thin)
    spoil(verification, weight)
    (reader,) = verification._packaged.graph.consumers[weight]
    first = verification.verify(4, strategy=strategy, locate=True).first_difference
    assert first is not None
    assert any(reader.label.split()[1] in operator for operator in first.operators)
    assert len(first.operators) <= 2


def test_nothing_is_named_where_nothing_differs(thin: Path) -> None:
    verdict = verify_model(thin, 3, locate=True)
    assert verdict.identical
    assert verdict.first_difference is None


def test_a_first_difference_is_looked_for_only_when_asked(thin: Path) -> None:
    verification = Verification(thin)
    spoil(verification, weights_of(thin)[-1])
    verdict = verification.verify(2)
    assert not verdict.identical
    assert verdict.first_difference is None


def test_the_block_of_an_output_is_named_where_no_cut_differs(thin: Path) -> None:
    packaged = package_model(thin)
    devices = [Device(f"d{number}", 1e9) for number in range(2)]
    image = seeded_input((1, 3, 64, 64), "float32", 0)
    plan = compile_plan(packaged.graph, devices, model_name="vgg", cuts=[5, 9])
    locator = Locator(packaged, packaged.graph, image, devices, RuntimeOptions())

    found = locator.locate(plan, lambda **_: pytest.fail("divided"), {"prob": 0.25})
    assert found.operators == plan.blocks[-1].layers
    assert (found.tensor, found.max_rel_error) == ("prob", 0.25)


def test_a_block_of_one_layer_is_not_divided(thin: Path) -> None:
    verification = Verification(thin)
    spoil(verification, weights_of(thin)[-2])
    packaged = verification._packaged
    devices = [Device(f"d{number}", 1e9) for number in range(2)]
    layers = sum(
        len(b.layers) for b in compile_plan(packaged.graph, devices, model_name="m").blocks
    )
    plan = compile_plan(packaged.graph, devices, model_name="m", cuts=range(1, layers), layouts=2)
    image = seeded_input((1, 3, 64, 64), "float32", 0)
    locator = Locator(packaged, packaged.graph, image, devices, RuntimeOptions())
    found = locator.locate(plan, lambda **_: pytest.fail("divided"), {"prob": 1.0})
    assert len(found.operators) == 1


@pytest.mark.parametrize(
    ("name", "bound", "quantized"),
    [
        ("resnet50_fp16", HALF_BOUND, False),
        ("mobilenet_v2_fp16", HALF_BOUND, False),
        ("squeezenet_int8", BOUND, True),
        ("espcn", BOUND, False),
    ],
)
def test_the_bound_is_that_of_the_models_precision(
    name: str,
    bound: float,
    quantized: bool,  # noqa: FBT001
    tmp_path: Path,
) -> None:
    verdict = verify_model(build_zoo(name, tmp_path, small=True), 2)
    assert (verdict.bound, verdict.quantized) == (bound, quantized)
    assert verdict.max_rel_error <= bound


def test_differences_of_what_is_no_number() -> None:
    inf, nan = float("inf"), float("nan")
    values = np.array([1.0, inf, nan])
    assert relative_error(values, values.copy()) == 0.0
    assert relative_error(values, np.array([1.0, -inf, nan])) == inf
    assert relative_error(values, np.array([1.5, inf, nan])) == 0.5
    assert relative_error(np.zeros(2), np.array([0.0, 0.5])) == 0.5
    assert relative_error(np.zeros(2), np.zeros(3)) == inf
    assert not equal(np.zeros(2), np.zeros((2, 1)))
