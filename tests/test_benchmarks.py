"""The benchmarks that need no fleet run; what they measure is not judged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from agent.packaging import package_model
from benchmarks import coverage, paper
from benchmarks.paper_figure import draw
from models.vgg16 import build

if TYPE_CHECKING:
    from pathlib import Path


def test_coverage_measures_models_and_says_what_fails(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_text("no model")
    names = ["espcn", str(tmp_path / "broken.onnx")]
    good, bad = coverage.run(names, tmp_path, small=True)
    assert good["model"] == "espcn"
    assert good["operators"] == ["Conv", "DepthToSpace", "Relu"]
    assert good["speedup"].keys() == {"2", "4", "8"}
    assert good["max_rel_error"] <= 1e-5
    assert "not an ONNX model" in bad["error"]
    table = coverage.markdown([good, bad]).splitlines()
    assert len(table) == 4
    assert len({line.count("|") for line in table}) == 1


def test_a_model_is_built_once(tmp_path: Path) -> None:
    path = coverage.find("espcn", tmp_path, small=True)
    written = path.stat().st_mtime_ns
    assert coverage.find("espcn", tmp_path, small=True).stat().st_mtime_ns == written


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return paper_figures(tmp_path_factory.mktemp("vgg"))


def paper_figures(folder: Path) -> dict[str, Any]:
    path = build(folder, size=64, width=8, classes=10)
    return paper.run(
        package_model(path).graph,
        platforms={"slow": 1e10, "fast": 1e12},
        gbit_per_s=(1, 10),
        servers=(2, 4),
        channel=paper.Channel(requests=500, upload_bytes=150_000),
    )


def test_the_papers_dpfp_is_never_slower_than_its_rivals(figures: dict[str, Any]) -> None:
    assert len(figures["scenarios"]) == 8
    for scenario in figures["scenarios"]:
        taken = scenario["ms"]
        assert taken["dpfp-paper"] <= taken["single"]
        assert taken["dpfp-paper"] < taken["modnn"]
    assert figures["always_ahead_of_modnn"]
    assert figures["best"]["speedup"] > 1.73


def test_more_servers_and_faster_links_never_harm_dpfp(figures: dict[str, Any]) -> None:
    taken = {
        (s["platform"], s["gbit_per_s"], s["servers"]): s["ms"]["dpfp-paper"]
        for s in figures["scenarios"]
    }
    for (platform, rate, servers), ms in taken.items():
        assert ms <= taken[platform, 1, servers]
        assert ms <= taken[platform, rate, 2]


def test_what_the_paper_claims_is_reached_where_it_is_said_to_be(figures: dict[str, Any]) -> None:
    for name, speedup in paper.READINGS.items():
        for scenario in figures["scenarios"]:
            place = f"{scenario['platform']}, {scenario['gbit_per_s']} Gbit/s"
            least = figures["reached_with"][name][place]
            reached = least is not None and scenario["servers"] >= least
            assert reached == (scenario["speedup"] >= round(speedup, 3))


def test_reliability_grows_with_the_deadline_and_with_speed(figures: dict[str, Any]) -> None:
    for shares in figures["reliability"].values():
        for curve in shares.values():
            assert curve == sorted(curve)
            assert 0 <= curve[0] < curve[-1] <= 1
        pairs = list(zip(shares["dpfp-paper"], shares["modnn"], strict=True))
        assert all(ours >= theirs for ours, theirs in pairs)
        assert any(ours > theirs for ours, theirs in pairs)


def test_the_papers_figures_come_out_again(figures: dict[str, Any], tmp_path: Path) -> None:
    again = paper_figures(tmp_path)
    assert again == figures
    assert draw(again) == draw(figures)


def test_the_figure_draws_every_curve(figures: dict[str, Any]) -> None:
    assert draw(figures).count("<polyline") == 3 * (4 + 2)
