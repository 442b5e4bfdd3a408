"""A fleet in this process: real worker cores that run a plan's programs, with no broker.

What `halomq verify` and many tests run: the same cores, segments and pieces as on devices, with
every effect carried out at once, in order.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any

from agent.adapters.compute import Loader, gather
from agent.adapters.store import MemoryBlobs
from agent.errors import HaloMQError
from agent.wire.messages import Piece, PlanHeader
from agent.wire.packing import pack
from agent.wire.program import blob_ref, encode_program, plan_digest
from agent.worker import WorkerCore
from agent.worker import events as ev

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from agent.adapters.runtime import RuntimeOptions
    from agent.geometry import Region
    from agent.wire.program import Program

MODEL = "local"
FINGERPRINT = "0" * 32


class ArrayImage:
    """An input tensor that stands for a decoded picture."""

    def __init__(self, array: NDArray[Any]) -> None:
        self._array = array

    def region(self, region: tuple[tuple[int, int], ...]) -> NDArray[Any]:
        """Return exactly `region`."""
        return self._array[tuple(slice(start, stop) for start, stop in region)]


class LocalFleet:
    """Devices that serve `programs` (by device; the answering one first) in this process.

    `blobs` holds the segments and weights by digest. `sent_bytes` counts what the
    devices would have published. `observe` is told of every tensor's region that a device wrote.

    Raises:
        HaloMQError: if a segment cannot be loaded.
    """

    def __init__(
        self,
        programs: Mapping[str, Program],
        blobs: Mapping[str, memoryview | bytes],
        options: RuntimeOptions,
        observe: Callable[[str, Region, NDArray[Any]], None] | None = None,
    ) -> None:
        self.sent_bytes = 0
        self._observe = observe
        self._events: deque[tuple[str, ev.Event]] = deque()
        self._outputs: dict[str, NDArray[Any]] = {}
        self._failure: str | None = None
        loader = Loader(MemoryBlobs(blobs), options)
        self._loaded = {device: loader.load(program) for device, program in programs.items()}
        self._cores = {device: WorkerCore(device, "local") for device in programs}
        self._image: ArrayImage | None = None
        self._requests = 0
        header = _header(programs)
        for device in programs:
            self._post(device, ev.PlanAnnounced(header.model, header))
        self._settle()

    def infer(self, image: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Run one request on all devices; return the outputs by name.

        Raises:
            HaloMQError: if the programs do not lead to an answer.
        """
        self._image = ArrayImage(image)
        self._outputs = {}
        self._failure = None
        self._requests += 1
        name = f"r{self._requests}"
        key = ev.RequestKey(next(iter(self._loaded.values())).program.model, name, FINGERPRINT)
        for device in self._cores:
            self._post(device, ev.RequestArrived(key.model, name, FINGERPRINT, b"", ev.ReplyTo()))
        self._settle()
        if not self._outputs:
            raise HaloMQError(self._failure or "the programs ended without an answer")
        for device in self._cores:
            self._post(device, ev.ResultSeen(key))
        self._settle()
        return self._outputs

    def _post(self, device: str, event: ev.Event) -> None:
        self._events.append((device, event))

    def _settle(self) -> None:
        while self._events:
            device, event = self._events.popleft()
            for effect in self._cores[device].handle(event, 0.0):
                self._perform(device, effect)

    def _perform(self, device: str, effect: ev.Effect) -> None:
        post = partial(self._post, device)
        loaded = self._loaded[device]
        match effect:
            case ev.Fetch(ticket):
                post(ev.Fetched(ticket))
            case ev.ReadPlan(plan):
                post(ev.PlanRead(plan, loaded.program, None))
            case ev.Load(plan):
                post(ev.Loaded(plan))
            case ev.Decode(key, plan):
                post(ev.Decoded(key, plan, self._image, 0.0))
            case ev.Run(key, plan, step, inputs):
                arrays = loaded.run(step, inputs)
                self._show(loaded.program, step, arrays)
                post(ev.StepFinished(key, plan, step, arrays, 0.0, 0.0))
            case ev.SendPiece(key, plan, to, tensor, region, pieces, wanted):
                array = gather(region, loaded.tensor(tensor).dtype, pieces)
                coding, data = pack(array, wanted)
                self.sent_bytes += len(data)
                view = memoryview(data)
                piece = Piece(plan, key.request, key.input, tensor, region, view, coding)
                self._post(to, ev.PieceArrived(piece, len(data)))
            case ev.Conclude(key, plan, _, outputs):
                self._outputs = loaded.outputs(outputs)
                post(ev.Concluded(key, plan, {}, None))
            case ev.PublishAnswer(answer) if answer.error is not None:
                self._failure = answer.error.text

    def _show(self, program: Program, step: int, arrays: Sequence[NDArray[Any]]) -> None:
        if self._observe is not None:
            for part, array in zip(program.steps[step].writes, arrays, strict=True):
                self._observe(program.tensors[part.tensor].name, part.region, array)


def _header(programs: Mapping[str, Program]) -> PlanHeader:
    refs = {device: blob_ref(encode_program(program)) for device, program in programs.items()}
    return PlanHeader(
        epoch=1,
        coordinator=MODEL,
        model=next(iter(programs.values())).model,
        digest=plan_digest(refs, 1, MODEL),
        devices=tuple(programs),
        programs=refs,
        manifest=blob_ref(b""),
        source=MODEL,
    )
