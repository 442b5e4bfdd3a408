"""From MODEL.onnx and its manifest to what is deployed: a package and its blobs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from agent.errors import ConfigError
from agent.planner import Graph, ImportedModel, import_model, read_graph
from agent.wire.manifest import (
    Manifest,
    check_fits,
    default_manifest,
    encode_manifest,
    load_manifest,
    manifest_path,
)
from agent.wire.model import ModelPackage
from agent.wire.program import blob_ref
from agent.wire.topics import NAME

if TYPE_CHECKING:
    from pathlib import Path

    from agent.wire.manifest import Halos, Objective, Strategy


@dataclass(frozen=True)
class PackagedModel:
    """A model file as it is deployed; `blobs` map digests to content, mapped from the file."""

    package: ModelPackage
    blobs: dict[str, bytes | memoryview]
    imported: ImportedModel
    graph: Graph
    manifest: Manifest


def package_model(
    path: Path,
    name: str | None = None,
    *,
    exact: bool = False,
    objective: Objective | None = None,
    strategy: Strategy | None = None,
    halos: Halos | None = None,
) -> PackagedModel:
    """Read a model and the manifest beside it, and check that they fit each other.

    Args:
        path: the ONNX file.
        name: the name to serve it under, by default the file's.
        exact: whether every bit is to be one device's, whatever the manifest says.
        objective: what its plan is to be the best for; None for what the manifest says.
        strategy: how it is to be split; None for what the manifest says.
        halos: how halos may travel; None for what the manifest says.

    Raises:
        ModelError: if the model cannot be served.
        ConfigError: if the manifest or `name` is wrong.
    """
    imported = import_model(path)
    title = name or imported.name
    if not NAME.fullmatch(title):
        raise ConfigError(f"model name {title!r}: use letters, digits, dot, dash and underscore")
    graph = read_graph(imported.graph, imported.weights)
    manifest = _manifest(path, graph)
    if exact:
        manifest = msgspec.structs.replace(manifest, exact=True)
    if objective is not None:
        manifest = msgspec.structs.replace(manifest, objective=objective)
    if strategy is not None:
        manifest = msgspec.structs.replace(manifest, strategy=strategy)
    if halos is not None:
        manifest = msgspec.structs.replace(manifest, halos=halos)
    return _packaged(title, imported, graph, manifest)


def renamed(packaged: PackagedModel, name: str, strategy: Strategy) -> PackagedModel:
    """Return a packaged model under another name and strategy; its weights are the same blobs."""
    manifest = msgspec.structs.replace(packaged.manifest, strategy=strategy)
    return _packaged(name, packaged.imported, packaged.graph, manifest)


def _packaged(
    title: str, imported: ImportedModel, graph: Graph, manifest: Manifest
) -> PackagedModel:
    content = encode_manifest(manifest)
    package = ModelPackage(title, blob_ref(imported.graph), imported.weights, blob_ref(content))
    blobs: dict[str, bytes | memoryview] = {ref.digest: part for ref, part in imported.blobs()}
    blobs[package.manifest.digest] = content
    return PackagedModel(package, blobs, imported, graph, manifest)


def _manifest(path: Path, graph: Graph) -> Manifest:
    shape = graph.shape(graph.input)
    outputs = [graph.shape(name) for name in graph.outputs]
    file = manifest_path(path)
    if not file.exists():
        return default_manifest(shape, outputs)
    manifest = load_manifest(file)
    dtypes = [graph.tensors[name].dtype for name in graph.outputs]
    try:
        check_fits(manifest, shape, outputs, dtypes)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error
    return manifest
