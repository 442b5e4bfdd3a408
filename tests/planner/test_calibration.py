"""Probes of a model's layers, and what their times say."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from agent.adapters.probing import Prober
from agent.adapters.runtime import RuntimeOptions
from agent.planner.calibration import figures, layer_time, probes
from agent.planner.layers import layers_of
from agent.planner.lowering import lower
from agent.planner.profile import LayerTime, layer_key
from agent.service.loop import monotonic
from agent.wire.calibration import Probe, Probes, Timing, decode_probes, encode_probes
from models.zoo import build
from tests.planner.oracle import load

if TYPE_CHECKING:
    from pathlib import Path

    from agent.planner import Graph


@pytest.fixture(scope="module", params=["mobilenet_v2", "resnet50", "yolo", "mobilenet_v2_int8"])
def graph(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Graph:
    return load(build(request.param, tmp_path_factory.mktemp("zoo"), small=True))[1]


def keys_of(graph: Graph) -> list[str | None]:
    return [layer_key(layer, graph, ()) for layer in layers_of(lower(graph, 1))]


def test_every_distinct_layer_is_probed_at_no_more_than_two_sizes(graph: Graph) -> None:
    probed = probes(graph)
    keys = [probe.key for probe in probed]
    assert all(keys.count(key) <= 2 for key in keys)
    assert len(set(keys)) < len(layers_of(graph)), "no layer of these models is there twice?"
    for key in set(keys):
        loads = [probe.load for probe in probed if probe.key == key]
        assert loads == sorted(set(loads), reverse=True)


def test_every_probe_runs_without_the_models_weights(graph: Graph) -> None:
    content = encode_probes(Probes(probes(graph)))
    prober = Prober(RuntimeOptions(), monotonic)
    for probe in decode_probes(content).probes[::5]:
        timing = prober.run(probe)
        assert 0.0 < timing.kernels_s <= timing.run_s


def test_layers_that_differ_in_name_and_values_alone_have_one_key(tmp_path: Path) -> None:
    keys = [key for key in keys_of(load(build("resnet50", tmp_path))[1]) if key]
    assert len(set(keys)) < len(keys) / 2


def test_figures_give_back_what_the_times_were_made_of(graph: Graph) -> None:
    probed = probes(graph)
    true = {p.key: LayerTime(1e-4 + n * 1e-6, 1e-11 * (1 + n)) for n, p in enumerate(probed)}

    def timing(probe: Probe) -> Timing:
        layer = true[probe.key]
        kernels = layer.fixed_s + layer.s_per_unit * probe.load
        return Timing(kernels + 3e-4, kernels)

    found = figures(probed, [timing(probe) for probe in probed])
    assert found is not None
    twice = [p.key for p in probed if sum(p.key == q.key for q in probed) == 2]
    assert twice
    for key in twice:
        assert found[key].fixed_s == pytest.approx(true[key].fixed_s)
        assert found[key].s_per_unit == pytest.approx(true[key].s_per_unit)


def test_what_was_not_reached_has_no_figures(graph: Graph) -> None:
    probed = probes(graph)
    one = figures(probed, [Timing(2e-3, 1e-3), *(None for _ in probed[1:])])
    assert one is not None
    assert set(one) == {probed[0].key}
    assert figures(probed, [None] * len(probed)) is None


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(100.0, 3.0), (50.0, 2.0)], LayerTime(1.0, 0.02)),
        ([(100.0, 2.0)], LayerTime(0.0, 0.02)),
        ([(100.0, 2.0), (50.0, 0.5)], LayerTime(0.0, 0.02)),  # a negative fixed part
        ([(100.0, 2.0), (50.0, 2.5)], LayerTime(0.0, 0.02)),  # the smaller tile took longer
    ],
)
def test_a_layers_time_never_falls_with_its_tile(
    points: list[tuple[float, float]], expected: LayerTime
) -> None:
    found = layer_time(points)
    assert found.fixed_s == pytest.approx(expected.fixed_s)
    assert found.s_per_unit == pytest.approx(expected.s_per_unit)
