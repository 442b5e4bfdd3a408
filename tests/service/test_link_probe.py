"""The link probe: one echo at a time, and the quickest ones count."""

from __future__ import annotations

import pytest

from agent.service.link_probe import (
    LARGE_BYTES,
    LARGE_ECHOES,
    SMALL_BYTES,
    SMALL_ECHOES,
    TIMEOUT_S,
    LinkProbe,
)

TOTAL = SMALL_ECHOES + LARGE_ECHOES


def send(probe: LinkProbe, now: float) -> bytes:
    payload = probe.next_payload(now)
    assert payload is not None
    return payload


def measured(small: list[float], large: list[float]) -> LinkProbe:
    """Return a probe whose first echoes took these times, and the others longer ones."""
    probe, now = LinkProbe(), 100.0
    small = small + [max(small) + 1] * (SMALL_ECHOES - len(small))
    large = large + [max(large) + 1] * (LARGE_ECHOES - len(large))
    for seconds in small + large:
        payload = send(probe, now)
        now += seconds
        probe.take(payload, now)
    return probe


def test_small_echoes_come_first_then_large_ones() -> None:
    probe, sizes = LinkProbe(), []
    while not probe.done:
        payload = send(probe, 0.0)
        sizes.append(len(payload))
        probe.take(payload, 0.0)
    assert sizes == [SMALL_BYTES] * SMALL_ECHOES + [LARGE_BYTES] * LARGE_ECHOES
    assert probe.next_payload(0.0) is None


def test_every_echo_is_another() -> None:
    probe, seen = LinkProbe(), set()
    while not probe.done:
        payload = send(probe, 0.0)
        seen.add(payload[:2])
        probe.take(payload, 0.0)
    assert len(seen) == TOTAL


def test_the_quickest_echoes_count() -> None:
    probe = measured([0.5, 0.002, 0.3], [0.9, 0.102])
    assert probe.latency_s == pytest.approx(0.002)
    assert probe.bytes_per_s == pytest.approx(2 * LARGE_BYTES / 0.1)


def test_a_link_without_any_delay_has_a_finite_rate() -> None:
    probe = measured([0.001], [0.001])
    assert probe.bytes_per_s == pytest.approx(2 * LARGE_BYTES / 1e-6)


def test_other_messages_are_ignored() -> None:
    probe = LinkProbe()
    first = send(probe, 0.0)
    probe.take(b"", 1.0)
    probe.take(b"\x00", 1.0)
    probe.take(b"\x00\x07" + first[2:], 1.0)
    assert send(probe, 0.0) == first
    probe.take(first, 1.0)
    second = send(probe, 1.0)
    probe.take(first, 2.0)
    assert send(probe, 2.0) == second


def test_an_echo_after_the_last_is_ignored() -> None:
    probe = measured([0.1], [0.2])
    probe.take(b"\x00\x00", 1000.0)
    assert probe.done
    assert probe.latency_s == pytest.approx(0.1)


def test_a_lost_echo_starts_the_measurement_anew() -> None:
    probe = LinkProbe()
    first = send(probe, 0.0)
    probe.take(first, 0.001)
    send(probe, 1.0)
    assert not probe.overdue(1.0 + TIMEOUT_S)
    assert probe.overdue(1.1 + TIMEOUT_S)
    assert send(probe, 20.0) == first
    assert not probe.overdue(20.1)


def test_a_finished_measurement_is_never_overdue() -> None:
    assert not measured([0.1], [0.2]).overdue(1e9)
