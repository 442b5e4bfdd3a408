"""Log lines: one an event, with its fields."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from agent.adapters import logs
from agent.adapters.logs import log, settle, start_logging
from agent.adapters.throttle import OTHER_BURST, WINDOW_S, Throttle

if TYPE_CHECKING:
    import pytest


def test_a_line_holds_level_text_and_fields(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "8:1")
    start_logging("info", "pi-1")
    log("warning", "two\nlines", model="defects", request="r1", epoch=3)
    assert capsys.readouterr().err == (
        "warning: two lines device=pi-1 model=defects request=r1 epoch=3\n"
    )


def test_lower_levels_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    start_logging("warning", "pi-1")
    log("info", "not told")
    assert capsys.readouterr().err == ""


def test_lines_carry_the_time_outside_journald(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    start_logging("info", "pi-1")
    log("info", "hello")
    assert re.match(r"info: \d{4}-\d\d-\d\d .* hello device=pi-1\n", capsys.readouterr().err)


def test_a_flood_of_lines_is_cut_and_counted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(logs, "_THROTTLE", Throttle())
    monkeypatch.setattr("agent.adapters.logs.time.monotonic", lambda: now)
    start_logging("info", "pi-1")
    for number in range(OTHER_BURST + 7):
        log("warning", f"refused {number}")
    assert len(capsys.readouterr().err.splitlines()) == OTHER_BURST
    now += WINDOW_S
    settle()
    assert "warning: " in (line := capsys.readouterr().err)
    assert "... 7 more like this in the last 10 s: refused * device=pi-1" in line
