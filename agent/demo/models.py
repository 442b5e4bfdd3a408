"""The models and pictures that the demo knows by name."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from agent.errors import ConfigError


@dataclass(frozen=True, slots=True)
class DemoModel:
    """A model file, and a picture to send to it."""

    model: Path
    picture: Path


def cache_folder() -> Path:
    """Return where large models that are built here are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "halomq"


def find_model(name: str, picture: Path | None) -> DemoModel:
    """Return the model `name`: "vgg16" (built here once), "defects", or an ONNX file's path.

    Raises:
        ConfigError: if there is no such model or picture.
    """
    import models  # noqa: PLC0415 - the repository's models, not needed by agents

    folder = Path(models.__file__).parent
    if name == "vgg16":
        from models.vgg16 import build  # noqa: PLC0415 - needs onnx

        found = DemoModel(build(cache_folder() / "vgg16"), picture or folder / "sample.jpg")
    elif name == "defects":
        found = DemoModel(folder / "defects.onnx", picture or folder / "defects-sample.jpg")
    else:
        found = DemoModel(Path(name), picture or folder / "sample.jpg")
    for file in (found.model, found.picture):
        if not file.is_file():
            raise ConfigError(f"{file}: no such file; --model takes vgg16, defects or an ONNX file")
    return found
