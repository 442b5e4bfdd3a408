"""Models of 8 bits: integers do not round, so every byte stays the same."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

from agent.planner import Device
from models.zoo.converted import quantized
from models.zoo.deeplab import deeplab
from models.zoo.densenet import densenet121
from models.zoo.resnet import resnet50
from models.zoo.squeezenet import squeezenet
from models.zoo.unet import unet_resize
from tests.planner.oracle import compare

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agent.planner.plan import Form
    from models.zoo import Make

_CONVERSIONS: dict[str, tuple[Make, Callable[[Path, Path], Path]]] = {
    "QDQ": (resnet50, quantized),
    "QDQ by filter": (squeezenet, partial(quantized, per_channel=True)),
    # Its pools of four pixels meet halves.
    "signed QDQ": (densenet121, partial(quantized, activations="s8")),
    # Its skips are read twice, so onnxruntime computes some convolutions of small maps on floats.
    "signed QDQ by filter": (unet_resize, partial(quantized, activations="s8", per_channel=True)),
    # It interpolates, which meets them as well.
    "QDQ with Resize": (deeplab, quantized),
    "QOperator": (squeezenet, partial(quantized, format="qoperator")),
}


@pytest.fixture(scope="module", params=_CONVERSIONS)
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    make, convert = _CONVERSIONS[request.param]
    folder = tmp_path_factory.mktemp("quantized")
    plain = folder / "plain.onnx"
    make(small=True).save(plain)
    return convert(plain, folder / "model.onnx")


@pytest.mark.parametrize(("count", "form"), [(2, "rows"), (3, "columns"), (4, "grid"), (8, "any")])
def test_every_byte_is_that_of_one_device(count: int, form: Form, path: Path) -> None:
    fleet = [
        Device(f"d{n}", 1e7, 1e7, 1e9, link_latency_s=1e-5, step_overhead_s=1e-5)
        for n in range(count)
    ]
    _, identical, plan = compare(path, fleet, form=form)
    assert identical
    assert plan.distributed_share > 0.5
