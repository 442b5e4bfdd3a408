"""The strategies: each gives one device's answer, and splits the way that its paper does."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis.strategies import randoms, sampled_from

from agent.adapters.runtime import run_whole
from agent.errors import ModelError
from agent.planner import Device, check
from agent.planner.blocked import blocked_tensors
from agent.planner.layers import layers_of
from agent.planner.layout import Shape
from agent.planner.lockstep import lockstep
from agent.planner.profile import LayerTime, layer_key
from agent.planner.program import rounds
from agent.planner.strategies import compile_strategy, published_dpfp
from agent.wire.manifest import Strategy
from models import zoo
from tests.planner import soak
from tests.planner.oracle import OPTIONS, Builder, Fleet, devices, load, relative_error, vgg
from tests.planner.strategies import sketch

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from random import Random

    from agent.planner import Graph, Plan
    from agent.wire.program import Program

STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
MIXED = (3.0, 1.0, 2.0)
EXAMPLES = 120


@pytest.fixture(scope="module")
def thin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vgg(tmp_path_factory.mktemp("vgg") / "vgg.onnx")


@pytest.fixture(scope="module")
def graph(thin: Path) -> Graph:
    return load(thin)[1]


def servers(count: int, rate: float = 1e9, link: float = 1e9) -> list[Device]:
    """Return what the paper's cost model knows of equal devices."""
    return [Device(f"d{number}", rate, inf, link, 0.0, 0.0) for number in range(count)]


def right(path: Path, strategy: Strategy, fleet: Sequence[Device]) -> Plan:
    """Run a strategy's plan; its answer must be that of one device."""
    model, graph = load(path)
    plan = compile_strategy(strategy, graph, fleet, model_name="m")
    check(plan.programs)
    tensor = graph.tensors[graph.input]
    value = np.random.default_rng(1).standard_normal(tensor.shape).astype(tensor.dtype)
    expected = run_whole(path, [value], OPTIONS)
    found = Fleet(plan, model).run(value)
    assert max(relative_error(a, b) for a, b in zip(found, expected, strict=True)) <= 1e-5
    return plan


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", ["squeezenet", "resnet50", "yolo"])
def test_published_networks_come_out_right(name: str, strategy: Strategy, tmp_path: Path) -> None:
    path = zoo.build(name, tmp_path, small=True)
    # So slow that sharing pays even for small maps.
    plan = right(path, strategy, devices(*(rate * 0.01 for rate in MIXED)))
    assert (len(plan.devices) == 1) == (strategy == "single")


@soak.exploring(EXAMPLES, derandomize=True)
@given(random=randoms(use_true_random=False), strategy=sampled_from(STRATEGIES))
def test_any_small_model_comes_out_right(
    tmp_path_factory: pytest.TempPathFactory, random: Random, strategy: Strategy
) -> None:
    builder, outputs = sketch(random)
    path = builder.save(tmp_path_factory.getbasetemp() / "strategies.onnx", *outputs)
    model, graph = load(path)
    fleet = devices(*(random.choice((0.01, 0.015, 0.03)) for _ in range(random.randint(1, 5))))
    plan = compile_strategy(strategy, graph, fleet, model_name="m")
    soak.compare(builder, outputs, path, Fleet(plan, model), strategy)


def test_single_is_the_fastest_device(graph: Graph) -> None:
    plan = compile_strategy("single", graph, devices(*MIXED), model_name="m")
    assert plan.devices == ("d0",)
    assert not plan.programs["d0"].sends


def test_modnn_sends_everything_through_one_device(graph: Graph) -> None:
    plan = compile_strategy("modnn", graph, devices(*MIXED), model_name="m")
    first, *others = plan.devices
    layers = sum(len(block.layers) for block in plan.blocks)
    assert len(plan.blocks) == layers
    assert all(send.to == first for d in others for send in plan.programs[d].sends)
    # All that the others compute comes to the first.
    for device in others:
        sent = {send.part.tensor for send in plan.programs[device].sends}
        made = [part.tensor for s in plan.programs[device].steps for part in s.writes]
        assert sent == set(made[:-1])  # every device computes all of a Softmax
    assert _rows(plan, 0) == [32, 21, 11]


def _rows(plan: Plan, block: int) -> list[int]:
    """Return how many rows each device owns of a block's output, the largest share first."""
    tiles = [tiles[0][1] for tiles in plan.blocks[block].tiles.values()]
    return [stop - start for _, _, (start, stop), _ in tiles]


def test_deepthings_fuses_a_grid_and_leaves_the_rest_to_the_gateway(graph: Graph) -> None:
    plan = compile_strategy("deepthings", graph, devices(3.0, 1.0, 2.0, 1.0), model_name="m")
    assert plan.layouts == (Shape(2, 2), Shape(1, 1))
    assert 1 <= plan.cuts[0] <= 16
    assert _rows(plan, 0) == [_rows(plan, 0)[0]] * 4


def test_deepthings_uses_the_devices_that_a_map_has_room_for(tmp_path: Path) -> None:
    b = Builder((1, 3, 2, 2))
    x = b.conv(b.conv("x", 4, pads=[1] * 4), 4, pads=[1] * 4)
    graph = load(b.save(tmp_path / "m.onnx", x))[1]
    plan = compile_strategy("deepthings", graph, devices(*[1.0] * 9), model_name="m")
    assert plan.layouts == (Shape(2, 2), Shape(1, 1))


def test_halp_shares_equal_rows_of_maps_layer_by_layer(graph: Graph) -> None:
    plan = compile_strategy("halp", graph, devices(*MIXED), model_name="m")
    assert len(plan.blocks) == sum(len(block.layers) for block in plan.blocks)
    assert plan.layouts[0] == Shape(3, 1)
    assert plan.layouts[-1] == Shape(1, 1)
    assert _rows(plan, 0) == [21, 22, 21]
    assert plan.blocks[0].overlapped
    others = (s for s in STRATEGIES if s not in ("halp", "dpfp"))
    for other in others:
        rival = compile_strategy(other, graph, devices(*MIXED), model_name="m")
        assert not any(block.overlapped for block in rival.blocks)


def test_the_published_dpfp_leaves_devices_out_that_do_not_pay(graph: Graph) -> None:
    near = compile_strategy("dpfp-paper", graph, servers(4), model_name="m")
    far = compile_strategy("dpfp-paper", graph, servers(4, link=1e4), model_name="m")
    assert (len(near.devices), len(far.devices)) == (4, 1)
    assert all(shape.columns == 1 for shape in near.layouts)


def test_the_published_dpfp_sees_nominal_figures_only(graph: Graph) -> None:
    blocked = blocked_tensors(graph)
    keys = [layer_key(layer, graph, blocked) for layer in layers_of(graph)]
    measured = {key: LayerTime(0.5, 1e-7) for key in keys if key is not None}
    assert measured
    real = [Device(f"d{n}", 1e9, 1e7, 1e9, 0.05, 0.05, profile=measured) for n in range(4)]
    assert published_dpfp(graph, real) == published_dpfp(graph, servers(4))


def test_in_lockstep_the_published_dpfp_takes_what_its_search_says(graph: Graph) -> None:
    fleet = servers(4)
    programs = compile_strategy("dpfp-paper", graph, fleet, model_name="m").programs
    clock = lockstep(programs, fleet)
    chosen = published_dpfp(graph, fleet)
    assert clock.compute_s == pytest.approx(sum(choice.compute_s for choice in chosen))
    assert clock.exchange_s == pytest.approx(sum(choice.exchange_s for choice in chosen))


def test_links_take_their_latency_for_each_wave(graph: Graph) -> None:
    fleet, latency = servers(3), 0.25
    late = [Device(d.id, d.flops_per_s, inf, d.link_bytes_per_s, latency, 0.0) for d in fleet]
    programs = compile_strategy("modnn", graph, fleet, model_name="m").programs
    waves = _waves(programs)
    # What passes between two others takes two waves: to the first device, and from it.
    assert waves > len(programs["d0"].steps)
    slower = lockstep(programs, late).exchange_s - lockstep(programs, fleet).exchange_s
    assert slower == pytest.approx(waves * latency)


def _waves(programs: dict[str, Program]) -> int:
    return sum(len(found.waves) for found in rounds(programs))


def test_nothing_can_be_planned_for_nobody(graph: Graph) -> None:
    for strategy in STRATEGIES:
        with pytest.raises(ModelError, match="at least one device"):
            compile_strategy(strategy, graph, [], model_name="m")
