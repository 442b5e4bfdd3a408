"""Layers: nodes grouped with what onnxruntime fuses behind them, in the order that is cut.

A cut inside such a group would make onnxruntime compute other kernels than in the whole model, and
would exchange a tensor that otherwise never reaches memory. So cuts lie between layers only.
"""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

from agent.planner.operators.elementwise import ELEMENTWISE
from agent.planner.receptive_field import Field

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.planner.graph import Graph, Node

_VIEWS = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Dropout"})
# What is quantized is cut between QuantizeLinear and DequantizeLinear only: with both at its side
# an operator is computed on integers, as it is in the whole model.
_BEFORE = _VIEWS | {"DequantizeLinear"}
_KERNELS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_SUMS = frozenset({"Add", "Sum"})
_SCALES = frozenset({"Add", "Mul", "Sub", "Div"})
_ACTIVATIONS = frozenset(
    {"Relu", "LeakyRelu", "Clip", "Sigmoid", "Tanh", "Elu", "PRelu", "HardSigmoid", "HardSwish"}
)
_PREPARATION = _ACTIVATIONS | {"BatchNormalization"}


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """Consecutive nodes between which no cut is made.

    `fused` tells for each node whether it costs nothing of its own: behind a kernel, or
    quantization at an operator's side.
    """

    fields: tuple[Field, ...]

    @property
    def fused(self) -> tuple[bool, ...]:
        """For each node, whether it is fused with another one."""
        found, fused = False, []
        for field in self.fields:
            quantization = field.node.op in {"QuantizeLinear", "DequantizeLinear"}
            fused.append(found or (quantization and len(self.fields) > 1))
            found = found or not field.operator.memory_bound
        return tuple(fused)

    @property
    def label(self) -> str:
        """The nodes' types and the first one's name, for people."""
        first = self.fields[0].node
        if first.origin:
            return first.label
        rest = "".join(f"+{field.node.op}" for field in self.fields[1:])
        return f"{first.op}{rest} '{first.proto.name or first.outputs[0]}'"


def layers_of(graph: Graph) -> tuple[Layer, ...]:
    """Group the graph's nodes into layers, those that can be distributed as early as possible."""
    leader = _groups(graph)
    members: dict[int, list[Node]] = {}
    for node in graph.nodes:
        members.setdefault(leader[node.index], []).append(node)
    fields = {node.index: Field(node, graph) for node in graph.nodes}
    order = _order(graph, leader, {m for m, n in members.items() if _late(n, fields)})
    return tuple(Layer(tuple(fields[node.index] for node in members[m])) for m in order)


def live_tensors(graph: Graph, layers: Sequence[Layer]) -> list[tuple[str, ...]]:
    """Return, for each cut 0..len(layers), the activations that are alive across it."""
    last: dict[str, int] = dict.fromkeys(graph.outputs, len(layers) + 1)
    for number, layer in enumerate(layers):
        for field in layer.fields:
            for _, name in field.activations:
                last[name] = max(last.get(name, 0), number)
    alive = {graph.input: last.get(graph.input, -1)}
    cuts: list[tuple[str, ...]] = [(graph.input,)]
    for number, layer in enumerate(layers):
        for field in layer.fields:
            alive |= {name: last[name] for name in field.node.outputs if name in last}
        alive = {name: end for name, end in alive.items() if end > number}
        cuts.append(tuple(alive))
    return cuts


def _groups(graph: Graph) -> list[int]:
    """Return each node's group, named by the index of one of its nodes."""
    leader = list(range(len(graph.nodes)))

    def join(one: int, other: int) -> None:
        old, new = leader[one], leader[other]
        leader[:] = [new if group == old else group for group in leader]

    for node in graph.nodes:
        producer = _fuses_behind(node, graph)
        if producer is not None:
            join(node.index, producer.index)
        for other in _converging(node, graph):
            join(other.index, node.index)
    for node in reversed(graph.nodes):
        reader = _only_reader(node, graph)
        if reader is None or leader[node.index] == leader[reader.index]:
            continue
        view = node.op in _BEFORE and leader[node.index] == node.index
        # What is only normalized and activated for a kernel is cheap to do again beside it.
        prepared = reader.op in _KERNELS and _is_preparation(leader[node.index], leader, graph)
        if view or prepared:
            join(node.index, reader.index)
    return leader


def _is_preparation(group: int, leader: Sequence[int], graph: Graph) -> bool:
    """Tell whether a group is nothing but normalization and activation."""
    return all(node.op in _PREPARATION for node in graph.nodes if leader[node.index] == group)


def _converging(node: Node, graph: Graph) -> list[Node]:
    """Return what computes `node` from a single tensor, and the kernel that gives that one.

    SiLU, GELU and the like are such groups of elementwise nodes, which onnxruntime fuses.
    """
    inside: set[int] = {node.index}
    entries = _operands(node, graph)
    while len(entries) > 1:
        name = max(entries, key=lambda entry: _made_at(entry, graph))
        producer = graph.producers.get(name)
        if producer is None or producer.op not in ELEMENTWISE or not _read_in(name, inside, graph):
            return []
        inside.add(producer.index)
        entries = (entries - {name}) | _operands(producer, graph)
    if len(inside) > 1 and entries:
        name = entries.pop()
        producer = graph.producers.get(name)
        kernel = producer is not None and producer.op in _KERNELS | {"BatchNormalization"}
        if producer is not None and kernel and _read_in(name, inside, graph):
            inside.add(producer.index)
    return [graph.nodes[index] for index in sorted(inside - {node.index})]


def _operands(node: Node, graph: Graph) -> set[str]:
    if node.op not in ELEMENTWISE:
        return set()
    return {name for name in node.inputs if name and not graph.is_constant(name)}


def _made_at(name: str, graph: Graph) -> int:
    return graph.producers[name].index if name in graph.producers else -1


def _read_in(name: str, nodes: set[int], graph: Graph) -> bool:
    """Tell whether a tensor is read by some of `nodes` and nothing else."""
    return name not in graph.outputs and {r.index for r in graph.consumers[name]} <= nodes


def _fuses_behind(node: Node, graph: Graph) -> Node | None:
    """Return the producer that `node` is fused with.

    Of several, a sum is fused into the one that it names first.
    """
    found = None
    for name in node.inputs:
        producer = graph.producers.get(name)
        if producer is None or _only_reader(producer, graph) is not node:
            continue
        if _pair(producer, node, graph):
            if node.op in _SUMS:
                return producer
            if found is None or producer.index > found.index:
                found = producer
    return found


def _pair(producer: Node, node: Node, graph: Graph) -> bool:
    if node.op == "QuantizeLinear":
        return True
    if node.op in _ACTIVATIONS:
        return producer.op in _KERNELS | _SCALES | _SUMS | {"BatchNormalization"}
    if node.op == "BatchNormalization":
        return producer.op in _KERNELS
    if node.op in _SUMS and producer.op in {"Conv", "BatchNormalization"}:
        return True
    others = [name for name in node.inputs if name not in producer.outputs]
    return (
        node.op in _SCALES
        and producer.op in _KERNELS
        and all(graph.is_constant(name) for name in others)
    )


def _only_reader(node: Node, graph: Graph) -> Node | None:
    """Return the one node that reads the node's one output, if that is all its use."""
    outputs = [name for name in node.outputs if name in graph.consumers or name in graph.outputs]
    if len(outputs) != 1 or outputs[0] in graph.outputs:
        return None
    readers = graph.consumers[outputs[0]]
    return readers[0] if len(readers) == 1 else None


def _late(nodes: Sequence[Node], fields: dict[int, Field]) -> bool:
    """Tell whether one of the nodes cannot be computed by tiles at all."""
    return any(
        len(fields[node.index].operator.fixed) == len(fields[node.index].shape)
        and node.op not in _VIEWS
        for node in nodes
    )


def _order(graph: Graph, leader: list[int], late: set[int]) -> list[int]:
    """Order the groups topologically; of those that could be next, distributable ones first."""
    after: dict[int, set[int]] = {group: set() for group in leader}
    for node in graph.nodes:
        for name in filter(None, node.outputs):
            for reader in graph.consumers.get(name, ()):
                if leader[reader.index] != leader[node.index]:
                    after[leader[node.index]].add(leader[reader.index])
    waits = dict.fromkeys(after, 0)
    for following in after.values():
        for group in following:
            waits[group] += 1
    ready = [(group in late, group) for group, count in waits.items() if count == 0]
    heapify(ready)
    order: list[int] = []
    while ready:
        _, done = heappop(ready)
        order.append(done)
        for group in sorted(after[done]):
            waits[group] -= 1
            if waits[group] == 0:
                heappush(ready, (group in late, group))
    return order
