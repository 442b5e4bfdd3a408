"""The zoo's models that the onnx package ships: split, each answers as it does whole."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from agent.verification import verify_model
from tests.light import light_model

# By name: the numbers of devices. The largest, and those of the most layers, are split once.
MODELS: dict[str, tuple[int, ...]] = {
    "bvlc_alexnet": (3,),
    "densenet121": (4,),
    "inception_v1": (2, 4),
    "inception_v2": (4,),
    "resnet50": (2, 4),
    "shufflenet": (2, 4, 8),
    "squeezenet": (2, 4, 8),
    "vgg19": (2,),
    "zfnet512": (3,),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_light_model_answers_as_it_does_whole(name: str) -> None:
    with TemporaryDirectory(prefix="halomq-light-") as folder:
        path = light_model(name, Path(folder))
        for devices in MODELS[name]:
            verdict = verify_model(path, devices)
            assert verdict.max_rel_error <= 1e-5, devices
            assert verdict.distributed_share > 0.5, devices
