"""Programs: from the chosen blocks to what each device runs, sends and answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from agent.errors import ModelError
from agent.geometry import intersect, missing, shape_of, size, whole
from agent.planner.cost import Work
from agent.planner.receptive_field import Demand
from agent.planner.segments import build_segment
from agent.wire.program import Part, Program, SegmentSpec, Send, Step, TensorSpec, blob_ref

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agent.geometry import Region
    from agent.planner.dpfp import Choice, Search
    from agent.planner.segments import Segment


@dataclass(slots=True)
class CompiledBlock:
    """What one block became: its tiles by device, and the bytes sent before it runs."""

    choice: Choice
    tiles: dict[str, list[tuple[str, Region]]] = field(default_factory=dict)
    halo_bytes: int = 0
    flops: float = 0.0


@dataclass(slots=True)
class Compiled:
    """Programs by device, segments by digest, and the blocks that they came from."""

    programs: dict[str, Program]
    segments: dict[str, bytes]
    blocks: list[CompiledBlock]
    memory: dict[str, int]


def compile_programs(search: Search, choices: Sequence[Choice], model: str) -> Compiled:
    """Turn the chosen blocks into one program per device."""
    compiler = _Compiler(search, choices, model)
    blocks = [compiler.block(number, choice) for number, choice in enumerate(choices)]
    compiler.gather()
    return Compiled(
        {device.id: device.program(model) for device in compiler.devices},
        compiler.segments,
        blocks,
        {device.id: device.memory() for device in compiler.devices},
    )


class _DeviceProgram:
    """The program of one device while it is written.

    `tensors` numbers tensors as they are used, for all devices alike: pieces travel by number.
    """

    def __init__(self, device: str, search: Search, tensors: dict[str, int]) -> None:
        self.id = device
        self.held: dict[str, list[Region]] = {}
        self.sends: list[Send] = []
        self.answers: tuple[Part, ...] = ()
        self._graph = search.graph
        self._tensors = tensors
        self._segments: dict[SegmentSpec, int] = {}
        self._steps: list[Step] = []
        self._peak = 0
        self.holds(self.part(search.graph.input, whole(search.graph.shape(search.graph.input))))

    def part(self, tensor: str, region: Region) -> Part:
        return Part(self._tensors.setdefault(tensor, len(self._tensors)), region)

    def holds(self, part: Part) -> None:
        name = list(self._tensors)[part.tensor]
        self.held.setdefault(name, []).append(part.region)

    def lacks(self, tensor: str, region: Region) -> list[Region]:
        return missing(region, self.held.get(tensor, []))

    def step(self, segment: Segment, spec: SegmentSpec, block: int, seconds: float) -> None:
        reads = tuple(self.part(*read) for read in segment.reads)
        writes = tuple(self.part(*write) for write in segment.writes)
        number = self._segments.setdefault(spec, len(self._segments))
        self._steps.append(Step(number, reads, writes, block, seconds))
        for part in writes:
            self.holds(part)
        touched = (*segment.reads, *segment.writes)
        self._peak = max(self._peak, sum(size(r) * self._graph.itemsize(n) for n, r in touched))

    def program(self, model: str) -> Program:
        tensors = [self._graph.tensors[name] for name in self._tensors]
        return Program(
            model=model,
            device=self.id,
            tensors=tuple(TensorSpec(t.name, t.dtype, t.shape) for t in tensors),
            input=self._tensors[self._graph.input],
            segments=tuple(self._segments),
            steps=tuple(self._steps),
            sends=tuple(self.sends),
            answers=self.answers,
        )

    def memory(self) -> int:
        """Bytes of the weights' rows in use, and of the largest step's inputs and outputs."""
        rows = {(w.parts, w.offset, w.shape): w for s in self._segments for w in s.weights}
        used = sum(prod(w.shape) * np.dtype(w.dtype).itemsize for w in rows.values())
        return used + self._peak


class _Compiler:
    """Writes all devices' programs together, block by block."""

    def __init__(self, search: Search, choices: Sequence[Choice], model: str) -> None:
        used = max(choice.shape.tiles for choice in choices)
        self.model = model
        self.segments: dict[str, bytes] = {}
        tensors: dict[str, int] = {}
        taking_part = search.layouts.devices[:used]
        self.devices = [_DeviceProgram(d.id, search, tensors) for d in taking_part]
        self._search = search
        self._owners: dict[str, list[tuple[_DeviceProgram, Region]]] = {}

    def block(self, number: int, choice: Choice) -> CompiledBlock:
        """Write the steps of one block, and the sends that bring what they read."""
        search = self._search
        numbers = search.layouts.tiles_of(choice.layout)
        layers = search.layers[choice.start : choice.stop]
        made = {name for layer in layers for f in layer.fields for name in f.node.outputs}
        outputs = [name for name in search.live[choice.stop] if name in made]
        tiles = {name: search.layouts.tiles(name) for name in outputs}
        demand, work = Demand(search.graph, tiles), Work.none(len(search.layouts.layout))
        walked = [r for layer in layers[::-1] for r in work.add(layer, demand, search.graph)]
        seconds = search.compute_seconds(work, {**tiles, **demand.boxes})
        block = CompiledBlock(choice, flops=float(work.flops[numbers].sum()))
        taking_part = list(zip(self.devices, numbers, strict=False))
        for device, tile in taking_part:
            reads = {name: box.region(tile) for name, box in sorted(demand.boxes.items())}
            segment = build_segment(
                search.graph, walked[::-1], reads, outputs, tile, blocked=search.blocked
            )
            block.halo_bytes += sum(self._bring(*read, device) for read in segment.reads)
            device.step(segment, self._keep(segment), number, float(seconds[tile]))
            block.tiles[device.id] = [(name, box.region(tile)) for name, box in tiles.items()]
        for name, box in tiles.items():
            self._owners[name] = [(device, box.region(tile)) for device, tile in taking_part]
        return block

    def gather(self) -> None:
        """Bring every output to the first device, which answers."""
        answering = self.devices[0]
        graph = self._search.graph
        wanted = [(name, whole(graph.shape(name))) for name in graph.outputs]
        for name, region in wanted:
            self._bring(name, region, answering)
        answering.answers = tuple(answering.part(*read) for read in wanted)

    def _bring(self, tensor: str, region: Region, reader: _DeviceProgram) -> int:
        """Have the owners send what `reader` lacks of a region; return the bytes sent."""
        sent = 0
        for gap in reader.lacks(tensor, region):
            for owner, tile in self._owners[tensor]:
                piece = intersect(gap, tile)
                if piece is not None:
                    owner.sends.append(Send(owner.part(tensor, piece), reader.id))
                    reader.holds(reader.part(tensor, piece))
                    sent += size(piece) * self._search.graph.itemsize(tensor)
        return sent

    def _keep(self, segment: Segment) -> SegmentSpec:
        ref = blob_ref(segment.graph)
        self.segments[ref.digest] = segment.graph
        return SegmentSpec(ref, segment.weights)


def check(programs: Mapping[str, Program]) -> None:
    """Follow the programs' dataflow to its end, without computing anything.

    Raises:
        ModelError: if a step can never run, a send is never due or repeated, no device answers, or
            devices number tensors differently.
    """
    if len({program.tensors for program in programs.values()}) > 1:
        raise ModelError("devices number the model's tensors differently")
    held: dict[tuple[str, str], list[Region]] = {}
    for device, program in programs.items():
        spec = program.tensors[program.input]
        held[device, spec.name] = [whole(spec.shape)]
    steps = [(d, s) for d, p in programs.items() for s in p.steps]
    sends = [(d, s) for d, p in programs.items() for s in p.sends]
    if len(set(sends)) != len(sends):
        raise ModelError("a region is sent to the same device twice")
    while True:
        run = [(d, s) for d, s in steps if all(_there(programs[d], r, held) for r in s.reads)]
        due = [(d, s) for d, s in sends if _there(programs[d], s.part, held)]
        if not run and not due:
            break
        for device, step in run:
            _hold(programs[device], step.writes, device, held)
        for device, send in due:
            _hold(programs[device], (send.part,), send.to, held)
        steps = [item for item in steps if item not in run]
        sends = [item for item in sends if item not in due]
    if steps or sends:
        raise ModelError(f"{len(steps)} steps and {len(sends)} sends can never happen")
    answers = [(p, a) for p in programs.values() for a in p.answers]
    if not answers or not all(_there(program, part, held) for program, part in answers):
        raise ModelError("no device gets the whole output")


def _there(program: Program, part: Part, held: Mapping[tuple[str, str], list[Region]]) -> bool:
    name = program.tensors[part.tensor].name
    return not missing(part.region, held.get((program.device, name), []))


def _hold(
    program: Program,
    parts: Sequence[Part],
    device: str,
    held: dict[tuple[str, str], list[Region]],
) -> None:
    for part in parts:
        spec = program.tensors[part.tensor]
        if len(shape_of(part.region)) != len(spec.shape):
            raise ModelError(f"a region of '{spec.name}' has another rank than the tensor")
        held.setdefault((device, spec.name), []).append(part.region)
