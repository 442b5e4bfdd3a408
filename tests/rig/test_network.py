"""The rig's network: namespaces with links of a true rate, of which nothing is left."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from agent.errors import FleetError
from benchmarks.rig import network
from benchmarks.rig.network import LINKS, LinkClass, Namespace, Network


def why_impossible() -> str | None:
    """Return why no network can be made here, None if it can."""
    try:
        network.check_possible()
        Namespace().close()
    except FleetError as error:
        return str(error)
    return None


IMPOSSIBLE = why_impossible()
needs_network = pytest.mark.skipif(IMPOSSIBLE is not None, reason=IMPOSSIBLE or "")


@needs_network
@pytest.mark.parametrize("rate", ["100mbit", "5mbit"])
def test_links_have_the_rate_of_their_class_in_both_directions(rate: str) -> None:
    with Network(LINKS[rate], ["one", "two"]) as made:
        figures = made.measure("one", "two")
    # Headers take 5 %; a busy machine may be slower than a link, but never faster.
    assert figures.up_mbit <= LINKS[rate].mbit
    assert figures.down_mbit <= LINKS[rate].mbit
    assert figures.up_mbit > 0.5 * LINKS[rate].mbit
    assert figures.down_mbit > 0.5 * LINKS[rate].mbit
    assert figures.round_trip_ms > 0


@needs_network
def test_each_place_sees_its_own_link_only() -> None:
    before = Path(network.OWN_NAMESPACE).readlink()
    with Network(LinkClass(100, 0), ["one", "two"]) as made:
        assert made.address("one") != made.address("two")
        with made.places["two"].inside():
            assert Path(network.OWN_NAMESPACE).readlink() != before
            assert {name for _, name in socket.if_nameindex()} == {"lo", "eth0"}
            shown = subprocess.run(
                ["ip", "-4", "address"], capture_output=True, text=True, check=True
            )
            assert made.address("two") in shown.stdout
    assert Path(network.OWN_NAMESPACE).readlink() == before


@needs_network
def test_nothing_is_left_of_a_network() -> None:
    interfaces = socket.if_nameindex()
    files = set(Path("/proc/self/fd").iterdir())
    with Network(LinkClass(100, 0), ["one", "two"]) as made:
        path = made.places["one"].path
        assert Path(path).exists()
    assert not Path(path).exists()
    assert len(set(Path("/proc/self/fd").iterdir())) == len(files)
    assert socket.if_nameindex() == interfaces


@needs_network
def test_a_delay_is_claimed_only_where_the_kernel_makes_it() -> None:
    with Network(LinkClass(20, 5.0), ["one", "two"]) as made:
        figures = made.measure("one", "two")
        assert made.delayed == (figures.round_trip_ms >= 20.0)


@needs_network
def test_a_network_that_cannot_be_made_says_what_failed() -> None:
    with pytest.raises(FleetError, match="cannot be made: tc qdisc add"):
        Network(LinkClass(0, 0), ["one"])


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(FleetError, match="needs root"):
        network.check_possible()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    with pytest.raises(FleetError, match="iproute2"):
        network.check_possible()
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(FleetError, match="needs Linux"):
        network.check_possible()
