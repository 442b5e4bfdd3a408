"""Calibration on a device: probes run while there is nothing to serve, and nothing twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.wire.calibration import Timing, Timings
from agent.wire.messages import Calibrate, Calibrated
from agent.worker import events as ev
from tests.builders import chain, header_of, only, ref
from tests.worker.test_core import KEY, PROGRAMS, ROWS, Device

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pytest

PROBES = ref("probes")
ASK = Calibrate("m", "boss", "store", PROBES, budget_s=1.0)
TIMING = Timing(2e-3, 1e-3)
RUNTIME = "a processor"
ALONE = chain([{"a": (0, ROWS)}], ROWS, "a")


def asked(device: Device, count: int = 3, known: Timings | None = None) -> list[ev.Effect]:
    """Bring a calibration to where its probes are read."""
    device.do(ev.CalibrationAsked(ASK))
    device.do(ev.Fetched("probes/m"))
    return device.do(ev.ProbesRead("m", PROBES.digest, count, RUNTIME, known))


def ran(device: Device, index: int, timing: Timing | None = TIMING) -> list[ev.Effect]:
    return device.do(ev.ProbeRan("m", PROBES.digest, index, timing, 0.125))


def probing(effects: Iterable[ev.Effect]) -> list[int]:
    return [job.index for job in only(ev.RunProbe, effects)]


def told(effects: Iterable[ev.Effect]) -> list[tuple[str, object]]:
    return [(tell.device, tell.message) for tell in only(ev.Tell, effects)]


def test_probes_are_fetched_read_run_and_told() -> None:
    device = Device()
    assert only(ev.Fetch, device.do(ev.CalibrationAsked(ASK))) == [
        ev.Fetch("probes/m", {PROBES.digest: PROBES.nbytes}, "store")
    ]
    assert device.do(ev.Fetched("probes/m")) == [ev.ReadProbes("m", PROBES)]
    effects = device.do(ev.ProbesRead("m", PROBES.digest, 2, RUNTIME, None))
    assert probing(effects) == [0]
    assert probing(ran(device, 0)) == [1]
    effects = ran(device, 1, None)
    timings = Timings(PROBES.digest, RUNTIME, (TIMING, None))
    assert only(ev.KeepTimings, effects) == [ev.KeepTimings(timings)]
    assert told(effects) == [("boss", Calibrated("a", "m", timings))]
    assert not probing(effects)


def test_what_was_measured_before_is_told_at_once() -> None:
    known = Timings(PROBES.digest, RUNTIME, (TIMING,) * 3)
    effects = asked(Device(), known=known)
    assert told(effects) == [("boss", Calibrated("a", "m", known))]
    assert not probing(effects)
    assert not only(ev.KeepTimings, effects)


def test_a_request_goes_first_and_probes_wait_until_it_is_answered() -> None:
    device = Device()
    device.serve(header_of(PROGRAMS), PROGRAMS["a"])
    assert probing(asked(device)) == [0]
    assert not only(ev.Decode, device.ask()), "the executor is busy with the probe"
    effects = ran(device, 0)
    assert only(ev.Decode, effects)
    assert not probing(effects)
    effects = device.decoded()
    assert only(ev.Run, effects)
    effects = device.finish(only(ev.Run, effects)[0], PROGRAMS["a"])
    assert not probing(effects), "the device waits for others' pieces, and must be ready for them"
    assert probing(device.do(ev.ResultSeen(KEY))) == [1]


def test_probes_wait_while_a_plan_is_prepared() -> None:
    device = Device()
    device.do(ev.PlanOffered(header_of(ALONE)))
    assert not probing(asked(device))
    device.do(ev.Fetched(f"{header_of(ALONE).digest}/program"))
    device.do(ev.PlanRead(header_of(ALONE).digest, ALONE["a"], None))
    device.do(ev.Fetched(f"{header_of(ALONE).digest}/blobs"))
    assert probing(device.do(ev.Loaded(header_of(ALONE).digest))) == [0]


def test_the_budget_ends_a_calibration() -> None:
    device = Device()
    asked(device, count=100)
    for index in range(7):
        assert probing(ran(device, index)) == [index + 1]
    effects = ran(device, 7)
    [(_, message)] = told(effects)
    assert isinstance(message, Calibrated)
    assert message.timings.timings == (TIMING,) * 8 + (None,) * 92
    assert not probing(effects)


def test_an_ask_that_is_repeated_measures_nothing_twice() -> None:
    device = Device()
    asked(device, count=2)
    assert device.do(ev.CalibrationAsked(ASK)) == []
    assert probing(ran(device, 0)) == [1]
    assert len(told(ran(device, 1))) == 1


def test_a_model_that_is_removed_is_not_measured_further() -> None:
    device = Device()
    asked(device)
    assert ev.CancelFetch("probes/m") in device.do(ev.PlanAnnounced("m", None))
    assert not probing(ran(device, 0))


def test_probes_that_cannot_be_had_are_given_up() -> None:
    for event in (
        ev.FetchFailed("probes/m", "its holder is gone"),
        ev.ProbesFailed("m", PROBES.digest, "damaged"),
    ):
        device = Device()
        device.do(ev.CalibrationAsked(ASK))
        [log] = device.do(event)
        assert isinstance(log, ev.Log)
        assert log.level == "warning"
        assert only(ev.Fetch, device.do(ev.CalibrationAsked(ASK))), "a later ask tries again"


def test_only_so_many_models_are_calibrated_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.worker.calibration.MAX_OPEN", 1)
    device = Device()
    assert only(ev.Fetch, device.do(ev.CalibrationAsked(ASK)))
    more = Calibrate("more", "boss", "store", PROBES, budget_s=1.0)
    assert only(ev.Fetch, device.do(ev.CalibrationAsked(more))) == []
