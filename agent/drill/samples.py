"""What a drill sends, and what a single device makes of it where the model is at hand."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from agent.adapters.media import decode_input
from agent.adapters.runtime import RuntimeOptions, WholeModel
from agent.bench import sample_request
from agent.verification import seeded_input

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from agent.packaging import PackagedModel

# More than one, so that tensors of two requests that got mixed up make a wrong answer.
COUNT = 4
PICTURE = (224, 224, 3)


@dataclass(frozen=True, slots=True)
class Sample:
    """A request's payload; `outputs` is what a single device gives, where that is known."""

    payload: bytes
    outputs: dict[str, NDArray[Any]] | None = None


def random_pictures() -> list[Sample]:
    """Return pictures of random pixels, for a model of which nothing is known."""
    samples = []
    for seed in range(COUNT):
        buffer = io.BytesIO()
        np.save(buffer, seeded_input(PICTURE, "uint8", seed), allow_pickle=False)
        samples.append(Sample(buffer.getvalue()))
    return samples


def samples_of(path: Path, packaged: PackagedModel, payloads: Sequence[bytes]) -> list[Sample]:
    """Return `payloads` (or random ones) with what the model at `path` makes of each.

    Raises:
        InputError: if a payload does not fit the model.
        ModelError: if onnxruntime cannot run the whole model here.
    """
    graph, manifest = packaged.graph, packaged.manifest
    chosen = payloads or [sample_request(graph, manifest, seed) for seed in range(COUNT)]
    whole = WholeModel(path, RuntimeOptions(threads=1))
    spec = graph.tensors[graph.input]
    samples = []
    for payload in chosen:
        image = decode_input(payload, manifest, spec.shape, spec.dtype, None)
        outputs = dict(zip(graph.outputs, whole.run([image.whole()]), strict=True))
        samples.append(Sample(payload, outputs))
    return samples
