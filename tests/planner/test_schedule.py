"""Tiles in parts, their schedules, and what is predicted of them."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pytest

from agent.adapters.runtime import run_whole
from agent.geometry import contains, hull, intersect, missing, size, whole
from agent.planner import Device, check, compile_plan
from agent.planner.dpfp import Allowed, Search
from agent.planner.layout import Shape
from agent.planner.lowering import lower
from agent.planner.plan import _Planner
from agent.planner.schedule import make_schedule
from agent.planner.simulate import simulate
from tests.planner.oracle import OPTIONS, Builder, Fleet, devices, load, relative_error

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from agent.planner import Graph
    from agent.planner.dpfp import Choice
    from agent.planner.schedule import Schedule


def _chain(b: Builder) -> tuple[str, ...]:
    x = b.conv("x", 8, pads=[1] * 4)
    x = b.add("Relu", b.conv(x, 8, 5, pads=[2] * 4))
    return (b.conv(b.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]), 8, pads=[1] * 4),)


def _branches(b: Builder) -> tuple[str, ...]:
    x = b.conv("x", 8, pads=[1] * 4)
    y = b.add("Relu", b.add("Add", b.conv(x, 8, 5, pads=[2] * 4), x))
    z = b.add("MaxPool", y, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    w = b.add("Resize", z, "", b.constant(np.array([1, 1, 2, 2], np.float32)))
    return (b.add("Concat", b.conv(w, 4, dilations=[2, 2], pads=[2] * 4), y, axis=1), z)


def _pooled(b: Builder) -> tuple[str, ...]:
    x = b.conv("x", 8, pads=[1] * 4)
    gate = b.add("Sigmoid", b.conv(b.add("GlobalAveragePool", x), 8, 1))
    return (b.conv(b.add("Mul", x, gate), 4, pads=[1] * 4),)


MODELS: dict[str, Callable[[Builder], tuple[str, ...]]] = {
    "chain": _chain,
    "branches": _branches,
    "pooled": _pooled,
}


def _graph(name: str, path: Path) -> Graph:
    b = Builder((1, 3, 24, 28))
    return load(b.save(path / "m.onnx", *MODELS[name](b)))[1]


def _divided(choices: Sequence[Choice]) -> tuple[Choice, ...]:
    return tuple(replace(choice, overlapped=True) for choice in choices)


def _search(
    graph: Graph, shape: Shape, cuts: Sequence[int] | None = None
) -> tuple[Search, tuple[Choice, ...]]:
    """Return a search, and its choice with every block in parts: `shape` wherever it fits."""
    search = Search(lower(graph, shape.tiles), devices(*[1.0] * shape.tiles), [Shape(1, 1), shape])
    end = len(search.layers)
    cuts = range(1, end) if cuts is None else cuts
    layouts = [
        shape if all(search.layouts.fits(n, 1) for n in search.live[stop]) else Shape(1, 1)
        for stop in (*cuts, end)
    ]
    found = search.best(Allowed(cuts, layouts))
    assert found is not None
    return search, _divided(found[0])


@pytest.mark.parametrize("shape", [Shape(2, 1), Shape(3, 1), Shape(1, 3), Shape(2, 2)])
@pytest.mark.parametrize("name", MODELS)
def test_parts_give_the_answer_of_whole_tiles(
    name: str, shape: Shape, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    b = Builder((1, 3, 24, 28))
    path = b.save(tmp_path / "m.onnx", *MODELS[name](b))
    model, graph = load(path)
    search, choices = _search(graph, shape)
    cuts = [choice.stop for choice in choices[:-1]]
    layouts = [choice.shape for choice in choices]
    monkeypatch.setattr(
        _Planner, "_ranked", lambda self, found, **_: [self._candidate(_divided(found))]
    )
    fleet = list(search.layouts.devices)
    plan = compile_plan(graph, fleet, model_name="m", cuts=cuts, layouts=layouts)
    check(plan.programs)
    assert any(block.overlapped for block in plan.blocks)
    value = np.random.default_rng(0).standard_normal((1, 3, 24, 28)).astype(np.float32)
    found = Fleet(plan, model).run(value)
    expected = run_whole(path, [value], OPTIONS)
    assert max(map(relative_error, found, expected)) < 1e-6


@pytest.mark.parametrize("shape", [Shape(3, 1), Shape(1, 3), Shape(2, 2)])
def test_parts_make_up_the_tile_and_borders_come_first(shape: Shape, tmp_path: Path) -> None:
    search, choices = _search(_graph("chain", tmp_path), shape)
    schedule = make_schedule(search, choices)
    divided = 0
    for number, tiles in enumerate(schedule.tiles):
        for device, tile in tiles.items():
            tasks = [t for t in schedule.tasks if (t.block, t.device) == (number, device)]
            for name, region in tile:
                parts = [task.writes[name] for task in tasks if name in task.writes]
                assert hull(parts) == region
                assert sum(map(size, parts)) == size(region)
                leaving = [
                    t.region for t in schedule.transfers if (t.sender, t.tensor) == (device, name)
                ]
                inner = [intersect(parts[-1], sent) for sent in leaving]
                assert len(tasks) == 1 or not any(inner)
            divided += len(tasks) > 1
    assert divided


def test_an_interior_waits_for_nobody(tmp_path: Path) -> None:
    """In a chain of convolutions the last part of each tile reads what its device has computed."""
    b = Builder((1, 3, 36, 8))
    x = b.conv("x", 4, pads=[1] * 4)
    # It needs two rows of its neighbours, who need one of its own.
    x = b.conv(b.conv(x, 4, 5, pads=[2] * 4), 4, pads=[1] * 4)
    search, choices = _search(load(b.save(tmp_path / "m.onnx", x))[1], Shape(3, 1))
    schedule = make_schedule(search, choices)
    received = {(t.reader, t.tensor): t.region for t in schedule.transfers}
    own: dict[tuple[int, str], list[tuple[tuple[int, int], ...]]] = {
        (device, search.graph.input): [whole(search.graph.shape(search.graph.input))]
        for device in range(3)
    }
    for task in schedule.tasks:
        for name, region in task.writes.items():
            own.setdefault((task.device, name), []).append(region)
    interiors = [
        task
        for task, after in pairwise(schedule.tasks)
        if task.parted and (after.block, after.device) != (task.block, task.device)
    ]
    assert interiors
    for task in interiors:
        for name, region in task.reads.items():
            assert not missing(region, own[task.device, name])
            border = received.get((task.device, name))
            assert border is None or not contains(region, border)


def _simulated(schedule: Schedule, search: Search, requests: int = 1) -> float:
    return simulate(schedule, search.graph, search.layouts.devices, 1e6, requests).seconds


def test_parts_hide_slow_links(tmp_path: Path) -> None:
    b = Builder((1, 8, 64, 64))
    x = b.conv(b.conv(b.conv("x", 8, pads=[1] * 4), 8, pads=[1] * 4), 8, pads=[1] * 4)
    graph = load(b.save(tmp_path / "m.onnx", x))[1]
    fleet = [Device(n, 1e8, 1e9, 1e6, 2e-3, 1e-5) for n in "ab"]
    search = Search(graph, fleet, [Shape(1, 1), Shape(2, 1)], broker_bytes_per_s=1e6)
    found = search.best(Allowed([1, 2], [Shape(2, 1)] * 3))
    assert found is not None
    assert [choice.overlapped for choice in found[0]] == [False, True, True]
    plain = make_schedule(search, [replace(c, overlapped=False) for c in found[0]])
    hidden, waiting = _simulated(make_schedule(search, found[0]), search), _simulated(plain, search)
    assert hidden < waiting
    busiest = max(sum(t.seconds for t in plain.tasks if t.device == d) for d in (0, 1))
    assert hidden > busiest


def test_other_requests_fill_the_waits(tmp_path: Path) -> None:
    search, choices = _search(_graph("chain", tmp_path), Shape(2, 1))
    schedule = make_schedule(search, [replace(c, overlapped=False) for c in choices])
    one, four = _simulated(schedule, search), _simulated(schedule, search, 4)
    busiest = max(sum(t.seconds for t in schedule.tasks if t.device == d) for d in (0, 1))
    assert 4 * busiest < four < 4 * one


def test_spans_follow_the_dataflow(tmp_path: Path) -> None:
    search, choices = _search(_graph("branches", tmp_path), Shape(2, 2))
    schedule = make_schedule(search, choices)
    told = simulate(schedule, search.graph, search.layouts.devices, 1e6)
    assert len(told.starts) == len(schedule.tasks)
    computes = [span for span in told.spans if span.activity == "compute"]
    assert len(computes) == len(schedule.tasks)
    for device in search.layouts.devices:
        mine = sorted((s.start_s, s.end_s) for s in computes if s.device == device.id)
        assert all(end <= start for (_, end), (start, _) in pairwise(mine))
    received = [span for span in told.spans if span.activity == "receive"]
    assert len(received) == len(schedule.transfers)
    assert all(span.end_s <= told.seconds and span.nbytes > 0 for span in received)
