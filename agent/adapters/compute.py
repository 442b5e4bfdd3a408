"""What the executor does with arrays: assemble pieces, run segments, cut regions out."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from agent.adapters.runtime import Runnable, RuntimeOptions, Segment
from agent.geometry import intersect, shape_of, slices_within
from agent.wire.packing import Packed
from agent.wire.tensors import array_of, itemsize

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from agent.adapters.store import BlobStore, MemoryBlobs
    from agent.geometry import Region
    from agent.wire.program import Program, SegmentSpec, TensorSpec, WeightSpec
    from agent.worker.events import Held


class Image(Protocol):
    """A decoded request that can give any region of the model's input tensor."""

    def region(self, region: Region) -> NDArray[Any]:
        """Return exactly `region`, contiguous."""
        ...


def gather(region: Region, dtype: str, pieces: Sequence[Held]) -> NDArray[Any]:
    """Return a contiguous array of `region` assembled from the pieces that cover it.

    A piece's data is an array, a view of the bytes of one, packed, or an `Image`. Without need
    nothing is copied.

    Raises:
        WireError: if a packed piece is damaged.
    """
    if len(pieces) == 1:
        return np.asarray(_view(pieces[0], region, dtype), order="C")
    assembled = np.empty(shape_of(region), np.dtype(dtype))
    for piece in pieces:
        common = intersect(piece.region, region)
        if common is not None:
            assembled[slices_within(common, region)] = _view(piece, common, dtype)
    return assembled


def _view(piece: Held, region: Region, dtype: str) -> NDArray[Any]:
    data = piece.data
    if isinstance(data, memoryview):
        data = array_of(dtype, shape_of(piece.region), data)
    elif isinstance(data, Packed):
        data = data.array()
    if not isinstance(data, np.ndarray):
        return data.region(region)  # type: ignore[no-any-return]
    return data[slices_within(region, piece.region)]


def weight_array(spec: WeightSpec, content: NDArray[np.uint8]) -> NDArray[Any]:
    """Return a segment's weight from the bytes of its parts, without a copy."""
    nbytes = prod(spec.shape) * itemsize(spec.dtype)
    mine = content[spec.offset : spec.offset + nbytes]
    return mine.view(np.dtype(spec.dtype)).reshape(spec.shape)


class LoadedProgram:
    """A program whose segments are loaded.

    `segments` may be shared with other programs: equal segments are loaded once.
    """

    def __init__(self, program: Program, segments: Sequence[Runnable]) -> None:
        self.program = program
        self._segments = segments

    def tensor(self, index: int) -> TensorSpec:
        """Return the program's tensor `index`."""
        return self.program.tensors[index]

    def run(self, step: int, inputs: Sequence[Sequence[Held]]) -> tuple[NDArray[Any], ...]:
        """Run a step on the pieces that cover each of its reads; one array for each write."""
        return self.compute(step, self.assemble(step, inputs))

    def assemble(self, step: int, inputs: Sequence[Sequence[Held]]) -> list[NDArray[Any]]:
        """Return a step's reads from the pieces that cover each."""
        return [
            gather(part.region, self.tensor(part.tensor).dtype, pieces)
            for part, pieces in zip(self.program.steps[step].reads, inputs, strict=True)
        ]

    def compute(self, step: int, reads: Sequence[NDArray[Any]]) -> tuple[NDArray[Any], ...]:
        """Run a step's segment on its reads; one array for each write."""
        return tuple(self._segments[self.program.steps[step].segment].run(reads))

    def outputs(self, pieces: Sequence[Sequence[Held]]) -> dict[str, NDArray[Any]]:
        """Return the model's outputs by name from the pieces that cover each answer part."""
        return {
            self.tensor(part.tensor).name: gather(part.region, self.tensor(part.tensor).dtype, held)
            for part, held in zip(self.program.answers, pieces, strict=True)
        }


def _as_it_is(segment: Runnable) -> Runnable:
    return segment


class Loader:
    """Loads programs; segments that another loaded program has are shared, not loaded again.

    `wrap` makes of a loaded segment what runs in its place.
    """

    def __init__(
        self,
        store: BlobStore | MemoryBlobs,
        options: RuntimeOptions,
        wrap: Callable[[Runnable], Runnable] = _as_it_is,
    ) -> None:
        self._store = store
        self._options = options
        self._wrap = wrap
        self._loaded: dict[SegmentSpec, Runnable] = {}

    def load(self, program: Program) -> LoadedProgram:
        """Load every segment of `program`.

        Raises:
            HaloMQError: if a blob is missing or damaged, or onnxruntime refuses a segment.
        """
        for spec in program.segments:
            if spec not in self._loaded:
                self._loaded[spec] = self._load(spec)
        return LoadedProgram(program, [self._loaded[spec] for spec in program.segments])

    def _load(self, spec: SegmentSpec) -> Runnable:
        mapped = {w.name: self._store.map([p.digest for p in w.parts]) for w in spec.weights}
        weights = {w.name: weight_array(w, mapped[w.name].array) for w in spec.weights}
        segment = Segment(bytes(self._store.read(spec.graph.digest)), weights, self._options)
        # Onnxruntime keeps most weights in a layout of its own; what it still reads comes back.
        for files in mapped.values():
            files.drop_pages()
        return self._wrap(segment)

    def lacking(self, program: Program) -> int:
        """Return how many bytes of weights the segments of `program` have that are not loaded."""
        new = {spec for spec in program.segments if spec not in self._loaded}
        return sum(
            prod(weight.shape) * itemsize(weight.dtype) for spec in new for weight in spec.weights
        )

    def retain(self, programs: Sequence[Program]) -> None:
        """Forget every segment that none of `programs` uses."""
        used = {spec for program in programs for spec in program.segments}
        for spec in [spec for spec in self._loaded if spec not in used]:
            del self._loaded[spec]
