# ruff: noqa: PLC0415 - what runs confined is imported there, so that loading it is tested, too
"""The units: sound, tight enough, and not too tight for what runs in them; and the notifier."""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from agent.adapters.systemd import Notifier

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
UNITS = ("halomq-agent.service", "halomq-coordinator.service")
PROGRAM = "/opt/halomq/.venv/bin/halomq"
# Tenths, as `systemd-analyze security --threshold` wants it.
EXPOSURE = "15"


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.fail("this test needs systemd-analyze: apt-get install systemd")
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False)


def lines(unit: str) -> list[str]:
    text = (ROOT / "systemd" / unit).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def values(unit: str, name: str) -> list[str]:
    return [line.partition("=")[2] for line in lines(unit) if line.startswith(f"{name}=")]


@pytest.mark.parametrize("unit", UNITS)
def test_systemd_finds_no_fault(unit: str, tmp_path: Path) -> None:
    # The program is not installed here; all else is checked as it stands.
    text = (ROOT / "systemd" / unit).read_text(encoding="utf-8")
    assert text.count(PROGRAM) == 1
    copy = tmp_path / unit
    copy.write_text(text.replace(PROGRAM, sys.executable), encoding="utf-8")
    verified = analyze("verify", "--man=no", copy)
    assert verified.returncode == 0, verified.stderr
    # What systemd only warns of (an unknown option, say) does not change the status.
    assert unit not in verified.stderr


@pytest.mark.parametrize("unit", UNITS)
def test_exposure(unit: str) -> None:
    path = ROOT / "systemd" / unit
    judged = analyze("security", "--offline=true", "--no-pager", f"--threshold={EXPOSURE}", path)
    assert judged.returncode == 0, judged.stdout[-200:] + judged.stderr


@pytest.mark.parametrize("unit", UNITS)
def test_what_the_service_relies_on(unit: str) -> None:
    role = unit.removeprefix("halomq-").removesuffix(".service")
    for name, value in {
        "Type": "notify",
        "WatchdogSec": "30",
        "DynamicUser": "yes",
        "StateDirectory": f"halomq-{role}",
        "LoadCredential": f"broker-password:/etc/halomq/{role}.password",
        "Restart": "on-failure",
        # agent.errors.ConfigError
        "RestartPreventExitStatus": "2",
        "ExecStart": f"{PROGRAM} {role} --config /etc/halomq/halomq.toml",
    }.items():
        assert values(unit, name) == [value], name


def test_the_units_differ_in_nothing_but_their_role() -> None:
    agent, coordinator = (
        {line.replace(unit[len("halomq-") : -len(".service")], "ROLE") for line in lines(unit)}
        for unit in UNITS
    )
    apart = {line for line in agent ^ coordinator if not line.startswith("Description=")}
    assert apart == {"Environment=HALOMQ_DEVICE=ROLE-%l"}


def system_calls(name: str) -> set[str]:
    """Return the system calls of one of systemd's groups, with the groups in it."""
    if not name.startswith("@"):
        return {name}
    listed = analyze("syscall-filter", name)
    assert listed.returncode == 0, listed.stderr
    calls: set[str] = set()
    for line in map(str.strip, listed.stdout.splitlines()[1:]):
        if line and not line.startswith("#"):
            calls |= system_calls(line)
    return calls


@pytest.mark.parametrize("unit", UNITS)
def test_onnxruntime_runs_under_the_filters(unit: str) -> None:
    assert values(unit, "MemoryDenyWriteExecute") == ["yes"]
    assert values(unit, "SystemCallErrorNumber") == ["EPERM"]
    allowed = system_calls("@default")
    for value in values(unit, "SystemCallFilter"):
        calls = set().union(*map(system_calls, value.removeprefix("~").split()))
        allowed = allowed - calls if value.startswith("~") else allowed | calls
    program = [sys.executable, __file__, *sorted(allowed)]
    # Coverage in the child would want to write its data from inside the sandbox.
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}
    run = subprocess.run(
        program, capture_output=True, text=True, check=False, cwd=ROOT, env=environment
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == "works\n"
    assert "affinity" not in run.stderr


def confine(allowed: list[str]) -> None:
    """Do to this process what the units' filters do to theirs."""
    libc, seccomp = ctypes.CDLL(None, use_errno=True), ctypes.CDLL("libseccomp.so.2")
    set_mdwe, refuse_exec_gain, set_no_new_privs, allow, fail = 65, 1, 38, 0x7FFF0000, 0x00050000
    assert libc.prctl(set_no_new_privs, 1, 0, 0, 0) == 0
    # Memory that is writable and then executable: kernels before 6.3 have no such switch, and
    # systemd then does it with a filter.
    mdwe = libc.prctl(set_mdwe, refuse_exec_gain, 0, 0, 0) == 0
    assert mdwe or ctypes.get_errno() == errno.EINVAL
    seccomp.seccomp_init.restype = ctypes.c_void_p
    rules = ctypes.c_void_p(seccomp.seccomp_init(fail | errno.EPERM))
    for name in allowed:
        number = seccomp.seccomp_syscall_resolve_name(name.encode())
        # Negative: a call of another architecture.
        if number >= 0:
            assert seccomp.seccomp_rule_add(rules, allow, number, 0) == 0
    assert seccomp.seccomp_load(rules) == 0


def work() -> None:
    """Do what an agent does: load, compute with several threads, measure, connect, store."""
    import tempfile
    import threading

    import numpy as np
    import onnxruntime
    import psutil
    from onnx import TensorProto, helper, numpy_helper

    weights = numpy_helper.from_array(np.ones((8, 3, 3, 3), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Relu", ["c"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 32, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8, 30, 30])],
        [weights],
    )
    opset = helper.make_opsetid("", 17)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=8).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": np.ones((1, 3, 32, 32), np.float32)})
    assert float(y.max()) == 27.0
    psutil.sensors_temperatures()
    assert psutil.virtual_memory().total > 0
    assert psutil.getloadavg()
    with socket.create_server(("127.0.0.1", 0)) as server:
        accept = threading.Thread(target=server.accept)
        accept.start()
        with socket.create_connection(server.getsockname()) as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        accept.join()
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"blob")
        file.flush()
        os.fsync(file.fileno())
        moved = Path(file.name).replace(f"{file.name}.done")
        moved.replace(file.name)


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(10)
        yield listening


def test_notifications_arrive(supervisor: socket.socket) -> None:
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": supervisor.getsockname()})
    notifier.ready()
    notifier.status("two models,\n3 requests")
    notifier.watchdog()
    notifier.stopping()
    assert [supervisor.recv(1000) for _ in range(4)] == [
        b"READY=1",
        b"STATUS=two models, 3 requests",
        b"WATCHDOG=1",
        b"STOPPING=1",
    ]


def test_abstract_sockets() -> None:
    name = f"halomq-{uuid4().hex}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(f"\0{name}")
        listening.settimeout(10)
        Notifier.from_environment({"NOTIFY_SOCKET": f"@{name}"}).ready()
        assert listening.recv(100) == b"READY=1"


@pytest.mark.parametrize(
    ("environment", "interval"),
    [
        ({"NOTIFY_SOCKET": "/s", "WATCHDOG_USEC": "30000000"}, 15.0),
        ({"NOTIFY_SOCKET": "/s", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "self"}, 15.0),
        ({"NOTIFY_SOCKET": "/s", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"NOTIFY_SOCKET": "/s", "WATCHDOG_USEC": "0"}, None),
        ({"NOTIFY_SOCKET": "/s", "WATCHDOG_USEC": "soon"}, None),
        ({"NOTIFY_SOCKET": "/s"}, None),
        ({"WATCHDOG_USEC": "30000000"}, None),
        ({}, None),
    ],
)
def test_how_often_the_watchdog_wants_food(
    environment: dict[str, str], interval: float | None
) -> None:
    if environment.get("WATCHDOG_PID") == "self":
        environment = {**environment, "WATCHDOG_PID": str(os.getpid())}
    assert Notifier.from_environment(environment).interval_s == interval


def test_without_systemd_nothing_happens(caplog: pytest.LogCaptureFixture) -> None:
    for environment in ({}, {"NOTIFY_SOCKET": ""}):
        notifier = Notifier.from_environment(environment)
        notifier.ready()
        notifier.stopping()
    assert not caplog.records


@pytest.mark.parametrize("address", ["/nowhere/at/all", "/" + "x" * 200, "a\0b"])
def test_a_dead_supervisor_is_told_of_once(address: str, caplog: pytest.LogCaptureFixture) -> None:
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": address})
    with caplog.at_level(logging.WARNING):
        notifier.ready()
        notifier.watchdog()
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_supervisor_that_does_not_read_blocks_nobody(
    supervisor: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": supervisor.getsockname()})
    for _ in range(2000):
        notifier.watchdog()
    assert len(caplog.records) == 1


if __name__ == "__main__":
    confine(sys.argv[1:])
    work()
    sys.stdout.write("works\n")
