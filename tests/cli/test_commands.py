"""The commands as a user types them, where no fleet is needed."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from unittest import mock
from xml.etree import ElementTree as ET

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import models
from agent.adapters.local_broker import LocalBroker
from agent.cli import main
from models.vgg16 import WEIGHTS, build
from tests.conftest import need_mosquitto
from tests.field.support import WAIT_S, Outcome, clean_environment, command

if TYPE_CHECKING:
    from collections.abc import Iterator

DEFECTS = Path(models.__file__).parent / "defects.onnx"
COMMANDS = (
    "agent coordinator deploy remove devices infer plan verify bench drill demo".split()  # noqa: SIM905
)
# What each command needs beside its options; files are looked at before the broker is.
ARGUMENTS = {
    "deploy": [str(DEFECTS)],
    "remove": ["defects"],
    "infer": ["defects", str(DEFECTS)],
    "plan": [str(DEFECTS)],
    "verify": [str(DEFECTS)],
    "bench": [str(DEFECTS)],
    "drill": [str(DEFECTS)],
}
VERDICT = {"identical", "max_rel_error", "devices", "blocks", "distributed_share", "refused"}


class Run(Protocol):
    """Runs a command in this process."""

    def __call__(self, *arguments: object) -> Outcome:
        """Run it with these arguments."""


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command in this process: quicker than a process of its own, and as true."""
    for name in [name for name in os.environ if name.startswith("HALOMQ_")]:
        monkeypatch.delenv(name)

    def call(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["halomq", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        code = ended.value.code
        told = capsys.readouterr()
        return Outcome(code if isinstance(code, int) else 0, told.out, told.err)

    return call


@pytest.fixture(scope="module")
def thin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VGG-16 that is quick to verify."""
    return build(tmp_path_factory.mktemp("thin"), size=64, width=8, classes=10)


# Help --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_with_an_example(run: Run, name: str) -> None:
    told = run(name, "--help")
    assert told.status == 0
    assert f"Example: halomq {name}" in told.out


def test_help_lists_every_command(run: Run) -> None:
    told = run("--help")
    assert told.status == 0
    assert all(name in told.out for name in COMMANDS)


def test_the_module_is_the_command() -> None:
    told = subprocess.run(command("--help"), capture_output=True, text=True, check=True)
    assert all(name in told.stdout for name in COMMANDS)


# Plan --------------------------------------------------------------------------------------------


def test_plan_tells_blocks_tiles_bytes_and_time(run: Run) -> None:
    told = run("plan", DEFECTS, "--devices", 3, "--json")
    assert told.status == 0, told.err
    plan = told.json
    assert plan["model"] == "defects"
    assert plan["devices"] == ["device-1", "device-2", "device-3"]
    assert 0 < plan["predicted_ms"] < plan["single_device_ms"]
    assert plan["distributed_share"] == 1.0
    assert plan["undistributed"] == []
    assert plan["halo_bytes"] == sum(block["halo_bytes"] for block in plan["blocks"]) > 0
    layers = [layer for block in plan["blocks"] for layer in block["layers"]]
    assert len(layers) == len(set(layers))
    for block in plan["blocks"]:
        assert block["tiles"].keys() == set(block["devices"])
        assert block["compute_ms"] > 0


def test_plan_prints_a_table_and_what_is_not_shared(run: Run, thin: Path) -> None:
    # On a slow machine even this one is worth sharing.
    told = run("plan", thin, "--devices", 2, "--gflops", "0.1")
    assert told.status == 0, told.err
    assert "vgg16 on 2 device(s)" in told.out
    assert "of the arithmetic is shared" in " ".join(told.out.split())
    assert "not shared: Softmax 'prob'" in told.out


def test_plan_takes_one_device_where_links_are_too_slow(run: Run, thin: Path) -> None:
    told = run("plan", thin, "--link-mbit", "0.1", "--latency-ms", "100", "--json")
    assert told.json["devices"] == ["device-1"]
    assert told.json["predicted_ms"] == told.json["single_device_ms"]


def test_plan_gives_a_faster_device_the_larger_tile(run: Run) -> None:
    plan = run("plan", DEFECTS, "--devices", 2, "--gflops", "30,10", "--json").json
    rows = {}
    for device, tiles in plan["blocks"][0]["tiles"].items():
        _, region = tiles[0]
        rows[device] = region[2][1] - region[2][0]
    assert rows["device-1"] > 2 * rows["device-2"]


def test_plan_draws_itself(run: Run, tmp_path: Path) -> None:
    drawn = tmp_path / "plan.svg"
    assert run("plan", DEFECTS, "--svg", drawn).status == 0
    assert ET.parse(drawn).getroot().tag.endswith("svg")  # noqa: S314 - our own file


@pytest.mark.parametrize(
    "flag",
    [
        *(f"--gflops={rates}" for rates in ("fast", "20,", "0", "-1", "nan", "inf")),
        *(f"--link-mbit={rate}" for rate in ("0", "nan", "inf")),
        *(f"--latency-ms={time}" for time in ("-1", "nan", "inf")),
    ],
)
def test_plan_refuses_rates_that_are_none(run: Run, flag: str) -> None:
    run("plan", DEFECTS, flag).check_refused(2, flag.partition("=")[0])


def test_plan_splits_as_a_strategy_does(run: Run) -> None:
    ours = run("plan", DEFECTS, "--json").json
    plan = run("plan", DEFECTS, "--strategy", "modnn", "--json").json
    layers = [layer for block in plan["blocks"] for layer in block["layers"]]
    assert len(plan["blocks"]) == len(layers)
    assert plan["predicted_ms"] > ours["predicted_ms"]
    assert run("plan", DEFECTS, "--strategy", "single", "--json").json["devices"] == ["device-1"]


@pytest.mark.parametrize("name", ["plan", "verify", "deploy"])
def test_strategies_that_are_none_are_refused(run: Run, name: str) -> None:
    run(name, DEFECTS, "--strategy", "best").check_refused(2, "--strategy", "modnn")


@pytest.mark.parametrize("name", ["plan", "verify"])
def test_rivals_have_layouts_of_their_own(run: Run, name: str) -> None:
    told = run(name, DEFECTS, "--strategy", "modnn", "--layout", "grid")
    told.check_refused(2, "layout", "modnn")


# Verify ------------------------------------------------------------------------------------------


def test_verify_compares_several_strategies(run: Run, thin: Path) -> None:
    told = run("verify", thin, "--devices", 3, "--strategy", "modnn,halp", "--json")
    assert told.status == 0, told.err
    assert [found["strategy"] for found in told.json["runs"]] == ["modnn", "halp"]
    assert all(found["ok"] for found in told.json["runs"])


def test_verify_follows_the_strategy_of_the_manifest(run: Run, thin: Path, tmp_path: Path) -> None:
    for file in thin.parent.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    manifest = tmp_path / "vgg16.toml"
    text = manifest.read_text()
    manifest.write_text(f'strategy = "modnn"\n{text}')
    told = run("verify", tmp_path / thin.name)
    assert told.status == 0, told.err
    assert "(modnn)" in told.out


def test_verify_tells_how_a_split_model_compares(run: Run, thin: Path) -> None:
    told = run("verify", thin, "--devices", 3, "--json")
    assert told.status == 0, told.err
    verdict = told.json
    assert verdict.keys() >= VERDICT
    assert verdict["devices"] == 3
    assert verdict["blocks"] >= 1
    assert 0 < verdict["distributed_share"] <= 1
    assert verdict["max_rel_error"] <= 1e-5
    assert verdict["identical"] == (verdict["max_rel_error"] == 0)
    assert verdict["refused"] is None


def test_verify_says_it_in_words(run: Run) -> None:
    told = run("verify", DEFECTS, "--devices", 2)
    assert told.status == 0, told.err
    assert told.out.startswith("defects: ")
    assert "on 2 devices" in told.out


def test_verify_fails_beyond_the_tolerance(run: Run) -> None:
    # Less than no error is beyond reach, whatever rounding does on this machine.
    told = run("verify", DEFECTS, "--tolerance", "-1", "--json")
    assert told.status == 1
    assert told.json["ok"] is False
    assert told.json["refused"] is None
    assert 0 <= told.json["max_rel_error"] <= 1e-5


# Models that are refused -------------------------------------------------------------------------


def save_model(path: Path, node: onnx.NodeProto, batch: int | str = 1) -> None:
    """Write a model of one node, which may read the weights `w`."""
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.zeros((4, 3, 3, 3), np.float32), "w")],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("my", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)


def bad_model(folder: Path, kind: str, thin: Path) -> tuple[Path, str]:
    """Return a model that cannot be served, and a word that the message must have."""
    path = folder / "model.onnx"
    words = "not an ONNX model"
    match kind:
        case "text":
            path.write_text("this is no model\n")
        case "empty":
            path.write_bytes(b"")
        case "cut short":
            content = DEFECTS.read_bytes()
            path.write_bytes(content[: len(content) // 2])
        case "dynamic batch":
            save_model(path, helper.make_node("Conv", ["x", "w"], ["y"]), batch="n")
            words = "make_dynamic_shape_fixed"
        case "unknown operator":
            save_model(path, helper.make_node("Mystery", ["x"], ["y"], "odd", domain="my"))
            words = "Mystery 'odd'"
        case "no external data":
            shutil.copy(thin, path)
            words = WEIGHTS
        case "external data cut short":
            shutil.copy(thin, path)
            (folder / WEIGHTS).write_bytes(bytes(100))
            words = "cut short"
        case "folder":
            path.mkdir()
            words = "Is a directory"
        case "missing":
            words = "No such file"
    return path, words


BAD_MODELS = (
    "text",
    "empty",
    "cut short",
    "dynamic batch",
    "unknown operator",
    "no external data",
    "external data cut short",
    "folder",
    "missing",
)


@pytest.mark.parametrize("name", ["plan", "verify", "deploy"])
@pytest.mark.parametrize("kind", BAD_MODELS)
def test_a_model_that_cannot_be_served_is_refused(
    run: Run, tmp_path: Path, thin: Path, name: str, kind: str
) -> None:
    path, words = bad_model(tmp_path, kind, thin)
    run(name, path).check_refused(3, words)


def test_verify_says_in_json_why_it_refuses(run: Run, tmp_path: Path, thin: Path) -> None:
    path, words = bad_model(tmp_path, "dynamic batch", thin)
    told = run("verify", path, "--json")
    told.check_refused(3, words)
    assert told.json.keys() >= VERDICT
    assert words in told.json["refused"]
    assert not told.json["identical"]


@pytest.mark.parametrize("name", ["plan", "verify", "deploy"])
def test_a_manifest_that_is_wrong_is_refused(
    run: Run, tmp_path: Path, thin: Path, name: str
) -> None:
    shutil.copytree(thin.parent, tmp_path / "model")
    (tmp_path / "model" / "vgg16.toml").write_text('task = "guessing"\n')
    told = run(name, tmp_path / "model" / "vgg16.onnx")
    told.check_refused(2, "task", "vgg16.toml")


def test_a_name_that_no_topic_can_have_is_refused(run: Run) -> None:
    run("deploy", DEFECTS, "--name", "a/b").check_refused(2, "'a/b'")


def test_infer_refuses_a_file_that_is_not_there(run: Run, tmp_path: Path) -> None:
    run("infer", "defects", tmp_path / "nothing.jpg").check_refused(1, "nothing.jpg")


def test_infer_refuses_a_timeline_that_it_cannot_write_before_it_asks(run: Run) -> None:
    run("infer", "defects", DEFECTS, "--timeline", "drawn.png").check_refused(2, ".svg", ".html")
    nowhere = "/nowhere/drawn.svg"
    run("infer", "defects", DEFECTS, "--timeline", nowhere).check_refused(2, "/nowhere")


# Settings ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["agent", "coordinator", "devices"])
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("fleet = ", "not TOML"),
        ("[broker]\nhots = 'x'", "broker.hots: no such setting"),
        ("[broker]\nport = 'x'", "broker.port must be"),
        ("[broker]\npassword = 'x'", "a password does not belong here"),
        (None, "cannot be read"),
    ],
)
def test_a_settings_file_that_is_wrong_is_refused(
    run: Run, tmp_path: Path, name: str, text: str | None, words: str
) -> None:
    file = tmp_path / "halomq.toml"
    if text is not None:
        file.write_text(text)
    run(name, "--config", file).check_refused(2, "halomq.toml", words)


@pytest.mark.parametrize(
    ("variable", "words"),
    [
        ("HALOMQ_BROKER_PORT", "broker.port must be"),
        ("HALOMQ_BROKER_HOTS", "no such setting"),
        ("HALOMQ_DEVICE", "device must be"),
    ],
)
@pytest.mark.parametrize("name", ["agent", "coordinator", "devices"])
def test_a_variable_that_is_wrong_is_refused(
    run: Run, monkeypatch: pytest.MonkeyPatch, name: str, variable: str, words: str
) -> None:
    monkeypatch.setenv(variable, "a/b")
    run(name).check_refused(2, variable, words)


def test_an_agent_whose_data_directory_is_a_file_is_refused(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.write_text("")
    run("agent", "--data-dir", file).check_refused(6, str(file), "data_dir")


# Brokers that are not there ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def closed_port() -> Iterator[int]:
    """A port that nobody listens on and nobody else gets."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.fixture(scope="module")
def silent_port() -> Iterator[int]:
    """A port where connections are accepted and nothing is ever said."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture(scope="module", autouse=True)
def patient(
    closed_port: int, silent_port: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[tuple[str, int], subprocess.Popen[str]]]:
    """Processes without a broker: some try for a while, so they start before all tests."""
    folder = tmp_path_factory.mktemp("patient")
    started = {
        (role, port): subprocess.Popen(
            command(role, "--host", "127.0.0.1", "--port", port),
            env=clean_environment() | {"HALOMQ_DATA_DIR": str(folder / f"{role}-{port}")},
            stderr=subprocess.PIPE,
            text=True,
        )
        for role in ("agent", "coordinator", "devices")
        for port in (closed_port, silent_port)
    }
    yield started
    for process in started.values():
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.mark.parametrize("name", ["deploy", "remove", "devices", "infer"])
def test_a_broker_that_is_not_there_is_told(run: Run, name: str, closed_port: int) -> None:
    told = run(name, *ARGUMENTS.get(name, []), "--host", "127.0.0.1", "--port", closed_port)
    told.check_refused(5, f"127.0.0.1:{closed_port}", "is it running")


def test_a_host_that_is_not_known_is_told(run: Run) -> None:
    run("devices", "--host", "no-such-host.invalid").check_refused(5, "no-such-host.invalid")


def test_a_request_over_a_small_brokers_limit_is_told(run: Run, tmp_path: Path) -> None:
    need_mosquitto()
    config = tmp_path / "small.conf"
    config.write_text("max_packet_size 20000\nallow_anonymous true\nlistener 1883\n")
    large = tmp_path / "large"
    large.write_bytes(bytes(20_000))
    with LocalBroker.start(tmp_path / "broker", config=config) as broker:
        told = run("infer", "m", large, "--host", broker.host, "--port", broker.port)
    told.check_refused(5, "over the limit of 20000 bytes", "max_packet_size")


def test_without_a_coordinator_deploy_says_so(run: Run, broker: LocalBroker, fleet: str) -> None:
    flags = ("--host", broker.host, "--port", broker.port, "--fleet", fleet)
    run("deploy", DEFECTS, *flags).check_refused(7, "halomq coordinator")


# The demo ----------------------------------------------------------------------------------------


@pytest.mark.field
def test_the_demo_shares_a_model_and_survives_a_killed_agent(tmp_path: Path) -> None:
    need_mosquitto()
    model = build(tmp_path / "vgg", size=224, width=16, classes=10)
    output = tmp_path / "pictures"
    told = subprocess.run(
        command("demo", "--model", model, "--devices", 3, "--output", output, "--json"),
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=3 * WAIT_S,
    )
    assert told.returncode == 0, told.stderr
    report = json.loads(told.stdout)
    assert report["ok"] is True
    assert report["model"] == "vgg16"
    assert report["broker"] == "mosquitto"
    assert report["devices"] == 3
    assert set(report["devices_used"]) == {"device-1", "device-2", "device-3"}
    assert isinstance(report["identical"], bool)
    assert 0 <= report["max_rel_error"] <= 1e-5
    for key in ("latency_ms", "single_device_ms", "recovery_ms", "predicted_ms"):
        assert report[key] > 0, key
    assert report["killed"] in report["devices_used"]
    assert report["answer"] == report["single_device_answer"]
    assert {trace["device"] for trace in report["per_device"]} == set(report["devices_used"])
    assert (output / "vgg16.png").is_file()
    # What people read goes to stderr, so that stdout holds the object alone.
    assert "every answer was that of a single device" in told.stderr


def test_the_demo_refuses_a_model_that_is_not_there(run: Run, tmp_path: Path) -> None:
    told = run("demo", "--model", tmp_path / "nothing.onnx", "--json")
    told.check_refused(2, "nothing.onnx: no such file")
    assert told.json["ok"] is False
    assert "nothing.onnx" in told.json["error"]


def test_a_process_without_memory_ends_with_a_sentence(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.cli.app", mock.Mock(side_effect=MemoryError))
    run("agent").check_refused(1, "out of memory", "runtime.memory_limit_mb")


# Last, for they try for a while ------------------------------------------------------------------


@pytest.mark.parametrize("role", ["devices", "agent", "coordinator"])
@pytest.mark.parametrize("which", ["closed", "silent"])
def test_an_agent_without_a_broker_ends_and_says_why(
    patient: dict[tuple[str, int], subprocess.Popen[str]],
    closed_port: int,
    silent_port: int,
    role: str,
    which: str,
) -> None:
    process = patient[role, closed_port if which == "closed" else silent_port]
    _, err = process.communicate(timeout=WAIT_S)
    assert process.returncode == 5, err
    assert "Traceback" not in err
    last = err.strip().splitlines()[-1]
    assert last.startswith("halomq: ")
    assert ("cannot reach" if which == "closed" else "does not answer") in last
