"""What the agent's executor does: decode, run, conclude, load. Each job returns one event."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec.structs import replace

from agent.adapters.compute import LoadedProgram, Loader, gather
from agent.adapters.mapping import trim_heap
from agent.adapters.media import decode_input
from agent.answers import answer
from agent.errors import ConfigError, InputError
from agent.geometry import shape_of
from agent.wire.manifest import decode_manifest
from agent.wire.messages import Piece, encode_msgpack
from agent.wire.packing import pack, unpack
from agent.wire.program import decode_program
from agent.wire.tensors import bytes_of, tensor_message
from agent.worker import events as ev
from agent.worker.pieces import check_piece

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.adapters.runtime import RuntimeOptions
    from agent.adapters.store import BlobStore
    from agent.service.pacing import Pacer
    from agent.wire.manifest import Manifest
    from agent.wire.program import Program


class PackedPiece(NamedTuple):
    """A packed piece as it is published, and what the core is told of it."""

    payload: bytes
    sent: ev.PieceSent


def encode_piece(effect: ev.SendPiece, dtype: str) -> tuple[bytes, int]:
    """Return a piece as it is published, and how many bytes of it are the tensor's.

    Raises:
        WireError: if a piece that it is cut from is packed and damaged.
    """
    key = effect.key
    coding, data = pack(gather(effect.region, dtype, effect.pieces), effect.coding)
    view = memoryview(data)
    piece = Piece(effect.plan, key.request, key.input, effect.tensor, effect.region, view, coding)
    return encode_msgpack(piece), len(data)


class Jobs:
    """The loaded plans of a device and the work that is done with them.

    `run`, `decode` and `conclude` belong to the executor's thread, `pack` and `unpack` to the
    packer's, `read` and `load` to the loader's; a plan is visible to the executor once it is
    loaded. `room` tells how many bytes of memory spares may still take.
    """

    def __init__(
        self,
        store: BlobStore,
        options: RuntimeOptions,
        *,
        max_payload_bytes: int,
        clock: Callable[[], float],
        pacer: Pacer,
        room: Callable[[], int],
    ) -> None:
        self._store = store
        self._room = room
        self._loader = Loader(store, options, pacer.segment)
        self._pacer = pacer
        self._max_payload_bytes = max_payload_bytes
        self._clock = clock
        self._plans: dict[str, LoadedProgram] = {}
        self._manifests: dict[str, Manifest] = {}

    def read(self, job: ev.ReadPlan) -> ev.PlanRead:
        """Read and check a plan's program and manifest from the store."""
        program = decode_program(bytes(self._store.read(job.program.digest)))
        manifest = decode_manifest(bytes(self._store.read(job.manifest.digest)))
        self._manifests[job.plan] = manifest
        return ev.PlanRead(job.plan, program, manifest)

    def load(self, plan: str, program: Program) -> ev.Loaded:
        """Load a plan's segments."""
        with self._pacer.alone():
            self._plans[plan] = self._loader.load(program)
        trim_heap()
        # What is here now stays: a collection while a request runs need not look at it again.
        gc.collect()
        gc.freeze()
        return ev.Loaded(plan)

    def load_spare(self, name: str, program: Program) -> ev.Loaded:
        """Load a program's segments beside what serves, if there is memory for them.

        Raises:
            ConfigError: if there is not.
        """
        lacking, room = self._loader.lacking(program), self._room()
        if lacking > room:
            raise ConfigError(
                f"it needs {lacking >> 20} MiB of memory, and {max(0, room) >> 20} MiB are left; "
                "see runtime.memory_limit_mb"
            )
        return self.load(name, program)

    def adopt(self, plan: str, spare: str) -> None:
        """Have a plan run what was loaded as a spare; callable from any thread."""
        self._manifests[plan] = self._manifests[spare]
        self._plans[plan] = self._plans[spare]

    def unload(self, plan: str) -> None:
        """Forget a plan, and its segments unless another loaded plan uses them."""
        self._plans.pop(plan, None)
        self._manifests.pop(plan, None)
        # A copy: another thread may adopt a plan meanwhile.
        self._loader.retain([loaded.program for loaded in list(self._plans.values())])
        trim_heap()

    def decode(self, job: ev.Decode) -> ev.Decoded:
        """Decode a request's payload."""
        started = self._clock()
        if len(job.payload) > self._max_payload_bytes:
            limit = self._max_payload_bytes >> 20
            raise InputError(
                f"the request has {len(job.payload)} bytes, over the limit of {limit} MiB "
                "(requests.max_payload_mb); send a smaller picture"
            )
        program = self._plans[job.plan].program
        spec = program.tensors[program.input]
        with self._pacer.work():
            image = decode_input(
                job.payload, self._manifests[job.plan], spec.shape, spec.dtype, job.content_type
            )
        return ev.Decoded(job.key, job.plan, image, self._clock() - started)

    def run(self, job: ev.Run) -> ev.StepFinished:
        """Run a step of a plan."""
        started = self._clock()
        plan = self._plans[job.plan]
        with self._pacer.work():
            reads = plan.assemble(job.step, job.inputs)
        arrays = plan.compute(job.step, reads)
        return ev.StepFinished(job.key, job.plan, job.step, arrays, started, self._clock())

    def pack(self, job: ev.SendPiece, dtype: str, due: float) -> PackedPiece:
        """Pack a piece of a tensor of `dtype` that was due at time `due`."""
        with self._pacer.work():
            payload, nbytes = encode_piece(job, dtype)
        sent = ev.PieceSent(job.key, job.plan, job.to, job.tensor, job.region, nbytes, due)
        return PackedPiece(payload, sent)

    def unpack(self, arrived: ev.PieceArrived, program: Program) -> ev.PieceArrived:
        """Unpack a piece that came packed.

        Raises:
            WireError: if it does not fit the program, or is damaged.
        """
        piece = arrived.piece
        check_piece(piece, program)
        with self._pacer.work():
            dtype = program.tensors[piece.tensor].dtype
            array = unpack(piece.coding, dtype, shape_of(piece.region), piece.data)
        return ev.PieceArrived(replace(piece, data=bytes_of(array), coding="plain"), arrived.nbytes)

    def conclude(self, job: ev.Conclude) -> ev.Concluded:
        """Make the answer of a request from its outputs."""
        with self._pacer.work():
            return self._conclude(job)

    def _conclude(self, job: ev.Conclude) -> ev.Concluded:
        outputs = self._plans[job.plan].outputs(job.outputs)
        if job.tensors:
            messages: dict[str, Any] = {n: tensor_message(a) for n, a in outputs.items()}
            return ev.Concluded(job.key, job.plan, None, messages)
        result = answer(outputs, self._manifests[job.plan], job.image.frame, job.image.shape)
        return ev.Concluded(job.key, job.plan, result, None)
