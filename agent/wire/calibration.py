"""Probes: what a device runs to learn how long the layers of a model take, and what it answers.

Probes are one blob a model. They hold small graphs without weights, whose values do not matter for
time: the device makes some up.
"""

from __future__ import annotations

from math import prod
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from agent.errors import WireError
from agent.wire.program import Digest, DType, Extent
from agent.wire.tensors import itemsize, unpack

MAX_PROBES = 4096
MAX_PROBES_BYTES = 64 << 20
# A probe's own tensors and weights; devices are small.
MAX_PROBE_BYTES = 256 << 20

LayerKey = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
Seconds = Annotated[float, Meta(ge=0.0, le=3600.0)]
Amount = Annotated[float, Meta(ge=0.0, le=1e18)]


class ArraySpec(Struct, frozen=True):
    """An array that a probe takes; weights are named."""

    name: str
    dtype: DType
    shape: Annotated[tuple[Extent, ...], Meta(max_length=8)]


class Probe(Struct, frozen=True):
    """A segment of one layer at one size of its tile.

    `borders` are the graph's nodes that a tile alone needs to be what it is in a block; their time
    is not the layer's. `load` is the layer's (`agent.planner.profile.load`).
    """

    key: LayerKey
    graph: bytes
    inputs: tuple[ArraySpec, ...]
    weights: tuple[ArraySpec, ...]
    borders: tuple[str, ...]
    load: Amount


class Probes(Struct, frozen=True):
    """The probes of a model, those that matter most first."""

    probes: Annotated[tuple[Probe, ...], Meta(max_length=MAX_PROBES)]


class Timing(Struct, frozen=True):
    """How long a probe took: all of the run, and the layer's kernels alone."""

    run_s: Seconds
    kernels_s: Seconds


class Timings(Struct, frozen=True):
    """What a device measured of the probes in blob `probes`, in their order; None was not reached.

    `runtime` is what the figures hold for beside the model: processor, onnxruntime's version,
    providers, threads.
    """

    probes: Digest
    runtime: Annotated[str, Meta(max_length=4096)]
    timings: Annotated[tuple[Timing | None, ...], Meta(max_length=MAX_PROBES)]


class Figures(Struct, frozen=True):
    """What is known of a device's speed on a model beyond its capacity.

    What it measured of the model's probes, and how many times as long steps take today.
    """

    timings: Timings | None = None
    factor: Annotated[float, Meta(ge=1e-3, le=1e3)] = 1.0


def encode_probes(probes: Probes) -> bytes:
    """Encode probes as msgpack, the form in which they are a blob."""
    return msgspec.msgpack.encode(probes)


def decode_probes(content: bytes | memoryview) -> Probes:
    """Decode and check the probes of a model.

    Raises:
        WireError: if they are malformed, or one would take more than `MAX_PROBE_BYTES`.
    """
    what = "probes of this version of HaloMQ"
    probes: Probes = unpack(content, Probes, MAX_PROBES_BYTES, what)
    for probe in probes.probes:
        if sum(nbytes(spec) for spec in (*probe.inputs, *probe.weights)) > MAX_PROBE_BYTES:
            raise WireError("a probe is larger than any that a planner makes")
    return probes


def nbytes(spec: ArraySpec) -> int:
    """Return how many bytes an array takes."""
    return prod(spec.shape) * itemsize(spec.dtype)
