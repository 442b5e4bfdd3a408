"""Schedules: what every device computes, in which order, and what passes between devices.

A block is one task on each of its devices; or, where computing hides the exchange, several: the
borders of its tile that other devices need or that need what others send, each a task of its own,
and then the interior. Borders come first, so that they travel while the interior is computed; and
while the borders of the next block wait for what was sent, its interior can be computed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from agent.geometry import intersect, missing, size, whole
from agent.planner.cost import Work
from agent.planner.parts import Cutter
from agent.planner.receptive_field import Boxes, Demand, boxes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agent.geometry import Region
    from agent.planner.cost import Floats
    from agent.planner.dpfp import Choice, Search
    from agent.planner.packing import Packing
    from agent.planner.parts import Part
    from agent.planner.receptive_field import Reading
    from agent.wire.program import Coding


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """What a device computes at once: `outputs` of a block for row `row` of the boxes in `walked`.

    `device` is a rank. `walked` are the block's nodes, last one first. `parted` tells whether it is
    a part of the device's tile.
    """

    block: int
    device: int
    reads: dict[str, Region]
    writes: dict[str, Region]
    seconds: float
    walked: Sequence[Reading]
    row: int
    parted: bool


class Transfer(NamedTuple):
    """A region that one device (a rank) sends to another for block `block`.

    It travels in `coding`, which is expected to take `nbytes`.
    """

    block: int
    sender: int
    reader: int
    tensor: str
    region: Region
    nbytes: float
    coding: Coding = "plain"


@dataclass(slots=True)
class Schedule:
    """Tasks of each device in the order of their priority, and all transfers.

    `tiles` are each block's, by device; `flops` what its tasks compute together. `answers` are the
    regions that the first device needs in the end.
    """

    devices: int
    tasks: list[Task] = field(default_factory=list)
    transfers: list[Transfer] = field(default_factory=list)
    tiles: list[dict[int, list[tuple[str, Region]]]] = field(default_factory=list)
    flops: list[float] = field(default_factory=list)
    answers: dict[str, Region] = field(default_factory=dict)


class _Block(NamedTuple):
    """A block with the tiles of its layout: what they write, and what their devices have for it."""

    number: int
    choice: Choice
    tiles: dict[str, Boxes]
    reads: dict[str, Boxes]
    walked: list[Reading]
    seconds: Floats
    own: list[dict[str, list[Region]]]


def make_schedule(
    search: Search, choices: Sequence[Choice], packing: Packing | None = None
) -> Schedule:
    """Lay out the tasks and transfers of the chosen blocks.

    Args:
        search: whose choices they are.
        choices: the blocks.
        packing: how halos travel; None for as they are.
    """
    return _Scheduler(search, max(choice.shape.tiles for choice in choices), packing).run(choices)


class _Scheduler:
    def __init__(self, search: Search, devices: int, packing: Packing | None) -> None:
        self._search, self._graph, self._packing = search, search.graph, packing
        self._schedule = Schedule(devices)
        everything = whole(search.graph.shape(search.graph.input))
        self._held: list[dict[str, list[Region]]] = [
            {search.graph.input: [everything]} for _ in range(devices)
        ]
        self._owners: dict[str, list[tuple[int, Region]]] = {}

    def run(self, choices: Sequence[Choice]) -> Schedule:
        blocks = [self._block(number, choice) for number, choice in enumerate(choices)]
        graph, schedule = self._graph, self._schedule
        schedule.answers = {name: whole(graph.shape(name)) for name in graph.outputs}
        for name, region in schedule.answers.items():
            self._bring(len(blocks), name, region, 0)
        outgoing: dict[tuple[int, str], list[Region]] = {}
        for transfer in schedule.transfers:
            outgoing.setdefault((transfer.sender, transfer.tensor), []).append(transfer.region)
        for block in blocks:
            tasks = self._parts(block, outgoing) if block.choice.overlapped else []
            divided = {task.device for task in tasks}
            schedule.tasks += [*tasks, *self._whole(block, divided)]
        return schedule

    def _block(self, number: int, choice: Choice) -> _Block:
        """Walk a block for the tiles of its layout, and have what they read brought."""
        search = self._search
        rows = search.layouts.tiles_of(choice.layout)
        layers = search.layers[choice.start : choice.stop]
        made = {name for layer in layers for f in layer.fields for name in f.node.outputs}
        outputs = [name for name in search.live[choice.stop] if name in made]
        tiles = {name: search.layouts.tiles(name) for name in outputs}
        demand, work = Demand(search.graph, tiles), Work.none(search.layouts.device)
        walked = search.walk(choice, demand, work)
        borders = [(name, box) for part in (tiles, demand.boxes) for name, box in part.items()]
        seconds = search.compute_seconds(work, borders)
        own = [{name: list(r) for name, r in self._held[d].items()} for d in range(len(rows))]
        block = _Block(number, choice, tiles, demand.boxes, walked, seconds, own)
        for device, row in enumerate(rows):
            for name, box in sorted(demand.boxes.items()):
                self._bring(number, name, box.region(row), device)
        computed = {r.field.node.outputs[0]: r.computed for r in walked}
        for name, box in tiles.items():
            # What is divided into parts need not compute more than its tile.
            sure = box if choice.overlapped else computed.get(name, box)
            for device, row in enumerate(rows):
                self._held[device].setdefault(name, []).append(sure.region(row))
            self._owners[name] = [(device, box.region(row)) for device, row in enumerate(rows)]
        if search.rules.relayed:
            for name in tiles:
                self._relay(number + 1, name)
        schedule = self._schedule
        schedule.tiles.append(
            {d: [(name, b.region(row)) for name, b in tiles.items()] for d, row in enumerate(rows)}
        )
        schedule.flops.append(float(work.flops[list(rows)].sum()))
        return block

    def _relay(self, block: int, tensor: str) -> None:
        """Bring all of a tensor to the first device, which owns it from then on."""
        everything = whole(self._graph.shape(tensor))
        self._bring(block, tensor, everything, 0)
        self._owners[tensor] = [(0, everything)]

    def _bring(self, block: int, tensor: str, region: Region, reader: int) -> None:
        """Have the owners send what `reader` lacks of a region."""
        held = self._held[reader].setdefault(tensor, [])
        for gap in missing(region, held):
            for owner, tile in self._owners[tensor]:
                piece = intersect(gap, tile)
                if piece is not None:
                    transfer = self._transfer(block, owner, reader, tensor, piece)
                    self._schedule.transfers.append(transfer)
                    held.append(piece)

    def _transfer(
        self, block: int, sender: int, reader: int, tensor: str, region: Region
    ) -> Transfer:
        nbytes = float(size(region) * self._graph.itemsize(tensor))
        if self._packing is None:
            return Transfer(block, sender, reader, tensor, region, nbytes)
        coding = self._packing.coding(tensor, nbytes, sender, reader)
        nbytes *= self._packing.share(tensor, coding)
        return Transfer(block, sender, reader, tensor, region, nbytes, coding)

    def _whole(self, block: _Block, divided: set[int]) -> list[Task]:
        """Return one task for each device whose tile is not divided."""
        return [
            Task(
                block.number,
                device,
                {name: box.region(row) for name, box in sorted(block.reads.items())},
                _written(block.walked, block.tiles, row),
                float(block.seconds[row]),
                block.walked,
                row,
                parted=False,
            )
            for device, row in enumerate(self._search.layouts.tiles_of(block.choice.layout))
            if device not in divided
        ]

    def _parts(self, block: _Block, outgoing: Mapping[tuple[int, str], list[Region]]) -> list[Task]:
        """Return the tasks of the devices whose tiles are divided into borders and interior."""
        search, choice = self._search, block.choice
        cutter = Cutter(search, search.layers[choice.start : choice.stop])
        if not cutter.possible:
            return []
        parts: list[Part] = []
        for device, row in enumerate(search.layouts.tiles_of(choice.layout)):
            tile = {name: box.region(row) for name, box in block.tiles.items()}
            leaving = {name: outgoing.get((device, name), []) for name in tile}
            parts += cutter.cut(device, tile, leaving, block.own[device])
        tasks: list[tuple[Part, Task]] = []
        for names in dict.fromkeys(part.names for part in parts):
            alike = [part for part in parts if part.names == names]
            tasks += zip(alike, self._walk(block, alike), strict=True)
        tasks.sort(key=lambda pair: (pair[0].device, pair[0].order))
        return [task for _, task in tasks]

    def _walk(self, block: _Block, parts: Sequence[Part]) -> list[Task]:
        """Return the tasks of parts that write the same tensors."""
        search, choice = self._search, block.choice
        wanted = {name: boxes(part.regions[name] for part in parts) for name in parts[0].names}
        ranks = np.array([part.device for part in parts])
        demand, work = Demand(search.graph, wanted), Work.none(ranks)
        walked = search.walk(choice, demand, work)
        borders = [(name, box) for part in (wanted, demand.boxes) for name, box in part.items()]
        seconds = search.compute_seconds(work, borders)
        return [
            Task(
                block.number,
                part.device,
                {name: box.region(row) for name, box in sorted(demand.boxes.items())},
                _written(walked, wanted, row),
                float(seconds[row]),
                walked,
                row,
                parted=True,
            )
            for row, part in enumerate(parts)
        ]


def _written(walked: Sequence[Reading], wanted: Mapping[str, Boxes], row: int) -> dict[str, Region]:
    """Return what a task computes of the tensors that it is to write: at least what is wanted."""
    computed = {reading.field.node.outputs[0]: reading.computed for reading in walked}
    return {name: computed.get(name, box).region(row) for name, box in wanted.items()}


def halo_bytes(schedule: Schedule) -> list[int]:
    """Return the bytes that are expected to be sent before each block."""
    total = [0.0] * len(schedule.tiles)
    for transfer in schedule.transfers:
        if transfer.block < len(total):
            total[transfer.block] += transfer.nbytes
    return [round(nbytes) for nbytes in total]


def codings(schedule: Schedule) -> list[frozenset[Coding]]:
    """Return how halos before each block travel."""
    found: list[set[Coding]] = [set() for _ in schedule.tiles]
    for transfer in schedule.transfers:
        if transfer.block < len(found):
            found[transfer.block].add(transfer.coding)
    return [frozenset(names) for names in found]
