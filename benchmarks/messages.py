"""What does a halo cost on its way? Time and buffers of each step that a message goes through.

`python -m benchmarks.messages --json`. One process sends border rows of a map to itself over a real
broker, with the code that agents run. Times are processor time of the calling thread, medians in
microseconds; `buffers` is how many payloads' worth of memory a step takes at its peak, what it
returns included: with one it copies once, with none it hands on what is there.
"""

from __future__ import annotations

import argparse
import json
import select
import statistics
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from agent.adapters.compute import gather
from agent.adapters.local_broker import LocalBroker
from agent.adapters.mqtt import Connected, Link, Received
from agent.config import BrokerConfig
from agent.geometry import size
from agent.wire.messages import Peer, Piece, decode_msgpack, encode_msgpack
from agent.wire.tensors import bytes_of
from agent.worker.events import Held

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.geometry import Region

T = TypeVar("T")
COLUMNS, DTYPE = 64, "float32"
KILOBYTES = (4, 64, 512)
TOPIC = "halomq/1/bench/device/here/halo"
STEPS = ("pack", "send", "receive", "unpack", "place")
WARM_UP, COUNTED = 5, 3


class Meter:
    """Collects what each step takes: processor time in us, or memory in bytes while `counting`."""

    def __init__(self) -> None:
        self.times: dict[str, list[float]] = {step: [] for step in STEPS}
        self.peaks: dict[str, list[float]] = {step: [] for step in STEPS}
        self.counting = False

    def step(self, name: str, work: Callable[[], T]) -> T:
        """Do a step's work."""
        if self.counting:
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
        started = time.thread_time()
        result = work()
        took = time.thread_time() - started
        if self.counting:
            self.peaks[name].append(tracemalloc.get_traced_memory()[1] - before)
        else:
            self.times[name].append(took * 1e6)
        return result


def wait(link: Link, *, write: bool = False) -> None:
    """Wait until the connection can be read from, or written to."""
    if link.socket is None:
        raise SystemExit("the connection to the broker is lost")
    sockets = [link.socket]
    select.select([] if write else sockets, sockets if write else [], [], 5.0)


def once(link: Link, region: Region, array: np.ndarray[Any, Any], meter: Meter) -> None:
    """Send one border through the broker and put it into the input of a step."""
    outer: Region = tuple((0, extent) for extent in array.shape)
    held = (Held(outer, array),)

    def pack() -> bytes:
        data = bytes_of(gather(region, DTYPE, held))
        return encode_msgpack(Piece("0" * 64, "request", "0" * 32, 7, region, data))

    def send() -> None:
        link.publish(TOPIC, payload)
        while link.wants_write:
            wait(link, write=True)
            link.write()

    def receive() -> None:
        while not any(isinstance(event, Received) for event in link.events):
            before = len(link.events)
            link.read()
            if len(link.events) == before:
                return

    payload = meter.step("pack", pack)
    meter.step("send", send)
    arrived: list[bytes] = []
    spent: float = 0.0
    peak: float = 0.0
    while not arrived:
        wait(link)
        meter.step("receive", receive)
        notes = meter.peaks if meter.counting else meter.times
        last = notes["receive"].pop()
        spent, peak = spent + last, max(peak, last)
        arrived = [e.payload for e in link.events if isinstance(e, Received)]
        link.events.clear()
    (meter.peaks if meter.counting else meter.times)["receive"].append(
        peak if meter.counting else spent
    )
    piece = meter.step("unpack", lambda: decode_msgpack(arrived[0], Peer))
    rest = Held(outer, array)
    there = Held(piece.region, piece.data)
    meter.step("place", lambda: gather(outer, DTYPE, (rest, there)))


def connected(broker: LocalBroker) -> Link:
    """Return a connection that gets what it sends."""
    link = Link("halomq-bench", BrokerConfig(host=broker.host, port=broker.port))
    link.subscribe(TOPIC)
    link.connect()
    while not any(isinstance(event, Connected) for event in link.events):
        wait(link)
        link.read()
    return link


def measure(link: Link, kilobytes: int, messages: int) -> dict[str, Any]:
    """Return the figures of each step for messages of one size."""
    channels = kilobytes * 1024 // (COLUMNS * 4)
    array = np.zeros((1, channels, 8, COLUMNS), np.float32)
    region: Region = ((0, 1), (0, channels), (7, 8), (0, COLUMNS))
    nbytes = size(region) * 4
    meter = Meter()
    for _ in range(WARM_UP + messages):
        once(link, region, array, meter)
    tracemalloc.start()
    meter.counting = True
    for _ in range(COUNTED):
        once(link, region, array, meter)
    tracemalloc.stop()
    # The input of a step is one buffer that there would be without any message, too.
    peaks = {step: statistics.median(meter.peaks[step]) for step in STEPS}
    peaks["place"] -= array.nbytes
    return {
        "nbytes": nbytes,
        "us": {s: round(statistics.median(meter.times[s][WARM_UP:]), 1) for s in STEPS},
        "buffers": {step: round(max(0.0, peaks[step]) / nbytes, 2) for step in STEPS},
    }


def run(messages: int) -> dict[str, Any]:
    """Measure and return the figures by kB."""
    with (
        tempfile.TemporaryDirectory(prefix="halomq-messages-") as name,
        LocalBroker.start(Path(name), allow_embedded=False) as broker,
    ):
        link = connected(broker)
        figures = {str(k): measure(link, k, messages) for k in KILOBYTES}
        link.close()
    return figures


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    figures = run(arguments.messages)
    if arguments.json:
        print(json.dumps(figures, indent=2))
        return
    print(f"{'kB':>5} {'':8}" + "".join(f"{step:>10}" for step in STEPS))
    for kilobytes, told in figures.items():
        for kind in ("us", "buffers"):
            values = "".join(f"{told[kind][step]:10.2f}" for step in STEPS)
            print(f"{kilobytes:>5} {kind:8}{values}")


if __name__ == "__main__":
    main()
