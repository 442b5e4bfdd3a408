"""Random small models for property tests: chains and DAGs of everything that is split by rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from tests.planner.oracle import Builder

if TYPE_CHECKING:
    from collections.abc import Callable

Draw = Any
_ACTIVATIONS = ("Relu", "LeakyRelu", "Sigmoid", "Tanh", "Elu", "HardSigmoid", "Abs", "Neg")


def _window(draw: Draw, *, largest_pad: int) -> dict[str, Any]:
    """Draw strides, and either explicit (asymmetric) padding or auto_pad."""
    window: dict[str, Any] = {"strides": draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))}
    mode = draw(st.sampled_from(["pads", "pads", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if mode == "pads":
        window["pads"] = draw(st.tuples(*[st.integers(0, largest_pad)] * 4))
    else:
        window["auto_pad"] = mode
    return window


def _round_up(draw: Draw, window: dict[str, Any]) -> None:
    """Draw ceil_mode; with padding at the end the importer may have to refuse it."""
    if "pads" in window and draw(st.booleans()):
        window |= {"ceil_mode": 1, "pads": (*window["pads"][:2], 0, 0)}


def _conv(draw: Draw, b: Builder, x: str) -> str:
    kernel = draw(st.integers(1, 4))
    channels = b.shape(x)[1]
    group = draw(st.sampled_from([g for g in (1, 2, channels) if channels % g == 0]))
    out = group * draw(st.integers(1, 3))
    window = _window(draw, largest_pad=kernel)
    if "auto_pad" not in window:
        window["dilations"] = [draw(st.integers(1, 2))] * 2
    return b.conv(x, out, kernel, group, **window)


def _max_pool(draw: Draw, b: Builder, x: str) -> str:
    kernel = draw(st.integers(2, 3))
    window = _window(draw, largest_pad=kernel - 1)
    if "auto_pad" not in window:
        window["dilations"] = [draw(st.integers(1, 2))] * 2
    _round_up(draw, window)
    return b.add("MaxPool", x, kernel_shape=[kernel] * 2, **window)


def _average_pool(draw: Draw, b: Builder, x: str) -> str:
    kernel = draw(st.integers(2, 3))
    window = _window(draw, largest_pad=kernel - 1)
    window["count_include_pad"] = draw(st.integers(0, 1))
    _round_up(draw, window)
    return b.add("AveragePool", x, kernel_shape=[kernel] * 2, **window)


def _normalize(_: Draw, b: Builder, x: str) -> str:
    return b.normalize(x)


def _activate(draw: Draw, b: Builder, x: str) -> str:
    return b.add(draw(st.sampled_from(_ACTIVATIONS)), x)


def _lrn(_: Draw, b: Builder, x: str) -> str:
    return b.add("LRN", x, size=3)


def _scale(draw: Draw, b: Builder, x: str) -> str:
    """Add or multiply a constant that is broadcast on some axes and has rows on others."""
    shape = [n if draw(st.booleans()) else 1 for n in b.shape(x)]
    return b.add(draw(st.sampled_from(["Add", "Mul"])), x, b.weight(*shape))


def _residual(draw: Draw, b: Builder, x: str) -> str:
    branch = b.conv(x, b.shape(x)[1], 3, pads=[1, 1, 1, 1])
    if draw(st.booleans()):
        branch = b.normalize(branch)
    return b.add("Relu", b.add("Add", branch, x))


def _inception(draw: Draw, b: Builder, x: str) -> str:
    narrow = b.conv(x, 2, 1)
    wide = b.conv(x, 3, 5, auto_pad="SAME_UPPER")
    pooled = b.add("MaxPool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    return b.add("Concat", narrow, wide, pooled, axis=draw(st.sampled_from([1, -3])))


def _gate(_: Draw, b: Builder, x: str) -> str:
    """Squeeze and excitation: a global pool whose result scales every row."""
    channels = b.shape(x)[1]
    pooled = b.add("GlobalAveragePool", x)
    return b.add("Mul", x, b.add("Sigmoid", b.conv(pooled, channels, 1)))


def _unknown(_: Draw, b: Builder, x: str) -> str:
    return b.add("InstanceNormalization", x, b.positive(b.shape(x)[1]), b.weight(b.shape(x)[1]))


_STEPS: list[Callable[[Draw, Builder, str], str]] = [
    _conv, _conv, _conv, _max_pool, _average_pool, _normalize, _activate, _lrn, _scale,
    _residual, _inception, _gate, _unknown,
]  # fmt: skip


def _head(draw: Draw, b: Builder, x: str) -> str:
    kind = draw(st.sampled_from(["none", "flat", "pooled", "mean"]))
    if kind == "none":
        return x
    if kind == "mean":
        return b.add("Softmax", b.add("ReduceMean", x, axes=[2, 3], keepdims=0), axis=1)
    x = b.add("Flatten", b.add("GlobalAveragePool", x) if kind == "pooled" else x)
    width = draw(st.integers(3, 40))
    return b.add("Gemm", x, b.weight(width, b.shape(x)[1]), b.weight(width), transB=1)


@st.composite
def models(draw: Draw) -> tuple[Builder, list[str]]:
    """Draw a model, and the names of its outputs."""
    rows, columns = draw(st.integers(7, 24)), draw(st.integers(7, 12))
    b = Builder((1, draw(st.integers(1, 4)), rows, columns), seed=draw(st.integers(0, 99)))
    x, outputs = "x", []
    for _ in range(draw(st.integers(1, 6))):
        if min(b.shape(x)[2:]) < 7:  # the largest window: a dilated kernel of four
            break
        x = draw(st.sampled_from(_STEPS))(draw, b, x)
        if draw(st.integers(0, 5)) == 0:
            outputs.append(x)
    if x == "x":
        x = b.add("Relu", x)
    x = _head(draw, b, x)
    return b, list(dict.fromkeys([*outputs, x]))
