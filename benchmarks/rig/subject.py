"""The model that the rig serves, with its picture, and what the whole model answers to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import msgspec

from agent.adapters.media import decode_input
from agent.adapters.runtime import RuntimeOptions, run_whole
from agent.demo.models import DemoModel, cache_folder, find_model
from agent.errors import ConfigError
from agent.packaging import PackagedModel, package_model
from agent.wire.manifest import Manifest, encode_manifest
from agent.wire.program import blob_ref
from benchmarks.coverage import find
from models import zoo

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Subject:
    """A packaged model, and the picture that is sent to it."""

    chosen: DemoModel
    packaged: PackagedModel
    payload: bytes

    @classmethod
    def find(cls, model: str, **wishes: str) -> Self:
        """Return `model`: vgg16, defects, one of the zoo or an ONNX file's path.

        `wishes` are fields of the manifest that decide how the model is planned.

        Raises:
            HaloMQError: if there is no such model, it cannot be served, or a wish cannot be met.
        """
        chosen = find_model(model, None) if model not in zoo.ZOO else _from_zoo(model)
        packaged = _wishing(package_model(chosen.model), wishes)
        return cls(chosen, packaged, chosen.picture.read_bytes())

    @property
    def name(self) -> str:
        """The name under which the model is served."""
        return self.packaged.package.name

    def expected(self) -> dict[str, NDArray[Any]]:
        """Return the whole model's outputs, computed by onnxruntime here and now."""
        graph, manifest = self.packaged.graph, self.packaged.manifest
        spec = graph.tensors[graph.input]
        image = decode_input(self.payload, manifest, spec.shape, spec.dtype, None).whole()
        results = run_whole(self.chosen.model, [image], RuntimeOptions(threads=1))
        return dict(zip(graph.outputs, results, strict=True))


def _from_zoo(name: str) -> DemoModel:
    picture = find_model("vgg16", None).picture
    return DemoModel(find(name, cache_folder() / "zoo", small=False), picture)


def _wishing(packaged: PackagedModel, wishes: dict[str, str]) -> PackagedModel:
    try:
        fields = msgspec.to_builtins(packaged.manifest) | wishes
        manifest = msgspec.convert(fields, Manifest)
    except msgspec.ValidationError as error:
        raise ConfigError(f"--strategy, --objective, --halos: {error}") from error
    content = encode_manifest(manifest)
    package = msgspec.structs.replace(packaged.package, manifest=blob_ref(content))
    blobs = {**packaged.blobs, package.manifest.digest: content}
    return PackagedModel(package, blobs, packaged.imported, packaged.graph, manifest)
