"""Simulates a schedule: when each task runs and each message travels, on these devices and links.

A discrete-event simulation with the executor of an agent: one task at a time, of all that are ready
the earliest by request and order. A message crosses its sender's link, the broker's link in and
out, and its reader's link; each is used by one message after the other, and the broker sends a
chunk on when it has all of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import TYPE_CHECKING, NamedTuple

from agent.geometry import intersect, shape_of, size
from agent.planner.cost import UNEVEN
from agent.planner.packing import piece_s
from agent.spans import Span
from agent.wire.messages import CHUNK_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.geometry import Region
    from agent.planner.cost import Device
    from agent.planner.graph import Graph
    from agent.planner.schedule import Schedule

_AXES = 2


@dataclass(frozen=True, slots=True)
class Simulated:
    """What is predicted: seconds until the last request is answered, and when tasks start.

    `starts` are those of the schedule's tasks for the first request, `spans` what all devices do
    for it.
    """

    seconds: float
    starts: tuple[float, ...]
    spans: tuple[Span, ...]


class _Dependencies(NamedTuple):
    """What waits for what: jobs are tasks (0..T-1), then transfers, then the answer.

    `copied` are the bytes that a task first puts together from pieces, `late` the seconds by which
    a transfer is later than predicted on an uneven fleet.
    """

    waits: list[int]
    followers: list[list[int]]
    copied: list[float]
    late: list[float]


def simulate(
    schedule: Schedule,
    graph: Graph,
    devices: Sequence[Device],
    broker_bytes_per_s: float,
    requests: int = 1,
) -> Simulated:
    """Predict how long `requests` requests take that arrive together.

    Args:
        schedule: what the devices do for each.
        graph: the model.
        devices: by rank.
        broker_bytes_per_s: rate of the broker's link in each direction.
        requests: how many.
    """
    return _Simulation(schedule, graph, devices, broker_bytes_per_s, requests).run()


@dataclass(slots=True)
class _Device:
    """A device's executor, links and packers: what is ready, and until when each is in use."""

    ready: list[tuple[int, int]] = field(default_factory=list)
    busy: bool = False
    up: float = 0.0
    down: float = 0.0
    packer: float = 0.0
    unpacker: float = 0.0


class _Simulation:
    def __init__(
        self,
        schedule: Schedule,
        graph: Graph,
        devices: Sequence[Device],
        broker: float,
        requests: int,
    ) -> None:
        self._schedule, self._graph, self._known = schedule, graph, devices
        self._broker, self._requests = broker, requests
        self._tasks = len(schedule.tasks)
        self._answer = self._tasks + len(schedule.transfers)
        self._depends = _dependencies(schedule, graph)
        self._waits = [list(self._depends.waits) for _ in range(requests)]
        self._devices = [_Device() for _ in range(schedule.devices)]
        self._inward = self._outward = 0.0
        self._events: list[tuple[float, int, int, int]] = []
        self._starts = [0.0] * self._tasks
        self._spans: list[Span] = []
        self._count = 0
        self._end = 0.0

    def run(self) -> Simulated:
        for request in range(self._requests):
            for job, waits in enumerate(self._depends.waits):
                if waits == 0:
                    self._due(0.0, request, job)
        for device in range(len(self._devices)):
            self._next(0.0, device)
        while self._events:
            now, _, request, job = heappop(self._events)
            self._finished(now, request, job)
        return Simulated(self._end, tuple(self._starts), tuple(self._spans))

    def _finished(self, now: float, request: int, job: int) -> None:
        for follower in self._depends.followers[job]:
            self._waits[request][follower] -= 1
            if self._waits[request][follower] == 0:
                self._due(now, request, follower)
                if follower < self._tasks:
                    self._next(now, self._schedule.tasks[follower].device)
        if job < self._tasks:
            device = self._schedule.tasks[job].device
            self._devices[device].busy = False
            self._next(now, device)

    def _due(self, now: float, request: int, job: int) -> None:
        if job == self._answer:
            self._end = max(self._end, now)
        elif job < self._tasks:
            heappush(self._devices[self._schedule.tasks[job].device].ready, (request, job))
        else:
            self._send(now, request, job)

    def _next(self, now: float, device: int) -> None:
        state = self._devices[device]
        if state.busy or not state.ready:
            return
        request, job = heappop(state.ready)
        task, known = self._schedule.tasks[job], self._known[device]
        end = now + task.seconds + self._depends.copied[job] / known.memory_bytes_per_s
        state.busy = True
        self._post(end, request, job)
        if request == 0:
            self._starts[job] = now
            name, region = next(iter(task.writes.items()))
            label = f"block {task.block}: {name} {_extent(region)}"
            self._spans.append(Span(known.id, "compute", now, end, label))

    def _send(self, now: float, request: int, job: int) -> None:
        transfer = self._schedule.transfers[job - self._tasks]
        sender, reader = self._devices[transfer.sender], self._devices[transfer.reader]
        source, target = self._known[transfer.sender], self._known[transfer.reader]
        nbytes = transfer.nbytes
        chunk = min(nbytes, CHUNK_BYTES)
        due = now + self._depends.late[job - self._tasks]
        packed = transfer.coding != "plain"
        plain = float(size(transfer.region) * self._graph.itemsize(transfer.tensor))
        if packed:
            due = sender.packer = max(due, sender.packer) + piece_s(plain, source)
        start = max(due, sender.up)
        sender.up = start + nbytes / source.link_bytes_per_s
        self._inward = max(sender.up, self._inward + nbytes / self._broker)
        out = max(self._inward + chunk / self._broker, self._outward + nbytes / self._broker)
        self._outward = out
        slower = max(0.0, chunk / target.link_bytes_per_s - chunk / self._broker)
        reader.down = max(out + slower, reader.down + nbytes / target.link_bytes_per_s)
        arrival = reader.down + (source.link_latency_s + target.link_latency_s) / 2
        if packed:
            arrival = reader.unpacker = max(arrival, reader.unpacker) + piece_s(plain, target)
        self._post(arrival, request, job)
        if request == 0:
            label = f"{transfer.tensor} {_extent(transfer.region)}"
            self._spans += [
                Span(source.id, "send", start, sender.up, label, target.id, round(nbytes)),
                Span(target.id, "receive", start, arrival, label, source.id, round(nbytes)),
            ]

    def _post(self, at: float, request: int, job: int) -> None:
        self._count += 1
        heappush(self._events, (at, self._count, request, job))


class _Waiting:
    """Finds what waits for what."""

    def __init__(self, schedule: Schedule) -> None:
        tasks, transfers = schedule.tasks, schedule.transfers
        self._makers: dict[tuple[int, str], list[tuple[Region, int]]] = {}
        for job, task in enumerate(tasks):
            for name, region in task.writes.items():
                self._makers.setdefault((task.device, name), []).append((region, job))
        for job, transfer in enumerate(transfers, start=len(tasks)):
            key = (transfer.reader, transfer.tensor)
            self._makers.setdefault(key, []).append((transfer.region, job))
        jobs = len(tasks) + len(transfers) + 1
        self.waits = [0] * jobs
        self.followers: list[list[int]] = [[] for _ in range(jobs)]

    def wait(self, job: int, device: int, name: str, region: Region) -> list[int]:
        """Have a job wait for all that makes a region on a device; return these jobs."""
        makers = self._makers.get((device, name), ())
        found = [maker for made, maker in makers if maker != job and intersect(made, region)]
        for maker in found:
            self.followers[maker].append(job)
        self.waits[job] += len(found)
        return found


def _dependencies(schedule: Schedule, graph: Graph) -> _Dependencies:
    waiting = _Waiting(schedule)
    copied = [
        sum(
            float(size(region) * graph.itemsize(name))
            for name, region in task.reads.items()
            if len(waiting.wait(job, task.device, name, region)) > 1
        )
        for job, task in enumerate(schedule.tasks)
    ]
    late = [0.0] * len(schedule.transfers)
    for number, transfer in enumerate(schedule.transfers):
        job = len(copied) + number
        for maker in waiting.wait(job, transfer.sender, transfer.tensor, transfer.region):
            if maker < len(copied):
                late[number] = max(late[number], UNEVEN * schedule.tasks[maker].seconds)
    for name, region in schedule.answers.items():
        waiting.wait(len(waiting.waits) - 1, 0, name, region)
    return _Dependencies(waiting.waits, waiting.followers, copied, late)


def _extent(region: Region) -> str:
    return "x".join(map(str, shape_of(region)[-_AXES:]))
