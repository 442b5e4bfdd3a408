"""Where the answer of a split model first differs from the whole one's: after which operators.

The whole model runs once more with the tensors at the plan's cuts as outputs, and what devices
wrote of them is compared as they write it. Within the first block that differs the plan is made
again with a cut after each of its layers, twice at most. More outputs can change what onnxruntime
fuses; where no tensor at a cut differs though the outputs do, the block that writes them is named.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

from agent.adapters.runtime import Segment
from agent.comparison import equal, largest_difference, relative
from agent.geometry import slices_within, whole
from agent.local import LocalFleet
from agent.planner.layers import layers_of, live_tensors
from agent.planner.layout import Layouts
from agent.planner.reference import with_outputs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from agent.adapters.runtime import RuntimeOptions
    from agent.geometry import Region
    from agent.packaging import PackagedModel
    from agent.planner import Device, Graph, Plan

Replan = Callable[..., "Plan"]
"""Makes a plan with the `cuts` and `layouts` that it is given."""

# Whole tensors that are held at a time, to be compared.
_HELD_BYTES = 256 << 20
_TIMES = 2


@dataclass(frozen=True, slots=True)
class FirstDifference:
    """The operators after which a tensor first differs; error relative to its largest value."""

    operators: tuple[str, ...]
    tensor: str
    max_rel_error: float


class _Found(NamedTuple):
    block: int
    tensor: str
    error: float


@dataclass(slots=True)
class _Comparison:
    """What devices write, compared with whole tensors."""

    expected: dict[str, NDArray[Any]] = field(default_factory=dict)
    differences: dict[str, float] = field(default_factory=dict)

    def observe(self, name: str, region: Region, array: NDArray[Any]) -> None:
        """Compare a region that a device wrote."""
        if name not in self.expected:
            return
        tensor = self.expected[name]
        reference = tensor[slices_within(region, whole(tensor.shape))]
        if not equal(reference, array):
            largest = largest_difference(reference, array)
            self.differences[name] = max(largest, self.differences.get(name, 0.0))


class Locator:
    """Finds first differences of plans of one model on one input.

    Args:
        packaged: the model.
        lowered: its graph as the plans have it.
        image: the input.
        devices: those that the plans are for.
        options: how sessions run.
    """

    def __init__(
        self,
        packaged: PackagedModel,
        lowered: Graph,
        image: NDArray[Any],
        devices: Sequence[Device],
        options: RuntimeOptions,
    ) -> None:
        self._packaged, self._image, self._options = packaged, image, options
        self._devices, self._lowered = devices, lowered

    def locate(self, plan: Plan, replan: Replan, outputs: dict[str, float]) -> FirstDifference:
        """Return where the answer of `plan` first differs.

        Args:
            plan: a plan whose answer differs.
            replan: makes a plan with other cuts and layouts.
            outputs: the outputs that differ, at least one, with their errors.
        """
        found = self._first(plan)
        if found is None:
            name, error = next(iter(outputs.items()))
            writing = next(n for n, names in enumerate(_written(plan)) if name in names)
            return FirstDifference(plan.blocks[writing].layers, name, error)
        for _ in range(_TIMES):
            finer = self._finer(plan, found.block, replan)
            again = None if finer is None else self._first(finer)
            if finer is None or again is None:
                break
            plan, found = finer, again
        return FirstDifference(plan.blocks[found.block].layers, found.tensor, found.error)

    def _finer(self, plan: Plan, block: int, replan: Replan) -> Plan | None:
        """Plan with a cut after each layer of a block, where its layout allows it."""
        edges = (0, *plan.cuts, sum(len(b.layers) for b in plan.blocks))
        shape = plan.layouts[block]
        graph = self._lowered
        layers = layers_of(graph)
        live = live_tensors(graph, layers)
        layouts = Layouts(graph, layers, self._devices, [shape])
        more = [
            cut
            for cut in range(edges[block] + 1, edges[block + 1])
            if all(layouts.fits(name, 0) for name in live[cut] if name != graph.input)
        ]
        if not more:
            return None
        cuts = [*plan.cuts[:block], *more, *plan.cuts[block:]]
        same = [shape] * len(more)
        layouts_then = [*plan.layouts[:block], *same, *plan.layouts[block:]]
        return replan(cuts=cuts, layouts=layouts_then)

    def _first(self, plan: Plan) -> _Found | None:
        """Return the first block that writes something else than the whole model has there."""
        comparison = _Comparison()
        blobs = {**self._packaged.blobs, **plan.segments}
        fleet = LocalFleet(plan.programs, blobs, self._options, comparison.observe)
        for written in self._portions(plan):
            comparison.expected = self._whole([name for _, name in written])
            fleet.infer(self._image)
            for block, name in written:
                if name in comparison.differences:
                    error = relative(comparison.differences[name], comparison.expected[name])
                    return _Found(block, name, error)
        return None

    def _portions(self, plan: Plan) -> Iterator[list[tuple[int, str]]]:
        """Yield what blocks write, in order, as much at a time as may be held at a time."""
        graph = self._packaged.graph
        portion: list[tuple[int, str]] = []
        held = 0
        for block, names in enumerate(_written(plan)):
            for name in names:
                # Steps of an operator that was taken apart are not in the whole model.
                if name not in graph.tensors:
                    continue
                nbytes = prod(graph.shape(name)) * graph.itemsize(name)
                if portion and held + nbytes > _HELD_BYTES:
                    yield portion
                    portion, held = [], 0
                portion.append((block, name))
                held += nbytes
        if portion:
            yield portion

    def _whole(self, names: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Return tensors of the whole model."""
        imported = self._packaged.imported
        model = with_outputs(imported, names)
        arrays = Segment(model, imported.arrays(), self._options).run([self._image])
        return dict(zip(names, arrays, strict=True))


def _written(plan: Plan) -> list[list[str]]:
    """Return the tensors that each block writes for later ones, or for the answer."""
    return [[name for name, _ in block.tiles[block.devices[0]]] for block in plan.blocks]
