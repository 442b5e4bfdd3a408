"""Log lines: one an event, with its fields."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from agent.adapters.logs import log, start_logging

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
