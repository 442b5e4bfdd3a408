"""Which halos are packed: where links are slow and devices are quick at it; what that saves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from agent.adapters.runtime import run_whole
from agent.local import LocalFleet
from agent.packaging import package_model
from agent.planner import Device, compile_plan
from agent.planner.layout import Shape
from agent.planner.packing import Packing
from agent.verification import relative_error, seeded_input
from tests.planner.oracle import OPTIONS, Builder, load

if TYPE_CHECKING:
    from pathlib import Path

    from agent.planner import Graph, Plan
    from agent.wire.manifest import Halos

SLOW, FAST = 1e6, 1e9
CUTS, ROWS = (1, 3), (Shape(2, 1),) * 3


def fleet(link: float, packing: float = 1e8) -> list[Device]:
    return [Device(name, 1e9, 1e10, link, 1e-4, 1e-5, packing_bytes_per_s=packing) for name in "ab"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    b = Builder((1, 8, 64, 64))
    x = b.add("Relu", b.conv("x", 32, pads=[1] * 4))
    x = b.add("MaxPool", x, kernel_shape=[3, 3], pads=[1] * 4)
    x = b.conv(x, 32, pads=[1] * 4)
    return b.save(tmp_path_factory.mktemp("packing") / "m.onnx", b.conv(x, 8, pads=[1] * 4))


@pytest.fixture(scope="module")
def graph(model: Path) -> Graph:
    return load(model)[1]


def planned(graph: Graph, devices: list[Device], halos: Halos, **forced: Any) -> Plan:
    return compile_plan(graph, devices, model_name="m", halos=halos, **forced)


def codings(plan: Plan) -> set[str]:
    return {send.coding for program in plan.programs.values() for send in program.sends}


@pytest.mark.parametrize(
    ("halos", "found"), [("plain", {"plain"}), ("lossless", {"packed"}), ("half", {"half"})]
)
def test_slow_links_have_large_halos_packed_as_the_user_allows(
    graph: Graph, halos: Halos, found: set[str]
) -> None:
    plan = planned(graph, fleet(SLOW), halos, cuts=CUTS, layouts=ROWS)
    outputs = {"packed"} if halos == "half" else found  # an answer is not rounded
    assert codings(plan) == found | outputs
    assert all(block.codings == found for block in plan.blocks[1:])


@pytest.mark.parametrize(
    "devices",
    [fleet(FAST), fleet(SLOW, packing=0.0), fleet(SLOW, packing=1e4)],
    ids=["fast links", "devices that cannot", "devices that are slow at it"],
)
def test_nothing_is_packed_where_that_does_not_pay(graph: Graph, devices: list[Device]) -> None:
    assert codings(planned(graph, devices, "half", cuts=CUTS, layouts=ROWS)) == {"plain"}


def test_pieces_to_and_from_a_device_that_cannot_pack_stay_plain(graph: Graph) -> None:
    devices = [*fleet(SLOW), Device("c", 1e9, 1e10, SLOW, 1e-4, 1e-5)]
    plan = planned(graph, devices, "lossless", cuts=CUTS, layouts=[Shape(3, 1)] * 3)
    for program in plan.programs.values():
        for send in program.sends:
            assert (send.coding == "plain") == ("c" in {program.device, send.to})


def test_small_pieces_stay_plain(graph: Graph) -> None:
    packing = Packing(graph, fleet(SLOW), SLOW, "lossless")
    tensor = graph.nodes[1].outputs[0]
    assert packing.coding(tensor, 1e5, 0, 1) == "packed"
    assert packing.coding(tensor, 10.0, 0, 1) == "plain"


def test_what_is_expected_of_a_tensor_follows_what_made_it(graph: Graph) -> None:
    packing = Packing(graph, fleet(SLOW), SLOW, "lossless")
    conv, relu, pool = (node.outputs[0] for node in graph.nodes[:3])
    shares = [packing.share(name, "packed") for name in (relu, pool, conv)]
    assert shares == sorted(shares)
    assert shares[2] < packing.share(relu, "plain") == 1.0
    assert packing.share(relu, "half") < shares[0]


def test_packing_is_predicted_to_be_faster_and_never_slower(graph: Graph) -> None:
    for link in (1e5, SLOW, 1e7, 1e8, FAST):
        times = [
            planned(graph, fleet(link), halos).predicted_s
            for halos in ("plain", "lossless", "half")
        ]
        assert times[1] <= times[0] * 1.02
        assert times[2] <= times[1] * 1.02
    forced = {"cuts": CUTS, "layouts": ROWS}
    plain, lossless, half = (
        planned(graph, fleet(SLOW), halos, **forced) for halos in ("plain", "lossless", "half")
    )
    assert half.predicted_s < lossless.predicted_s < plain.predicted_s
    for packed, before in zip(lossless.blocks[1:], plain.blocks[1:], strict=True):
        assert packed.halo_bytes < before.halo_bytes


def test_slow_links_are_shared_out_to_more_devices_where_halos_are_packed(graph: Graph) -> None:
    link = next(
        link
        for link in np.geomspace(1e4, 1e8, 60)
        if len(planned(graph, fleet(link), "half").devices) == 2
    )
    assert len(planned(graph, fleet(link), "plain").devices) == 1


@pytest.mark.parametrize(("halos", "bound"), [("lossless", 0.0), ("half", 2e-3)])
def test_a_packed_plan_gives_the_answer_of_a_plain_one(
    model: Path, halos: Halos, bound: float
) -> None:
    packaged = package_model(model)
    image = seeded_input((1, 8, 64, 64), "float32", 3)
    answers, sent = {}, {}
    for chosen in ("plain", halos):
        plan = planned(packaged.graph, fleet(SLOW), chosen, cuts=CUTS, layouts=ROWS)
        local = LocalFleet(plan.programs, {**packaged.blobs, **plan.segments}, OPTIONS)
        (answers[chosen],) = local.infer(image).values()
        sent[chosen] = local.sent_bytes
    assert sent[halos] < 0.9 * sent["plain"]
    error = relative_error(answers["plain"], answers[halos])
    assert error <= bound
    assert (error > 0.0) == (halos == "half")
    assert relative_error(run_whole(model, [image], OPTIONS)[0], answers[halos]) <= max(bound, 1e-5)


def test_a_slower_packer_is_planned_with(graph: Graph) -> None:
    times = [
        planned(graph, fleet(SLOW, packing=rate), "lossless", cuts=CUTS, layouts=ROWS).predicted_s
        for rate in (1e9, 1e7, 4e6)
    ]
    assert times == sorted(times)
    assert times[0] < times[2]
