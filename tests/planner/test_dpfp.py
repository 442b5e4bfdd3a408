"""DPFP against an enumeration of every choice of cuts and layouts."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, pairwise, product
from random import Random
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest

from agent.errors import ModelError
from agent.geometry import intersect, size
from agent.planner import Device, compile_plan, importer
from agent.planner.blocked import blocked_tensors
from agent.planner.cost import UNEVEN, Work
from agent.planner.dpfp import Allowed, Search
from agent.planner.layers import layers_of
from agent.planner.layout import Shape
from agent.planner.lowering import lower
from agent.planner.profile import LayerTime, layer_key
from agent.planner.receptive_field import Demand
from tests.planner.oracle import Builder, devices, load, vgg

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from agent.planner import Graph, Plan
    from agent.planner.cost import Floats


def _chain(path: Path) -> Graph:
    b = Builder((1, 3, 24, 24))
    x = b.add("Relu", b.conv("x", 8, pads=[1] * 4))
    x = b.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = b.conv(x, 16, pads=[1] * 4)
    x = b.add("Flatten", b.add("GlobalAveragePool", x))
    x = b.add("Gemm", x, b.weight(40, 16), b.weight(40), transB=1)
    return load(b.save(path / "chain.onnx", x))[1]


def _branches(path: Path) -> Graph:
    b = Builder((1, 3, 16, 16))
    x = b.conv("x", 8, pads=[1] * 4)
    y = b.add("Relu", b.add("Add", b.conv(x, 8, 5, pads=[2] * 4), x))
    z = b.add("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2])
    w = b.add("AveragePool", y, kernel_shape=[2, 2], strides=[2, 2])
    return load(b.save(path / "branches.onnx", b.add("Concat", z, w, axis=1), x))[1]


FLEETS = {
    "slow links": [Device("a", 2e9), Device("b", 1e9), Device("c", 1e9)],
    "fast links": [
        Device(n, r, link_bytes_per_s=1e10, link_latency_s=1e-6, step_overhead_s=1e-6)
        for n, r in (("a", 3e8), ("b", 2e8), ("c", 1e8), ("d", 1e8))
    ],
    "one much faster": [
        Device("a", 5e8, link_latency_s=1e-5, step_overhead_s=1e-5),
        Device("b", 2e7, link_latency_s=1e-5, step_overhead_s=1e-5),
    ],
    "links between": [
        Device(n, 2e8, link_bytes_per_s=5e7, link_latency_s=3e-5, step_overhead_s=2e-5)
        for n in "abc"
    ],
}


def _measured(graph: Graph, fleet: Sequence[Device]) -> list[Device]:
    """Devices that have measured some of their layers, each other ones."""
    random = Random(1)
    keys = {layer_key(layer, graph, blocked_tensors(graph)) for layer in layers_of(graph)}
    return [
        replace(
            device,
            profile={
                key: LayerTime(random.uniform(0, 1e-4), random.uniform(0.5, 4) / device.flops_per_s)
                for key in sorted(filter(None, keys))
                if random.random() < 0.7
            },
        )
        for device in fleet
    ]


def test_what_a_device_has_measured_is_what_its_plan_takes(tmp_path: Path) -> None:
    graph = _chain(tmp_path)
    keys = [layer_key(layer, graph, blocked_tensors(graph)) for layer in layers_of(graph)]
    times = {
        key: LayerTime(1e-3 * (n + 1), 1e-15) for n, key in enumerate(sorted(filter(None, keys)))
    }
    device = Device("a", 1e9, memory_bytes_per_s=1e15, step_overhead_s=0.0, profile=times)
    plan = compile_plan(graph, [device], model_name="m", cuts=[])
    expected = sum(times[key].fixed_s for key in keys if key)
    assert plan.predicted_s == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("measured", [False, True])
@pytest.mark.parametrize("fleet", FLEETS)
@pytest.mark.parametrize("make", [_chain, _branches])
def test_no_choice_of_cuts_and_layouts_is_faster(
    make: Callable[[Path], Graph], fleet: str, tmp_path: Path, *, measured: bool
) -> None:
    graph = (
        lower(make(tmp_path), len(FLEETS[fleet])) if fleet == "links between" else make(tmp_path)
    )
    search = Search(graph, _measured(graph, FLEETS[fleet]) if measured else FLEETS[fleet])
    layers, tables = len(search.layers), _Tables(search)
    times = {
        (cuts, layouts): seconds
        for number in range(layers)
        for cuts in combinations(range(1, layers), number)
        for layouts, seconds in tables.every(cuts)
    }
    found = search.best(Allowed())
    assert found is not None
    assert len(times) > 50
    assert found[1] == pytest.approx(min(times.values()), rel=1e-12)
    some = Random(0).sample(sorted(times), 40)
    for cuts, layouts in some:
        shapes = [search.layouts.shapes[n] for n in layouts]
        forced = search.best(Allowed(cuts, shapes))
        assert forced is not None
        assert [choice.shape for choice in forced[0]] == shapes
        assert forced[1] == pytest.approx(times[cuts, layouts], rel=1e-12)


class _Tables:
    """The seconds of every block in every layout, from which a choice's time is a sum."""

    def __init__(self, search: Search) -> None:
        self._search = search
        self._layouts = range(len(search.layouts.shapes))
        self._ends = search._cost.gather(search.graph.outputs)
        self._blocks: dict[tuple[int, int], Floats] = {
            (start, stop): block
            for stop in range(1, len(search.layers) + 1)
            for start, block in self._before(stop)
        }

    def _before(self, stop: int) -> Iterator[tuple[int, Floats]]:
        """Every block that ends at `stop`: the layers before it, and its seconds."""
        search, cost = self._search, self._search._cost
        shared = [name for name in search.live[stop] if name != search.graph.input]
        tiles = {name: search.layouts.tiles(name) for name in shared}
        demand, work = Demand(search.graph, tiles), Work.none(search.layouts.device)
        for start in range(stop - 1, -1, -1):
            search.add(start, demand, work)
            borders = search._bytes(tiles) + search._bytes(demand.boxes)
            exchange = cost.exchange(demand.boxes, tiles)
            compute = cost.compute(work, borders)
            yield start, cost.block(compute, work.weights, exchange, stop - start).seconds

    def every(self, cuts: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], float]]:
        """Every choice of layouts that fit between these cuts, with its seconds."""
        edges = (0, *cuts, len(self._search.layers))
        fitting = [[n for n in self._layouts if self._fits(stop, n)] for stop in edges[1:]]
        for layouts in product(*fitting):
            seconds = float(self._ends[layouts[-1]])
            for block, before, layout in zip(pairwise(edges), (0, *layouts), layouts, strict=False):
                seconds += float(self._blocks[block][layout, before])
            yield layouts, seconds

    def _fits(self, stop: int, layout: int) -> bool:
        return all(self._search.layouts.fits(name, layout) for name in self._search.live[stop])


def test_choices_differ_between_the_fleets(tmp_path: Path) -> None:
    graph = _chain(tmp_path)
    used = {name: compile_plan(graph, FLEETS[name], model_name="m").layouts for name in FLEETS}
    most = {name: max(shape.tiles for shape in shapes) for name, shapes in used.items()}
    assert most["slow links"] == 1
    assert most["fast links"] >= 3
    assert most["links between"] >= 3


def test_predicted_time_is_what_its_parts_say(tmp_path: Path) -> None:
    """The halo between two convolutions, its exchange and the final gather, by hand."""
    b = Builder((1, 2, 32, 16))
    y = b.conv(b.conv("x", 4, pads=[1] * 4), 4, pads=[1] * 4)
    _, graph = load(b.save(tmp_path / "m.onnx", y))
    one, two = (Device(n, 1e9, 1e9, 1e6, 0.01, 0.002) for n in "ab")
    plan = compile_plan(
        graph, [one, two], model_name="m", cuts=[1], layouts=[Shape(2, 1)] * 2, overlap=False
    )
    row, half = 4 * 16 * 4, 16
    first, second = plan.blocks
    assert (first.halo_bytes, second.halo_bytes) == (0, 2 * row)
    assert first.exchange_s == 0
    copied = (half + 1) * row / 1e9
    late = UNEVEN * second.compute_s
    assert second.exchange_s == pytest.approx(0.01 + 2 * row / 1e6 + late + copied)
    borders = (half + 1) * 2 * 16 * 4 + half * row
    arithmetic = half * 16 * 4 * 2 * 2 * 9
    alone = arithmetic / 1e9 + 2 * borders / 1e9 + 0.002
    assert first.compute_s == pytest.approx(alone)
    # The row of "a" crosses two links; its own tile is there then, and goes back as a whole.
    halo, gather = 0.01 + 2 * row / 1e6, 0.01 + 2 * half * row / 1e6
    late = UNEVEN * (first.compute_s + second.compute_s)
    expected = first.compute_s + halo + copied + second.compute_s + gather + late
    assert plan.predicted_s == pytest.approx(expected)


def test_an_exchange_takes_as_long_as_its_busiest_sender(tmp_path: Path) -> None:
    """One device hands two others their rows: it sends what they receive together."""
    b = Builder((1, 2, 30, 16))
    y = b.add("Relu", b.add("MaxPool", "x", kernel_shape=[1, 1]))
    _, graph = load(b.save(tmp_path / "m.onnx", y))
    three = [Device(n, 1e9, 1e30, 1e6, 0.0, 0.0) for n in "abc"]
    layouts = [Shape(1, 1), Shape(3, 1)]
    plan = compile_plan(
        graph,
        three,
        model_name="m",
        cuts=[1],
        layouts=layouts,
        broker_bytes_per_s=1e9,
        overlap=False,
    )
    assert plan.blocks[1].halo_bytes == 20 * 2 * 16 * 4
    assert plan.blocks[1].exchange_s == pytest.approx(1.5 * 20 * 2 * 16 * 4 / 1e6)


def test_an_exchange_takes_as_long_as_the_brokers_link(tmp_path: Path) -> None:
    """Four devices change from rows to columns: all that moves crosses one slow link."""
    b = Builder((1, 2, 32, 32))
    y = b.add("Relu", b.add("MaxPool", "x", kernel_shape=[1, 1]))
    _, graph = load(b.save(tmp_path / "m.onnx", y))
    four = [Device(n, 1e9, 1e30, 1e9, 0.0, 0.0) for n in "abcd"]
    layouts = [Shape(4, 1), Shape(1, 4)]
    plan = compile_plan(
        graph,
        four,
        model_name="m",
        cuts=[1],
        layouts=layouts,
        broker_bytes_per_s=1e6,
        overlap=False,
    )
    moved = 3 * 2 * 32 * 32
    assert plan.blocks[1].halo_bytes == moved
    late = UNEVEN * plan.blocks[1].compute_s
    assert plan.blocks[1].exchange_s == pytest.approx(moved / 1e6 + late)


def test_tiles_follow_capacity(tmp_path: Path) -> None:
    graph = _chain(tmp_path)
    plan = compile_plan(graph, devices(1, 3, 2), model_name="m", cuts=[1], layouts=3)
    assert plan.devices == ("d1", "d2", "d0")
    tiles = [plan.blocks[0].tiles[device][0][1][2] for device in plan.devices]
    rows = tiles[-1][1]
    assert tiles == [(0, rows // 2), (rows // 2, rows * 5 // 6), (rows * 5 // 6, rows)]


def test_early_layers_are_fused_and_late_ones_exchanged(tmp_path: Path) -> None:
    graph = load(vgg(tmp_path / "vgg.onnx"))[1]
    fast = [Device(n, 1e9, 1e9, link_latency_s=1e-4, step_overhead_s=1e-5) for n in "abcd"]
    plan = compile_plan(graph, fast, model_name="vgg")
    first, *_, late = [block for block in plan.blocks if "Conv" in block.layers[0]]
    assert len(first.layers) > len(late.layers)
    assert {shape.tiles for shape in plan.layouts} == {1, 4}


def test_slow_links_leave_one_device(tmp_path: Path) -> None:
    graph = load(vgg(tmp_path / "vgg.onnx"))[1]
    slow = [replace(d, link_bytes_per_s=1e4, link_latency_s=0.5) for d in devices(1, 1, 1)]
    plan = compile_plan(graph, slow, model_name="vgg")
    assert plan.devices == ("d0",)
    assert len(plan.blocks) == 1
    assert plan.distributed_share == 0
    assert not plan.programs["d0"].sends


def test_memory_limits_are_kept(tmp_path: Path) -> None:
    b = Builder((1, 3, 8, 8))
    x = b.add("Flatten", b.conv("x", 4, pads=[1] * 4))
    for _ in range(3):
        x = b.add("Gemm", x, b.weight(256, b.shape(x)[1]), b.weight(256), transB=1)
    with patch.object(importer, "PART_BYTES", 1 << 14):
        graph = load(b.save(tmp_path / "m.onnx", x))[1]
    whole = sum(p.nbytes for entry in graph.weights.values() for p in entry.parts)
    slow = [replace(d, link_latency_s=0.5) for d in devices(1, 1, 1)]
    assert _weights(compile_plan(graph, slow, model_name="m")) == {"d0": whole}

    small = [replace(d, memory_limit_bytes=whole // 2) for d in slow]
    shared = _weights(compile_plan(graph, small, model_name="m"))
    assert len(shared) == 3
    assert max(shared.values()) <= whole // 2

    one_tiny = [replace(slow[0], memory_limit_bytes=1000), *slow[1:]]
    assert _weights(compile_plan(graph, one_tiny, model_name="m")) == {"d1": whole}
    tiny = [replace(d, memory_limit_bytes=1000) for d in slow]
    with pytest.raises(ModelError, match="memory"):
        compile_plan(graph, tiny, model_name="m")


def _weights(plan: Plan) -> dict[str, int]:
    """The bytes of weights that each device fetches."""
    return {
        device: sum(program.blobs().values())
        - sum({s.graph.digest: s.graph.nbytes for s in program.segments}.values())
        for device, program in plan.programs.items()
    }


def test_no_devices_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="at least one device"):
        compile_plan(_chain(tmp_path), [], model_name="m")


@pytest.mark.parametrize(
    ("forced", "message"),
    [
        ({"cuts": [99]}, "must lie between"),
        ({"cuts": [1], "layouts": [Shape(1, 1)]}, "2 blocks need as many"),
        ({"layouts": [Shape(1, 1)]}, "need the cuts"),
        ({"cuts": [1], "layouts": [Shape(4, 1), Shape(1, 1)]}, "cannot be shared as 4x1"),
    ],
)
def test_impossible_choices_are_refused(
    forced: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=message):
        compile_plan(_chain(tmp_path), devices(1, 1), model_name="m", **forced)


def test_halos_are_what_neighbours_own(tmp_path: Path) -> None:
    graph = load(vgg(tmp_path / "vgg.onnx"))[1]
    plan = compile_plan(graph, devices(1, 1, 1), model_name="m", cuts=[1, 2], layouts=3)
    owned = {d: dict(plan.blocks[0].tiles[d]) for d in plan.devices}
    for device, program in plan.programs.items():
        for send in program.sends:
            name = program.tensors[send.part.tensor].name
            if name in owned[device]:
                assert intersect(send.part.region, owned[send.to][name]) is None
                assert size(send.part.region) == 8 * 64  # one row of eight channels
