"""What a device needs for the layers of a model, as measured there: see docs/calibration.md.

Layers that are computed alike (operators, attributes, shapes, layout) have one key, within a model
and between models.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np

from agent.planner.lowering import LOWERED

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from agent.planner.graph import Graph
    from agent.planner.layers import Layer
    from agent.planner.receptive_field import Field, Reading

_KEY_BYTES = 16


@dataclass(frozen=True, slots=True)
class LayerTime:
    """A layer's time between other layers: `fixed_s` and `s_per_unit` for each unit of `load`."""

    fixed_s: float
    s_per_unit: float


def load(readings: Iterable[Reading]) -> Any:
    """Return how much is computed of a layer, for each tile: its arithmetic.

    Operators that only move elements count one for each, so that the load of a layer is a measure
    of the tile's size whatever its operators are.
    """
    total: Any = 0.0
    for field, computed, _ in readings:
        if not field.operator.free:
            total = total + max(1.0, field.operator.flops) * computed.sizes().astype(np.float64)
    return total


def layer_key(layer: Layer, graph: Graph, blocked: Collection[str]) -> str | None:
    """Return the key of a layer, or None for one that depends on the plan or costs nothing.

    Args:
        layer: one of the graph's layers.
        graph: the model.
        blocked: the tensors that are in onnxruntime's blocked layout in the whole model.
    """
    if any(field.node.domain == LOWERED for field in layer.fields):
        return None
    if all(field.operator.free for field in layer.fields):
        return None
    inside = {name: n for n, f in enumerate(layer.fields) for name in f.node.outputs if name}
    described = [_description(field, graph, inside, blocked) for field in layer.fields]
    return blake2b(repr(described).encode(), digest_size=_KEY_BYTES).hexdigest()


def _description(
    field: Field, graph: Graph, inside: dict[str, int], blocked: Collection[str]
) -> tuple[Any, ...]:
    """Describe what decides how long a node takes; what it is called and its values do not."""
    node, operator = field.node, field.operator
    inputs = [_input(name, field, graph, inside, blocked) for name in node.inputs]
    outputs = [(graph.shape(n), graph.tensors[n].dtype) if n else None for n in node.outputs]
    attributes = [(k, str(v)) for k, v in sorted(node.attributes.items())]
    return (node.domain, node.op, attributes, operator.maps, operator.flops, inputs, outputs)


def _input(
    name: str, field: Field, graph: Graph, inside: dict[str, int], blocked: Collection[str]
) -> Any:
    if not name:
        return None
    if name in inside:
        return inside[name]
    if name in field.expressions:
        return _description(field.expressions[name], graph, inside, blocked)
    constant = graph.is_constant(name)
    return (graph.shape(name), graph.itemsize(name), constant, name in blocked)
