"""A fleet in this process, with a hand-made plan of tiny segments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from onnx import TensorProto, helper

from agent.adapters.runtime import RuntimeOptions
from agent.errors import HaloMQError
from agent.local import LocalFleet
from agent.wire.program import (
    Part,
    Program,
    SegmentSpec,
    Send,
    Step,
    TensorSpec,
    WeightSpec,
    blob_ref,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROWS = 8
KERNEL = np.array([1.0, 2.0, 4.0], "float32").reshape(1, 1, 3, 1)
OPTIONS = RuntimeOptions()
CUT = 5


def smooth(image: NDArray[Any]) -> NDArray[Any]:
    """Convolve along rows with zeros around: what each block of the plan does."""
    padded = np.pad(image[0, 0], ((1, 1), (0, 0)))
    taps = KERNEL[0, 0, :, 0]
    return sum(taps[n] * padded[n : n + ROWS] for n in range(3))[None, None]  # type: ignore[no-any-return]


def segment(rows: int, top: int, bottom: int) -> tuple[SegmentSpec, dict[str, bytes]]:
    """Return a Conv over `rows` rows with its kernel outside, and its two blobs."""
    kind = TensorProto.FLOAT
    written = rows + top + bottom - 2
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], pads=[top, 0, bottom, 0])],
        "segment",
        [helper.make_tensor_value_info("x", kind, [1, 1, rows, 2])],
        [helper.make_tensor_value_info("y", kind, [1, 1, written, 2])],
    )
    kernel = TensorProto(
        name="w", data_type=kind, dims=KERNEL.shape, data_location=TensorProto.EXTERNAL
    )
    kernel.external_data.add(key="location", value="w")
    graph.initializer.append(kernel)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    content, weights = model.SerializeToString(), KERNEL.tobytes()
    spec = WeightSpec("w", "float32", KERNEL.shape, (blob_ref(weights),))
    blobs = {blob_ref(content).digest: content, spec.parts[0].digest: weights}
    return SegmentSpec(blob_ref(content), (spec,)), blobs


def part(tensor: int, start: int, stop: int) -> Part:
    return Part(tensor, ((0, 1), (0, 1), (start, stop), (0, 2)))


def plan() -> tuple[dict[str, Program], dict[str, bytes]]:
    """Return two blocks on two devices: rows above and below CUT, a halo row each way."""
    shape = (1, 1, ROWS, 2)
    tensors = tuple(TensorSpec(name, "float32", shape) for name in ("in", "mid", "out"))
    upper, blobs = segment(CUT + 1, 1, 0)
    lower, more = segment(ROWS - CUT + 1, 0, 1)

    def program(device: str, made: SegmentSpec, *spans: int, **rest: Any) -> Program:
        start, stop, halo_start, halo_stop = spans
        steps = tuple(
            Step(0, (part(n, halo_start, halo_stop),), (part(n + 1, start, stop),), n)
            for n in range(2)
        )
        return Program("m", device, tensors, 0, (made,), steps, **rest)

    return {
        "a": program(
            "a",
            upper,
            *(0, CUT, 0, CUT + 1),
            sends=(Send(part(1, CUT - 1, CUT), "b"),),
            answers=(part(2, 0, ROWS),),
        ),
        "b": program(
            "b",
            lower,
            *(CUT, ROWS, CUT - 1, ROWS),
            sends=(Send(part(1, CUT, CUT + 1), "a"), Send(part(2, CUT, ROWS), "a")),
        ),
    }, {**blobs, **more}


def image(seed: int) -> NDArray[Any]:
    return np.random.default_rng(seed).integers(0, 9, (1, 1, ROWS, 2)).astype("float32")


def test_the_devices_together_give_the_answer_of_one() -> None:
    programs, blobs = plan()
    outputs = LocalFleet(programs, blobs, OPTIONS).infer(image(1))
    assert list(outputs) == ["out"]
    assert np.array_equal(outputs["out"], smooth(smooth(image(1))))


def test_requests_do_not_disturb_one_another() -> None:
    programs, blobs = plan()
    fleet = LocalFleet(programs, blobs, OPTIONS)
    for seed in (2, 3, 2):
        assert np.array_equal(fleet.infer(image(seed))["out"], smooth(smooth(image(seed))))


def test_it_counts_what_the_devices_would_have_sent() -> None:
    programs, blobs = plan()
    fleet = LocalFleet(programs, blobs, OPTIONS)
    assert fleet.sent_bytes == 0
    # A row of halo each way, and the rows of b to a: five rows of two floats.
    for count in (1, 2):
        fleet.infer(image(count))
        assert fleet.sent_bytes == count * 5 * 2 * 4


def test_programs_that_lead_nowhere_are_an_error() -> None:
    programs, blobs = plan()
    lonely = {"a": msgspec.structs.replace(programs["a"], sends=())}
    with pytest.raises(HaloMQError, match="without an answer"):
        LocalFleet(lonely, blobs, OPTIONS).infer(image(1))


def test_a_segment_that_cannot_be_loaded_is_an_error() -> None:
    programs, blobs = plan()
    graph = programs["b"].segments[0].graph.digest
    with pytest.raises(HaloMQError, match="onnxruntime"):
        LocalFleet(programs, {**blobs, graph: b"damaged"}, OPTIONS)
