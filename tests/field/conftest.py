"""Fleets of real processes that the field tests share: starting one takes seconds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import models
from agent.adapters.fleet import ProcessFleet
from models.vgg16 import build
from tests.conftest import need_mosquitto
from tests.field.support import NOMINAL, Field, Reference, field_of

if TYPE_CHECKING:
    from collections.abc import Iterator

MODELS = Path(models.__file__).parent


@pytest.fixture(scope="session")
def vgg(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """A thin VGG-16: enough arithmetic to be worth three devices, and a head with weights."""
    folder = tmp_path_factory.mktemp("vgg")
    return Reference(build(folder, size=224, width=16, classes=10), "vgg16")


@pytest.fixture(scope="session")
def defects() -> Reference:
    """The model of defects: it takes long enough that requests pile up."""
    return Reference(MODELS / "defects.onnx", "defects")


@pytest.fixture(scope="session")
def home(
    tmp_path_factory: pytest.TempPathFactory, vgg: Reference, defects: Reference
) -> Iterator[Field]:
    """Three agents that serve both models and that no test harms."""
    need_mosquitto()
    folder = tmp_path_factory.mktemp("home")
    with ProcessFleet(folder, 3, settings=NOMINAL) as fleet:
        field = field_of(fleet, folder)
        field.wait_online()
        for model in (vgg, defects):
            field.deploy(model)
            field.wait_for_plan(model.name, fleet.names)
        yield field
        fleet.check()
