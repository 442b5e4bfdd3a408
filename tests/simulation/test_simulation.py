"""Thousands of schedules of failures, each from one seed, and each ends in kept promises."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.simulation.schedule import play

CHUNK = 250
CHUNKS = 8


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_no_seed_breaks_a_promise(chunk: int) -> None:
    answers = 0
    for seed in range(chunk * CHUNK, (chunk + 1) * CHUNK):
        outcome = play(seed)
        story = "\n".join(outcome.story)
        assert outcome.broken is None, f"seed {seed}: {outcome.broken}\n{story}"
        answers += outcome.answers
    # In some schedules the model is never there; in most, requests are answered.
    assert answers > 4 * CHUNK


def test_a_seed_replays() -> None:
    assert play(11, trace=True) == play(11, trace=True)
    assert play(11).events != play(12).events


def test_a_trace_changes_nothing() -> None:
    assert replace(play(7, trace=True), trace=[]) == play(7)
