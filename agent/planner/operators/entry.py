"""What an entry of the table of operators says: receptive fields, cost, and how a tile is written.

- For each axis of each input an `AxisMap`: the output range [a, b) of one axis needs the input
  range [(a * stride + low) // divisor, ((b - 1) * stride + high) // divisor + 1), clipped to the
  tensor. With stride s, dilation d, kernel k and leading padding p this is the receptive-field
  equation of arXiv 2207.11293 (low = -p, high = d * (k - 1) - p); a divisor is an operator that
  enlarges; "same" is stride 1, and "the whole axis" is stride 0. So a region is propagated by two
  products, a division and a clip, whatever the operator.
- The output axes which can only be computed whole (`fixed`), and why.
- Its arithmetic per output element, and whether moving bytes limits it rather than arithmetic.
- A `TileRule`, which writes the node for a tile; most nodes are written as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np

    from agent.geometry import Region
    from agent.planner.graph import Graph, Node
    from agent.planner.operators.rounding import Keeps


UNEVEN = "rounds otherwise in tiles"


class AxisMap(NamedTuple):
    """Output range [a, b) of `axis` needs a range of input; see the module's text."""

    axis: int
    stride: int
    low: int
    high: int
    divisor: int = 1


Maps = tuple[AxisMap, ...]


class Writer(Protocol):
    """What writes nodes into a segment."""

    @property
    def opset(self) -> int:
        """Version of ONNX's operator set."""
        ...

    def constant(self, array: np.ndarray[Any, Any]) -> str:
        """Add a constant and return its name."""
        ...

    def node(self, op: str, inputs: Sequence[str], output: str = "", **attributes: Any) -> str:
        """Add a node and return the name of its output."""
        ...

    def copy(self, node: Node, inputs: Sequence[str], **changed: Any) -> None:
        """Add a node as it is, but for its inputs and the attributes in `changed`.

        An attribute that is changed to None is removed.
        """
        ...


class Tile(NamedTuple):
    """A node to be written for a tile.

    `inputs` are the segment's names for the node's inputs, of which each holds exactly `regions`
    ("" and None where absent); `output` is the region of the first output that is wanted.
    """

    node: Node
    graph: Graph
    operator: Operator
    inputs: tuple[str, ...]
    regions: tuple[Region | None, ...]
    output: Region

    def region(self, index: int = 0) -> Region:
        """Return what input `index` holds, which must be there."""
        found = self.regions[index]
        assert found is not None  # noqa: S101
        return found


TileRule = "Callable[[Tile, Writer], Region]"
"""Writes a tile's nodes; returns the region that its output then holds, `output` or more."""


def as_it_is(tile: Tile, writer: Writer) -> Region:
    """Write a node whose attributes hold for any tile."""
    writer.copy(tile.node, tile.inputs)
    return tile.output


@dataclass(frozen=True, slots=True)
class Operator:
    """One node's entry, for its shapes; `maps` has one item for each input, None where absent.

    `flops` are for each output element. A node is `free` if it costs nothing where it stands:
    views, and what onnxruntime fuses away. `own` marks a partial result: a tile of the output is
    made from the same device's tile of the input, whatever the maps say of the whole. `keeps` tells
    from the extents of tiles, and of what they read of the first input, which tiles are rounded as
    the whole is, so that others are computed whole; None where all may be computed (`rounding`).
    """

    maps: tuple[Maps | None, ...]
    fixed: tuple[int, ...] = ()
    reason: str = ""
    flops: float = 1.0
    memory_bound: bool = True
    free: bool = False
    own: bool = False
    keeps: Keeps | None = None
    write: Callable[[Tile, Writer], Region] = as_it_is


def same(axis: int) -> AxisMap:
    """Map an axis to itself."""
    return AxisMap(axis, 1, 0, 0)


def whole(extent: int) -> AxisMap:
    """Need all of an axis, whatever is computed."""
    return AxisMap(0, 0, 0, extent - 1)


def wholly(shape: Sequence[int]) -> Maps:
    """Need all of an input, whatever is computed."""
    return tuple(whole(extent) for extent in shape)


def parameters(node: Node, graph: Graph, first: int = 1) -> tuple[Maps | None, ...]:
    """Need the inputs from `first` on as they are: shapes, scales and the like."""
    return tuple(wholly(graph.shape(name)) if name else None for name in node.inputs[first:])


def everything(node: Node, graph: Graph, reason: str) -> Operator:
    """Describe a node that needs all of its inputs and gives all of its outputs."""
    axes = tuple(range(len(graph.shape(node.outputs[0]))))
    return Operator(parameters(node, graph, 0), axes, reason)


def broadcast(shape: Sequence[int], output: Sequence[int]) -> Maps:
    """Map an input of `shape` that numpy's rules broadcast to `output`."""
    lead = len(output) - len(shape)
    return tuple(same(lead + axis) if extent > 1 else whole(1) for axis, extent in enumerate(shape))


def whole_on(
    axes: Sequence[int], node: Node, graph: Graph, reason: str = "needs the whole map"
) -> Operator:
    """Describe a node whose first input has the output's shape and is mixed along `axes`."""
    shape = graph.shape(node.outputs[0])
    maps = tuple(whole(n) if axis in axes else same(axis) for axis, n in enumerate(shape))
    return Operator((maps, *parameters(node, graph)), tuple(axes), reason)
