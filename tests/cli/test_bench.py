"""What `halomq bench` says of its figures; tests/field/test_bench.py has it measure some."""

from __future__ import annotations

from agent.bench import Figures
from agent.cli.bench import verdict

SINGLE = Figures("single", speedup=1.0, throughput_ratio=1.0)


def said(*figures: Figures, in_flight: int = 1) -> list[str]:
    return list(verdict([SINGLE, *figures], in_flight))


def test_the_best_is_named_and_what_is_slower_than_one_device() -> None:
    slow, fast = Figures("modnn", speedup=0.7), Figures("dpfp", speedup=2.5)
    assert said(slow, fast) == [
        "dpfp is the best: 2.50 times as fast as one device",
        "one device alone is faster than modnn",
    ]


def test_it_is_said_when_one_device_is_faster() -> None:
    (line,) = said(Figures("modnn", speedup=0.7), Figures("dpfp", speedup=0.9))
    assert line.startswith("one device alone is faster than every split")
    assert said()[0] == line


def test_with_several_in_flight_throughput_counts() -> None:
    late = Figures("dpfp", speedup=0.8, throughput_ratio=1.9)
    assert said(late, in_flight=4) == [
        "dpfp is the best: 1.90 times the requests per second of one device"
    ]


def test_what_failed_is_out_of_the_race() -> None:
    lines = said(Figures("halp", failure="no memory"), Figures("dpfp", speedup=1.5))
    assert lines[0].startswith("dpfp is the best")
    assert lines[1:] == ["halp failed: no memory"]
