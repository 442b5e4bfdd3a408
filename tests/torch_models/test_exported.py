"""What PyTorch's two exporters write, split over devices, gives the answer of one device.

The files beside this one are made by `python -m tests.torch_models.export`; torch is not needed
here. What an exporter and an opset make of the same network differs: names, shape arithmetic, and
which operators stand for a normalisation, an activation or a resize.
"""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from agent.adapters.runtime import RuntimeOptions, run_whole
from agent.planner import import_model, read_graph
from agent.verification import seeded_input, verify_model

if TYPE_CHECKING:
    from collections.abc import Iterator

FILES = sorted((Path(__file__).resolve().parent / "onnx").glob("*.onnx"))
# For how many devices a file is split; the newer exporter's default opset has every network.
COUNTS = {"dynamo-20": (2, 8), "dynamo-23": (4,)}
COUNTS_ELSEWHERE = (3,)
FLOAT_BOUND = 1e-5
HALF_BOUND = 2e-3
# The part of the arithmetic that several devices do together: else nothing would be compared.
LEAST_SHARED = 0.5
# Weights of fewer bytes stay in the graph: as usual, and so that even these small networks have
# weights that are shipped and mapped.
LARGE_BYTES = (4096, 256)


def splits() -> Iterator[tuple[Path, int, int]]:
    """Yield files and device counts, with usual and with many shipped weights in turns."""
    large = cycle(LARGE_BYTES)
    for path in FILES:
        written_by = path.stem.partition("-")[2]
        for count in COUNTS.get(written_by, COUNTS_ELSEWHERE):
            yield path, count, next(large)


def bound(path: Path) -> float:
    """Return the largest relative error that the precision of a network explains."""
    return HALF_BOUND if "_half-" in path.stem else FLOAT_BOUND


def test_both_exporters_wrote_every_network() -> None:
    written: dict[str, set[str]] = {"trace": set(), "dynamo": set()}
    for path in FILES:
        network, exporter, opset = path.stem.split("-")
        written[exporter].add(network)
        assert int(opset) >= 9
    assert len(written["trace"]) > 25
    assert written["trace"] == written["dynamo"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_exported_network_is_imported_and_its_answer_varies(path: Path) -> None:
    imported = import_model(path)
    graph = read_graph(imported.graph, imported.weights)
    image = seeded_input(graph.shape(graph.input), graph.tensors[graph.input].dtype, 0)
    for name, answer in zip(
        graph.outputs, run_whole(path, [image], RuntimeOptions(threads=1)), strict=True
    ):
        assert answer.shape == graph.shape(name)
        assert np.isfinite(answer).all()
        assert answer.std() > 1e-3 * np.abs(answer).max()


@pytest.mark.parametrize(
    ("path", "devices", "large_bytes"),
    [pytest.param(*case, id=f"{case[0].stem}-on-{case[1]}-from-{case[2]}") for case in splits()],
)
def test_a_split_exported_network_gives_the_same_answer(
    path: Path, devices: int, large_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.planner.model_file.LARGE_BYTES", large_bytes)
    verdict = verify_model(path, devices)
    assert verdict.max_rel_error <= bound(path)
    assert verdict.distributed_share > LEAST_SHARED
