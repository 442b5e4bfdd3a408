"""Programs: from a schedule to what each device runs, sends and answers."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from agent.errors import ModelError
from agent.geometry import missing, shape_of, size, whole
from agent.planner.segments import build_segment
from agent.wire.program import Part, Program, SegmentSpec, Send, Step, TensorSpec, blob_ref

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from agent.geometry import Region
    from agent.planner.dpfp import Search
    from agent.planner.schedule import Schedule, Task
    from agent.planner.segments import Segment


@dataclass(slots=True)
class Compiled:
    """Programs by device, segments by digest, and the bytes of memory that devices need."""

    programs: dict[str, Program]
    segments: dict[str, bytes]
    memory: dict[str, int]


def compile_programs(
    search: Search, schedule: Schedule, starts: Sequence[float], model: str
) -> Compiled:
    """Turn a schedule into one program per device.

    Args:
        search: what the schedule was made from.
        schedule: tasks and transfers.
        starts: when each task is predicted to start, in seconds.
        model: the name under which the programs serve it.
    """
    tensors: dict[str, int] = {}
    taking_part = search.layouts.devices[: schedule.devices]
    devices = [_DeviceProgram(device.id, search, tensors) for device in taking_part]
    segments: dict[str, bytes] = {}
    for task, start in zip(schedule.tasks, starts, strict=True):
        segment = build_segment(
            search.graph,
            task.walked[::-1],
            task.reads,
            list(task.writes),
            task.row,
            blocked=search.blocked,
        )
        ref = blob_ref(segment.graph)
        segments[ref.digest] = segment.graph
        devices[task.device].step(segment, SegmentSpec(ref, segment.weights), task, start)
    for transfer in schedule.transfers:
        sender = devices[transfer.sender]
        part = sender.part(transfer.tensor, transfer.region)
        sender.sends.append(Send(part, devices[transfer.reader].id, transfer.coding))
    devices[0].answers = tuple(devices[0].part(*read) for read in schedule.answers.items())
    return Compiled(
        {device.id: device.program(model) for device in devices},
        segments,
        {device.id: device.memory() for device in devices},
    )


class _DeviceProgram:
    """The program of one device while it is written.

    `tensors` numbers tensors as they are used, for all devices alike: pieces travel by number.
    """

    def __init__(self, device: str, search: Search, tensors: dict[str, int]) -> None:
        self.id = device
        self.sends: list[Send] = []
        self.answers: tuple[Part, ...] = ()
        self._graph = search.graph
        self._tensors = tensors
        self._segments: dict[SegmentSpec, int] = {}
        self._steps: list[Step] = []
        self._peak = 0
        self.part(search.graph.input, whole(search.graph.shape(search.graph.input)))

    def part(self, tensor: str, region: Region) -> Part:
        return Part(self._tensors.setdefault(tensor, len(self._tensors)), region)

    def step(self, segment: Segment, spec: SegmentSpec, task: Task, start: float) -> None:
        reads = tuple(self.part(*read) for read in segment.reads)
        writes = tuple(self.part(*write) for write in segment.writes)
        number = self._segments.setdefault(spec, len(self._segments))
        self._steps.append(Step(number, reads, writes, task.block, task.seconds, start))
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


class Round(NamedTuple):
    """What can happen at once: sends, in the order of waves that wait for each other; then steps.

    Both with the device that does it.
    """

    waves: list[list[tuple[str, Send]]]
    steps: list[tuple[str, Step]]


def check(programs: Mapping[str, Program]) -> None:
    """Follow the programs' dataflow to its end, without computing anything.

    Raises:
        ModelError: as `rounds` does.
    """
    for _ in rounds(programs):
        pass


def rounds(programs: Mapping[str, Program]) -> Iterator[Round]:
    """Follow the programs' dataflow as if devices waited for each other: send all, then compute.

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
        waves = []
        while due := [(d, s) for d, s in sends if _there(programs[d], s.part, held)]:
            for device, send in due:
                _hold(programs[device], (send.part,), send.to, held)
            sends = [item for item in sends if item not in due]
            waves.append(due)
        run = [(d, s) for d, s in steps if all(_there(programs[d], r, held) for r in s.reads)]
        for device, step in run:
            _hold(programs[device], step.writes, device, held)
        steps = [item for item in steps if item not in run]
        if not run and not waves:
            break
        yield Round(waves, run)
    _check_end(programs, len(steps), len(sends), held)


def _check_end(
    programs: Mapping[str, Program],
    steps: int,
    sends: int,
    held: Mapping[tuple[str, str], list[Region]],
) -> None:
    """Check that nothing is left to do, and that the answer is there."""
    if steps or sends:
        raise ModelError(f"{steps} steps and {sends} sends can never happen")
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
