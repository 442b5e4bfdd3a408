"""What a coordinator makes of the file in which it keeps its deployments."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from agent.config import Config
from agent.service.coordinator import STATE_FILE, CoordinatorService

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def coordinator(folder: Path) -> Iterator[CoordinatorService]:
    service = CoordinatorService("boss", folder, Config(data_dir=folder), {})
    try:
        yield service
    finally:
        for executor in service._executors:
            executor.stop()
        for loop in (service.loop, service.transfer._loop):
            loop.stop()
            loop.run()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'[{"package": 1, "epoch": 2}]'])
def test_a_damaged_file_of_deployments_is_put_aside(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / STATE_FILE
    file.write_bytes(content)
    for _ in range(2):
        with coordinator(tmp_path) as service:
            assert service.details()["models"] == ()
    assert not file.exists()
    assert file.with_suffix(".damaged").read_bytes() == content
    (line,) = caplog.messages
    assert str(file) in line
    assert "deploy again" in line
