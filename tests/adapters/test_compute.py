"""What the executor does with arrays: regions from pieces, weights from blobs, segments run."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from agent.adapters.compute import LoadedProgram, Loader, gather, weight_array
from agent.adapters.runtime import RuntimeOptions, Segment
from agent.adapters.store import BlobStore, MemoryBlobs
from agent.errors import HaloMQError, StoreError
from agent.geometry import Region, hull, slices_within
from agent.wire.program import (
    Part,
    Program,
    SegmentSpec,
    Step,
    TensorSpec,
    WeightSpec,
    blob_ref,
)
from agent.wire.tensors import bytes_of
from agent.worker.events import Held

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

FULL = np.arange(6 * 5, dtype="float32").reshape(6, 5)
OPTIONS = RuntimeOptions()


class Picture:
    """A decoded request, which gives any region of the input."""

    def region(self, region: Region) -> NDArray[Any]:
        return np.ascontiguousarray(cut(region))


def cut(region: Region) -> NDArray[Any]:
    """Return `region` of the whole tensor."""
    return FULL[slices_within(region, ((0, 6), (0, 5)))]


def held(region: Region, kind: str = "array") -> Held:
    """Return a piece of the whole tensor in one of its forms."""
    if kind == "picture":
        return Held(((0, 6), (0, 5)), Picture())
    return Held(region, bytes_of(cut(region)) if kind == "bytes" else cut(region))


def spans(extent: int) -> st.SearchStrategy[tuple[int, int]]:
    starts = st.integers(0, extent - 1)
    return starts.flatmap(lambda a: st.tuples(st.just(a), st.integers(a + 1, extent)))


REGIONS = st.tuples(spans(6), spans(5))
KINDS = st.sampled_from(["array", "bytes", "picture"])


@given(
    region=REGIONS,
    cuts=st.lists(st.tuples(st.integers(1, 5), KINDS), min_size=1, max_size=3),
    backwards=st.booleans(),
)
def test_a_region_is_gathered_from_pieces_of_every_form(
    region: Region, cuts: list[tuple[int, str]], *, backwards: bool
) -> None:
    edges = sorted({0, 6, *(at for at, _ in cuts)})
    kinds = [kind for _, kind in cuts] * 4
    bands = [((a, b), (0, 5)) for a, b in pairwise(edges)]
    pieces = [held(band, kind) for band, kind in zip(bands, kinds, strict=False)]
    made = gather(region, "float32", pieces[::-1] if backwards else pieces)
    assert made.dtype == np.float32
    assert made.flags.c_contiguous
    assert np.array_equal(made, cut(region))


@given(REGIONS, REGIONS, KINDS)
def test_one_piece_that_contains_the_region_suffices(
    region: Region, other: Region, kind: str
) -> None:
    made = gather(region, "float32", [held(hull([region, other]), kind)])
    assert made.flags.c_contiguous
    assert np.array_equal(made, cut(region))


def test_overlapping_pieces_agree() -> None:
    pieces = [held(((0, 4), (0, 5))), held(((2, 6), (0, 5)), "bytes")]
    assert np.array_equal(gather(((1, 6), (1, 4)), "float32", pieces), FULL[1:6, 1:4])


def test_an_array_that_is_the_region_is_not_copied() -> None:
    assert np.shares_memory(gather(((0, 6), (0, 5)), "float32", [held(((0, 6), (0, 5)))]), FULL)
    data = bytes_of(FULL)
    made = gather(((0, 6), (0, 5)), "float32", [Held(((0, 6), (0, 5)), data)])
    assert np.shares_memory(made, np.frombuffer(data, "float32"))


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "float16"])
def test_pieces_of_bytes_have_the_tensors_dtype(dtype: str) -> None:
    values = np.array([0, 1, 1, 0], dtype)
    pieces = [Held(((0, 2),), bytes_of(values[:2])), Held(((2, 4),), values[2:])]
    made = gather(((0, 4),), dtype, pieces)
    assert made.dtype == values.dtype
    assert made.tolist() == values.tolist()


# Weights ----------------------------------------------------------------------------------------


def weight(values: NDArray[Any], *cuts: int, offset: int = 0) -> tuple[WeightSpec, MemoryBlobs]:
    """Store an array in parts (cut after so many bytes), with other bytes before and after."""
    content = b"\xaa" * offset + values.tobytes() + b"\xbb" * 6
    edges = [0, *cuts, len(content)]
    parts = [content[a:b] for a, b in pairwise(edges)]
    refs = tuple(blob_ref(part) for part in parts)
    spec = WeightSpec("w", values.dtype.name, values.shape, refs, offset)
    return spec, MemoryBlobs({ref.digest: part for ref, part in zip(refs, parts, strict=True)})


def read_weight(spec: WeightSpec, blobs: MemoryBlobs) -> NDArray[Any]:
    return weight_array(spec, blobs.map([part.digest for part in spec.parts]).array)


@pytest.mark.parametrize("cuts", [(), (8,), (4, 10, 20)])
@pytest.mark.parametrize("offset", [0, 8])
def test_a_weight_is_read_from_its_parts(cuts: tuple[int, ...], offset: int) -> None:
    values = np.arange(6, dtype="float32").reshape(2, 3)
    spec, blobs = weight(values, *cuts, offset=offset)
    made = read_weight(spec, blobs)
    assert (made.dtype, made.shape) == (values.dtype, values.shape)
    assert np.array_equal(made, values)


def test_a_weight_of_one_blob_is_not_copied() -> None:
    content = np.arange(8, dtype="int64").tobytes()
    ref = blob_ref(content)
    made = read_weight(
        WeightSpec("w", "int64", (3,), (ref,), 16), MemoryBlobs({ref.digest: content})
    )
    assert made.tolist() == [2, 3, 4]
    assert np.shares_memory(made, np.frombuffer(content, "int64"))


def test_a_weight_whose_parts_are_too_short_is_an_error() -> None:
    spec, blobs = weight(np.arange(6, dtype="float32"), 8)
    short = WeightSpec("w", "float32", (9,), spec.parts)
    with pytest.raises(ValueError, match="size"):
        read_weight(short, blobs)


# Segments ---------------------------------------------------------------------------------------


def scale_segment(rows: int, factor: float) -> tuple[SegmentSpec, dict[str, bytes]]:
    """Return y = x * w for `rows` rows, with w outside of the graph."""
    kind = TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "w"], ["y"])],
        "segment",
        [helper.make_tensor_value_info("x", kind, [rows, 5])],
        [helper.make_tensor_value_info("y", kind, [rows, 5])],
    )
    outside = TensorProto(name="w", data_type=kind, dims=[5], data_location=TensorProto.EXTERNAL)
    outside.external_data.add(key="location", value="w")
    graph.initializer.append(outside)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    content, values = model.SerializeToString(), np.full(5, factor, "float32").tobytes()
    spec = WeightSpec("w", "float32", (5,), (blob_ref(values),))
    blobs = {blob_ref(content).digest: content, spec.parts[0].digest: values}
    assert onnx.load_from_string(content).graph.name == "segment"
    return SegmentSpec(blob_ref(content), (spec,)), blobs


def program(segments: Sequence[SegmentSpec]) -> Program:
    top: Region = ((0, 2), (0, 5))
    return Program(
        model="m",
        device="a",
        tensors=(TensorSpec("in", "float32", (6, 5)), TensorSpec("out", "float32", (6, 5))),
        input=0,
        segments=tuple(segments),
        steps=(Step(0, (Part(0, top),), (Part(1, top),)),),
        sends=(),
        answers=(Part(1, ((0, 6), (0, 5))),),
    )


def test_a_step_runs_its_segment_on_gathered_pieces() -> None:
    segment, blobs = scale_segment(2, 3.0)
    loaded = Loader(MemoryBlobs(blobs), OPTIONS).load(program([segment]))
    pieces = (held(((0, 1), (0, 5)), "bytes"), held(((1, 6), (0, 5))))
    (made,) = loaded.run(0, [pieces])
    assert np.array_equal(made, FULL[:2] * 3)


def test_outputs_are_gathered_by_name() -> None:
    loaded = LoadedProgram(program([]), [])
    pieces = (held(((0, 3), (0, 5))), held(((3, 6), (0, 5)), "bytes"))
    outputs = loaded.outputs([pieces])
    assert list(outputs) == ["out"]
    assert np.array_equal(outputs["out"], FULL)


def test_equal_segments_are_loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[bytes] = []

    class Counted:
        def __init__(self, graph: bytes, *_rest: object) -> None:
            made.append(graph)

    monkeypatch.setattr("agent.adapters.compute.Segment", Counted)
    one, blobs = scale_segment(2, 3.0)
    two, more = scale_segment(3, 3.0)
    loader = Loader(MemoryBlobs({**blobs, **more}), OPTIONS)
    loader.load(program([one, one]))
    loader.load(program([one, two]))
    assert len(made) == 2
    loader.retain([program([two])])
    loader.load(program([two]))
    assert len(made) == 2
    loader.load(program([one]))
    assert len(made) == 3


def test_what_is_loaded_already_takes_no_more_memory() -> None:
    one, blobs = scale_segment(2, 3.0)
    two, more = scale_segment(3, 4.0)
    loader = Loader(MemoryBlobs({**blobs, **more}), OPTIONS)
    assert loader.lacking(program([one, one, two])) == 2 * 20
    loader.load(program([one]))
    assert loader.lacking(program([one, two])) == 20
    loader.load(program([two]))
    assert loader.lacking(program([one, two])) == 0


def test_a_segment_that_onnxruntime_refuses_is_an_error() -> None:
    content = b"not a graph"
    spec = SegmentSpec(blob_ref(content))
    with pytest.raises(HaloMQError, match="onnxruntime"):
        Loader(MemoryBlobs({spec.graph.digest: content}), OPTIONS).load(program([spec]))


def test_a_weight_that_is_missing_is_an_error(tmp_path: Path) -> None:
    segment, blobs = scale_segment(2, 3.0)
    store = BlobStore(tmp_path, 10_000)
    store.put(segment.graph.digest, blobs[segment.graph.digest])
    with pytest.raises(StoreError, match=segment.weights[0].parts[0].digest[:12]):
        Loader(store, OPTIONS).load(program([segment]))


def test_example_inputs_have_the_graphs_shapes_and_types() -> None:
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT16, [2, 3]),
        helper.make_tensor_value_info("i", TensorProto.INT64, [1]),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT16, [1, 3])]
    graph = helper.make_graph([helper.make_node("Gather", ["x", "i"], ["y"])], "g", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    segment = Segment(model.SerializeToString(), {}, OPTIONS)
    noise, index = segment.example()
    assert (noise.shape, noise.dtype, index.tolist()) == ((2, 3), np.float16, [0])
    assert len(np.unique(noise)) == 6
    (output,) = segment.run([noise, index])
    assert np.array_equal(output, noise[:1])
