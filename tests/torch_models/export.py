"""Write the kept ONNX files: `python -m tests.torch_models.export` (needs `halomq[train]`).

Every network is written by both of PyTorch's exporters: the older one, which traces
(`dynamo=False`), at several opsets, and the newer one (`dynamo=True`) at its default and its newest
opset. Weights are seeded, so a run with the same versions (torch 2.13.0 and onnxscript 0.7.2 wrote
what is kept) writes the same files. What the newer one notes about its source (stack traces with
this machine's paths) is left out, all else is as exported.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import torch

from tests.torch_models.networks import NETWORKS
from tests.torch_models.parts import seed_weights

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.torch_models.networks import Network

SEED = 2207
DEFAULT = 20
NEWEST = 23
HERE = Path(__file__).resolve().parent


def main() -> None:
    """Write the files and print how many bytes they have."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, default=HERE / "onnx", help="folder for the files")
    parser.add_argument("networks", nargs="*", default=list(NETWORKS), help="all by default")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    total = 0
    for name in arguments.networks:
        for path in export(name, NETWORKS[name], arguments.out):
            size = path.stat().st_size
            total += size
            print(f"{size:8d} {path.name}")
    print(f"{total:8d} bytes in all")


def export(name: str, network: Network, folder: Path) -> Iterator[Path]:
    """Write one network with both exporters at all of its opsets; yield the files."""
    model = seed_weights(network.build(), SEED).eval()
    image = torch.randn((1, *network.shape), generator=torch.Generator().manual_seed(SEED))
    if network.half:
        model, image = model.half(), image.half()
    for opset in network.opsets:
        options: dict[str, Any] = {"dynamo": False}
        if network.raw:
            options |= {"do_constant_folding": False, "keep_initializers_as_inputs": True}
            options["training"] = torch.onnx.TrainingMode.PRESERVE
        yield _write(model, image, folder / f"{name}-trace-{opset}.onnx", opset, options)
    for opset in (DEFAULT, *([NEWEST] if network.newest else [])):
        options = {"dynamo": True, "external_data": False, "optimize": not network.raw}
        yield _write(model, image, folder / f"{name}-dynamo-{opset}.onnx", opset, options)


def _write(
    model: torch.nn.Module, image: torch.Tensor, path: Path, opset: int, options: dict[str, Any]
) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the older exporter is deprecated, and traces constants
        torch.onnx.export(model, (image,), path, opset_version=opset, verbose=False, **options)
    exported = onnx.load(path)
    _drop_notes(exported)
    onnx.save(exported, path)
    return path


def _drop_notes(model: onnx.ModelProto) -> None:
    """Remove what the newer exporter notes of where and from what code it exported."""
    graph = model.graph
    noted = [model, graph, *graph.node, *graph.input, *graph.output]
    noted += [*graph.value_info, *graph.initializer]
    for item in noted:
        del item.metadata_props[:]
    for node in graph.node:
        node.ClearField("doc_string")


if __name__ == "__main__":
    main()
