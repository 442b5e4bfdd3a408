"""The benchmarks that need no fleet run; what they measure is not judged."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks import coverage

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
