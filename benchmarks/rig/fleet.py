"""Fleets of paced agents in the namespaces of a network, with the model's weights there already."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from agent.adapters.fleet import POLL_S, START_S, ProcessFleet
from agent.adapters.store import BlobStore
from agent.errors import FleetError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from agent.adapters.local_broker import LocalBroker
    from agent.packaging import PackagedModel
    from benchmarks.rig.network import Network

STOCK_BYTES = 1 << 40
MEASURED = "Gflop/s"


@dataclass(frozen=True)
class Site:
    """Where fleets are: a network with places for a broker, a coordinator and each device.

    `folder` keeps everybody's files; its `stock` is blobs that every process has from the start, as
    a device has that served the model before: shipping weights is not what is measured.
    """

    folder: Path
    network: Network
    broker: LocalBroker

    @property
    def stock(self) -> Path:
        """The folder of blobs that everybody has."""
        return stock_of(self.folder)


class RigFleet(ProcessFleet):
    """A fleet `title` of an agent at each place in `slowness`, that many times slower."""

    def __init__(
        self, site: Site, title: str, slowness: Mapping[str, float], settings: Mapping[str, str]
    ) -> None:
        common = {
            "HALOMQ_FLEET": title,
            "HALOMQ_RUNTIME_PACE_LOCK": str(site.folder / "pace.lock"),
        }
        super().__init__(
            site.folder / title,
            len(slowness),
            broker=site.broker,
            settings=common | dict(settings),
            own={name: {"HALOMQ_RUNTIME_SLOWNESS": f"{slow:g}"} for name, slow in slowness.items()},
        )
        self.names = tuple(slowness)
        self._site = site

    def __enter__(self) -> Self:
        """Start one process after the other: each measures its link and speed undisturbed."""
        try:
            self.start("coordinator")
            for name in self.names:
                self.start(name)
                self._wait_measured(name)
        except BaseException:
            self.stop()
            raise
        return self

    def start(self, name: str) -> None:
        """Start the agent or coordinator `name` at its place."""
        part = "coordinator/blobs" if name == "coordinator" else "blobs"
        blobs = self._folder / name / part
        blobs.mkdir(parents=True, exist_ok=True)
        for blob in self._site.stock.iterdir():
            target = blobs / blob.name
            if not target.exists():
                target.hardlink_to(blob)
        with self._site.network.places[name].inside():
            super().start(name)

    def _wait_measured(self, name: str) -> None:
        deadline = time.monotonic() + START_S
        while MEASURED not in self.log(name).read_text(errors="replace"):
            self.check()
            if time.monotonic() > deadline:
                raise FleetError(f"{name} does not come online; see {self.log(name)}")
            time.sleep(POLL_S)


def stock_of(folder: Path) -> Path:
    """Return where the stock of a site in `folder` is."""
    return folder / "stock"


def put_in_stock(packaged: PackagedModel, folder: Path) -> None:
    """Write a model's blobs to the stock of a site in `folder`."""
    store = BlobStore(stock_of(folder), STOCK_BYTES)
    for digest, content in packaged.blobs.items():
        store.put(digest, content)
