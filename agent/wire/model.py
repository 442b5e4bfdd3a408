"""A deployed model as plain data: its graph without weights, and where each weight's bytes are."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from agent.wire.program import BlobRef, DType, Extent

ModelName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]


class WeightEntry(Struct, frozen=True):
    """A large initializer of a model: its bytes are `parts`, consecutive along axis 0."""

    name: str
    dtype: DType
    shape: tuple[Extent, ...]
    parts: tuple[BlobRef, ...]


class ModelPackage(Struct, frozen=True):
    """All of a model that is shipped: every reference is a content-addressed blob.

    `graph` is an ONNX graph whose large initializers are graph inputs named as in `weights`;
    `manifest` is the JSON of `agent.wire.manifest.Manifest`.
    """

    name: ModelName
    graph: BlobRef
    weights: tuple[WeightEntry, ...]
    manifest: BlobRef

    def blobs(self) -> dict[str, int]:
        """Return digest to size in bytes of every blob of the model."""
        refs = [self.graph, self.manifest, *(p for entry in self.weights for p in entry.parts)]
        return {ref.digest: ref.nbytes for ref in refs}
