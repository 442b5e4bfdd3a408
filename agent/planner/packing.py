"""What packing of halos is expected to save and to cost, and so which of them are packed.

A region is packed where that is expected to save more time on its way than it takes: its bytes
cross two links, and the broker's own, which the halos of all devices share. What is sent from or to
a device of which nobody knows how fast it packs stays plain.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agent.planner.cost import Device
    from agent.planner.graph import Graph, Node
    from agent.wire.manifest import Halos
    from agent.wire.program import Coding

# What packing or unpacking a piece takes beside its bytes, as bytes: caches are cold then, as they
# are not when a device measures how fast it packs, and it passes from thread to thread.
_PIECE_BYTES = 56 << 10
# The share of its bytes that a packed tensor keeps, measured on the halos of VGG-16, ResNet-50,
# GoogLeNet and a trained model (docs/performance.md): behind a ReLU, behind a pool of one, else.
_SPARSE, _POOLED, _DENSE = 0.48, 0.57, 0.84
_HALVED = 0.52
_RECTIFIERS = frozenset({"Relu", "Clip"})
_POOLS = frozenset({"MaxPool"})
# Zeros that these read are zeros (or one other value) that they write.
_PASSING = frozenset(
    {"Concat", "Flatten", "Identity", "Pad", "QuantizeLinear", "Reshape", "Slice", "Split"}
    | {"Squeeze", "Transpose", "Unsqueeze"}
)


class Packing:
    """How regions of a model's tensors travel between `devices` (by rank).

    `broker_bytes_per_s` is the rate of the broker's own link, `halos` what the user allows.
    """

    def __init__(
        self,
        graph: Graph,
        devices: Sequence[Device],
        broker_bytes_per_s: float,
        halos: Halos = "plain",
    ) -> None:
        self._graph, self._devices, self._halos = graph, devices, halos
        self._kept: dict[str, float] = {}
        links = np.array([device.link_bytes_per_s for device in devices])
        slowest = np.minimum(links[:, None], links[None, :])
        self._per_byte = np.maximum(1.0 / slowest, len(devices) / broker_bytes_per_s)
        self._seconds = np.array([packing_s(1.0, device) for device in devices])
        costs = self._seconds[:, None] + self._seconds[None, :]
        saved = (1.0 - _HALVED * _SPARSE) * self._per_byte
        self.possible = halos != "plain" and bool((costs < saved).any())

    def coding(self, tensor: str, nbytes: float, sender: int, reader: int) -> Coding:
        """Return how `nbytes` of a tensor travel best from one device to another."""
        coding = self._best(tensor)
        pays = self.possible and self._pays(tensor, np.float64(nbytes), (sender, reader))
        return coding if pays else "plain"

    def travel(self, tensor: str, nbytes: Any, senders: Any, readers: Any) -> tuple[Any, Any]:
        """Return how many bytes travel, and the seconds that packing and unpacking them takes.

        Args:
            tensor: of which.
            nbytes: what passes between pairs of devices.
            senders: their ranks.
            readers: their ranks.
        """
        pairs = (senders, readers)
        pays = self._pays(tensor, nbytes, pairs)
        packed = nbytes * self.share(tensor, self._best(tensor))
        return np.where(pays, packed, nbytes), np.where(pays, self._work(nbytes, pairs), 0.0)

    def _pays(self, tensor: str, nbytes: Any, pairs: tuple[Any, Any]) -> Any:
        saved = nbytes * ((1.0 - self.share(tensor, self._best(tensor))) * self._per_byte[pairs])
        return saved > self._work(nbytes, pairs)

    def _work(self, nbytes: Any, pairs: tuple[Any, Any]) -> Any:
        senders, readers = pairs
        return (nbytes + _PIECE_BYTES) * (self._seconds[senders] + self._seconds[readers])

    def share(self, tensor: str, coding: Coding) -> float:
        """Return which share of a tensor's bytes is expected to travel."""
        if coding == "plain":
            return 1.0
        return self._packed(tensor) * (_HALVED if coding == "half" else 1.0)

    def _best(self, tensor: str) -> Coding:
        graph = self._graph
        rounded = self._halos == "half" and tensor not in graph.outputs
        return "half" if rounded and graph.tensors[tensor].dtype == "float32" else "packed"

    def _packed(self, tensor: str) -> float:
        if not self._kept:
            self._kept.update(_kept(self._graph))
        return self._kept.get(tensor, _DENSE)


def piece_s(nbytes: float, device: Device) -> float:
    """Return the seconds that a device needs to pack, or unpack, a piece of so many bytes."""
    return packing_s(nbytes + _PIECE_BYTES, device)


def packing_s(nbytes: float, device: Device) -> float:
    """Return the seconds that packing, or unpacking, so many bytes takes beside what a piece does.

    Infinite where nobody knows.
    """
    rate = device.packing_bytes_per_s
    return nbytes / rate if rate > 0.0 else np.inf


def _kept(graph: Graph) -> Mapping[str, float]:
    """Return the share that packing leaves of each tensor."""
    kept: dict[str, float] = {}
    for node in graph.nodes:
        share = _kept_behind(node, graph, kept)
        kept |= dict.fromkeys(filter(None, node.outputs), share)
    return kept


def _kept_behind(node: Node, graph: Graph, kept: Mapping[str, float]) -> float:
    if node.op in _RECTIFIERS:
        return _SPARSE
    read = [kept.get(name, _DENSE) for name in node.inputs if not graph.is_constant(name)]
    most = max(read, default=_DENSE)
    if node.op in _POOLS and most < _DENSE:
        return _POOLED
    return most if node.op in _PASSING else _DENSE
