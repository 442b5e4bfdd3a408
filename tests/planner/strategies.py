"""Random small models for property tests: DAGs of everything that is split.

Every step takes a map [1, C, H, W] and gives one; where it makes no sense for this map or opset it
returns None, and another is drawn. Values stay near 1, so that an error is an error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from tests.planner import windows_drawn as windows
from tests.planner.sketch import Sketch

if TYPE_CHECKING:
    from random import Random

Step = Callable[[Sketch, str], str | None]
_OPSETS = (9, 10, 11, 12, 13, 14, 15, 16, 17, 17, 18, 19, 20, 21, 22)
_ACTIVATIONS = (
    "Relu", "LeakyRelu", "Sigmoid", "Tanh", "Elu", "HardSigmoid", "Abs", "Neg", "Selu", "Softsign",
    "Softplus", "Sin", "Erf",
)  # fmt: skip
_LARGEST = 9000
_LONGEST = 48


def _scalars(s: Sketch, *values: float) -> list[str]:
    return [s.constant(np.array(value, np.float32)) for value in values]


def _gelu(s: Sketch, x: str) -> str:
    root, one, half = _scalars(s, 2**0.5, 1, 0.5)
    risen = s.add("Add", s.add("Erf", s.add("Div", x, root)), one)
    return s.add("Mul", s.add("Mul", x, risen), half)


def _hard_swish(s: Sketch, x: str) -> str:
    if s.opset >= 14 and s.random.random() < 0.5:
        return s.add("HardSwish", x)
    three, six = _scalars(s, 3, 6)
    return s.add("Mul", x, s.add("Div", s.clip(s.add("Add", x, three), 0.0, 6.0), six))


_OWN_ACTIVATIONS: tuple[Step, ...] = (
    _gelu,
    _hard_swish,
    lambda s, x: s.add("Mul", x, s.add("Sigmoid", x)),
    lambda s, x: s.add("Mul", x, s.add("HardSigmoid", x, alpha=1 / 6, beta=0.5)),
    lambda s, x: s.clip(x, -0.8, 1.1),
    lambda s, x: s.add("PRelu", x, s.positive(s.shape(x)[1], 1, 1)),
)


def activate(s: Sketch, x: str) -> str | None:
    """Activation functions of one node and of several."""
    if s.random.random() < 0.6:
        return s.add(s.random.choice(_ACTIVATIONS), x)
    return s.random.choice(_OWN_ACTIVATIONS)(s, x)


def _instance(s: Sketch, x: str) -> str:
    parameters = s.positive(s.shape(x)[1]), s.weight(s.shape(x)[1])
    return s.add("InstanceNormalization", x, *parameters, epsilon=0.1)


def _grouped(s: Sketch, x: str) -> str:
    """GroupNormalization as torch writes it."""
    channels = s.shape(x)[1]
    groups = s.random.choice([g for g in range(1, channels + 1) if channels % g == 0])
    y = _instance(s, s.add("Reshape", x, s.ints(0, groups, -1)))
    y = s.add("Reshape", y, s.ints(*s.shape(x)))
    return s.add("Add", s.add("Mul", y, s.positive(channels, 1, 1)), s.weight(channels, 1, 1))


def _layer(s: Sketch, x: str) -> str | None:
    if s.opset < 17:
        return None
    last = s.add("Transpose", x, perm=[0, 2, 3, 1])
    axis = s.random.choice([-1, -1, 3, 1])
    shape = s.shape(last)[axis:]
    parameters = s.positive(*shape), s.weight(*shape)
    y = s.add("LayerNormalization", last, *parameters, axis=axis, epsilon=0.1)
    return s.add("Transpose", y, perm=[0, 3, 1, 2])


def _lp(s: Sketch, x: str) -> str:
    y = s.add("Add", x, s.constant(np.array(0.3, np.float32)))
    return s.add("LpNormalization", y, axis=s.random.choice([1, -1, 2]), p=2)


_NORMALIZATIONS: tuple[Step, ...] = (
    _instance, _instance, _grouped, _layer, _lp,
    lambda s, x: s.normalize(x),
    lambda s, x: s.add("LRN", x, size=s.random.choice([1, 3, 5]), alpha=0.3),
)  # fmt: skip


def normalize(s: Sketch, x: str) -> str | None:
    """Normalizations; epsilons are large lest a constant map become noise."""
    return s.random.choice(_NORMALIZATIONS)(s, x)


def scale(s: Sketch, x: str) -> str:
    """Sums and products with constants that are broadcast on some axes and not on others."""
    shape = [n if s.random.random() < 0.5 else 1 for n in s.shape(x)]
    while shape[0] == 1 and len(shape) > 1 and s.random.random() < 0.3:
        shape = shape[1:]
    op = s.random.choice(["Add", "Mul", "Sub", "Div", "Max", "Min"])
    other = s.positive(*shape) if op in {"Mul", "Div"} else s.weight(*shape)
    if op == "Sub" and s.random.random() < 0.5:
        return s.add(op, other, x)
    return s.add(op, x, other)


def residual(s: Sketch, x: str) -> str:
    """A residual block."""
    branch = windows.same_conv(s, x, s.shape(x)[1])
    if s.random.random() < 0.5:
        branch = s.normalize(branch)
    added = s.add("Add", *s.random.sample([branch, x], 2))
    return s.add("Relu", added) if s.random.random() < 0.7 else added


def inception(s: Sketch, x: str) -> str:
    """Branches that meet in one Concat."""
    branches = [
        windows.same_conv(s, x, 2),
        s.add("Relu", windows.same_conv(s, windows.same_conv(s, x, 3), 2)),
        s.add("MaxPool", x, kernel_shape=[3, 3], pads=[1] * 4, strides=[1, 1]),
        x,
        s.weight(1, 1, *s.shape(x)[2:]),
    ]
    chosen = s.random.sample(branches, s.random.randint(2, 3))
    return s.add("Concat", *chosen, axis=s.random.choice([1, -3]) if s.opset >= 11 else 1)


def dense(s: Sketch, x: str) -> str:
    """A dense block."""
    parts = [x]
    for _ in range(2):
        joined = s.add("Concat", *parts, axis=1) if len(parts) > 1 else x
        parts.append(s.add("Relu", windows.same_conv(s, joined, 2)))
    return s.add("Concat", *parts, axis=1)


def spatial_concat(s: Sketch, x: str) -> str | None:
    """A Concat along an axis that is split."""
    if s.size(x) * 2 > _LARGEST:
        return None
    axis = s.random.choice([2, 3])
    other = s.slice(x, axis, 0, s.random.randint(1, s.shape(x)[axis]))
    return s.add("Concat", *s.random.sample([x, other], 2), axis=axis)


def gate(s: Sketch, x: str) -> str:
    """Squeeze and excitation, and other scales that a whole map tells."""
    channels = s.shape(x)[1]
    kind = s.random.choice(["average", "max", "mean", "flat", "statistic", "pixel"])
    if kind in {"average", "max"}:
        pooled = s.add("GlobalAveragePool" if kind == "average" else "GlobalMaxPool", x)
    elif kind == "mean":
        op = s.random.choice(["ReduceMean", "ReduceMax", "ReduceMin"])
        pooled = s.reduce(op, x, s.random.choice([(2, 3), (-1, -2), (3, 2)]), 1)
    elif kind == "flat":
        mean = s.reduce("ReduceMean", x, (2, 3), 0)
        width = s.random.randint(2, 6)
        bias = [s.weight(width)] if s.opset < 11 or s.random.random() < 0.5 else []
        weight = s.filters(width, channels, fan_in=channels)
        hidden = s.add("Gemm", mean, weight, *bias, transB=1)
        hidden = s.add("Relu", hidden)
        out = s.add("MatMul", hidden, s.filters(width, channels, fan_in=width))
        gate_of = s.add("Sigmoid", s.squeeze("Unsqueeze", out, (2, 3)))
        return s.add("Mul", x, gate_of)
    elif kind == "statistic":
        axes = s.random.choice([(2,), (3,), (1,), (1, 2, 3), (2, 3)])
        op = s.random.choice(["ReduceL2", "ReduceSum", "ReduceSumSquare", "ReduceL1"])
        share = s.constant(np.array(1 / s.size(x), np.float32))
        told = s.add("Mul", s.reduce(op, x, axes, 1), share)
        return s.add("Add", x, told)
    else:
        return s.add("Mul", x, s.add("Sigmoid", windows.same_conv(s, x, 1)))
    hidden = s.add("Relu", windows.pixel_conv(s, pooled, s.random.randint(1, 20)))
    factor = s.add("Sigmoid", windows.pixel_conv(s, hidden, channels))
    return s.add("Mul", *s.random.sample([x, factor], 2))


def shuffle(s: Sketch, x: str) -> str | None:
    """ShuffleNet's shuffle of channels."""
    _, channels, rows, columns = s.shape(x)
    groups = [g for g in range(2, channels) if channels % g == 0]
    if not groups:
        return None
    group = s.random.choice(groups)
    y = s.add("Reshape", x, s.ints(1, group, channels // group, rows, columns))
    y = s.add("Transpose", y, perm=[0, 2, 1, 3, 4])
    return s.add("Reshape", y, s.ints(1, channels, rows, columns))


def flattened(s: Sketch, x: str) -> str | None:
    """What transformers do with a map: a list of pixels, mixed, and a map again."""
    shape = s.shape(x)
    channels, pixels = shape[1], shape[2] * shape[3]
    y = s.add("Reshape", x, s.ints(1, channels, pixels))
    kind = s.random.choice(["nothing", "softmax", "product", "attention", "row"])
    if kind == "softmax":
        y = s.add("Mul", y, s.add("Softmax", y, axis=s.random.choice([1, 2, -1])))
    elif kind == "row":
        y = s.add("Sub", y, s.reduce("ReduceMean", y, (2,), 1))
    elif kind in {"product", "attention"}:
        if pixels > 200:
            return None
        y = s.add("Transpose", y, perm=[0, 2, 1])
        if kind == "product":
            y = s.add("MatMul", y, s.filters(channels, channels, fan_in=channels))
            y = s.add("Add", y, s.weight(channels))
        else:
            # Exponentials of large products would enlarge every rounding.
            y = s.add("Tanh", y)
            keys = s.add("Transpose", y, perm=[0, 2, 1])
            scaled = s.add("Mul", s.add("MatMul", y, keys), s.floats(1 / (4 * channels)))
            y = s.add("MatMul", s.add("Softmax", scaled, axis=2), y)
        y = s.add("Transpose", y, perm=[0, 2, 1])
    return s.add("Reshape", y, s.ints(*shape))


def _split(s: Sketch, x: str) -> str | None:
    axis = s.random.choice([1, 1, 2, 3])
    extent = s.shape(x)[axis]
    if extent < 2:
        return None
    first = s.random.randint(1, extent - 1)
    left, right = s.split(x, axis, [first, extent - first])
    left = s.add("Relu", left)
    return s.add("Concat", *s.random.sample([left, right], 2), axis=axis)


def _pick(s: Sketch, x: str) -> str:
    axis = s.random.choice([1, 1, 1, 2, 3])
    extent = s.shape(x)[axis]
    picks = [s.random.randrange(extent) for _ in range(s.random.randint(1, extent))]
    return s.add("Gather", x, s.ints(*picks), axis=axis)


def _expand(s: Sketch, x: str) -> str:
    one = s.reduce("ReduceMean", x, (s.random.choice([1, 2, 3]),), 1)
    return s.add("Add", s.add("Expand", one, s.ints(*s.shape(x))), x)


def _tile(s: Sketch, x: str) -> str | None:
    if s.size(x) * 4 > _LARGEST:
        return None
    repeats = s.random.choice([(1, 2, 1, 1), (1, 1, 2, 1), (1, 1, 1, 3), (1, 1, 2, 2)])
    return s.add("Tile", x, s.ints(*repeats))


def _squeeze(s: Sketch, x: str) -> str:
    return s.squeeze("Unsqueeze", s.add("Tanh", s.squeeze("Squeeze", x, (0,))), (0,))


def _mirror(s: Sketch, x: str) -> str | None:
    return s.slice(x, s.random.choice([1, 2, 3]), -1, -(2**31), -1) if s.opset >= 10 else None


def sliced(s: Sketch, x: str) -> str | None:
    """A Slice with steps, from either end."""
    axis = s.random.choice([1, 2, 2, 3, 3])
    extent = s.shape(x)[axis]
    if extent < 4:
        return None
    start, end = s.random.randint(0, extent // 3), s.random.randint(extent - extent // 3, extent)
    step = s.random.choice([1, 1, 2, 3, -1, -2]) if s.opset >= 10 else 1
    if step < 0:
        start, end = end - 1, start - 1 if start else -(2**31)
    elif s.random.random() < 0.3:
        end = 2**31 if end == extent else end - extent
    return s.slice(x, axis, start, end, step)


_REARRANGEMENTS: tuple[Step, ...] = (
    _split, _pick, _expand, _tile, _squeeze, _mirror, sliced,
    lambda s, x: s.add("Transpose", x, perm=[0, 1, 3, 2]),
)  # fmt: skip


def rearrange(s: Sketch, x: str) -> str | None:
    """Everything that moves elements and computes nothing."""
    return s.random.choice(_REARRANGEMENTS)(s, x)


def padded(s: Sketch, x: str) -> str:
    """A Pad of rows and columns, at times of channels."""
    mode = s.random.choice(["constant", "edge", "reflect"])
    most = [min(4, n - 1 if mode == "reflect" else 4) for n in s.shape(x)[2:]]
    begin, end = ([s.random.randint(0, m) for m in most] for _ in range(2))
    channel = s.random.choice([0, 0, 1]) if mode == "constant" else 0
    pads = (0, channel, *begin, 0, 0, *end)
    return s.pad(x, pads, mode, s.random.choice([0.0, 0.7]))


def u_net(s: Sketch, x: str) -> str | None:
    """Down, something, up again, and the skip beside it."""
    _, channels, rows, columns = s.shape(x)
    if min(rows, columns) < 4:
        return None
    down = s.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    inner = s.add("Relu", windows.same_conv(s, down, channels + 1))
    if s.random.random() < 0.5:
        weight = s.filters(channels + 1, 3, 2, 2, fan_in=channels + 1)
        up = s.add("ConvTranspose", inner, weight, strides=[2, 2])
    else:
        up = s.resize(inner, scales=(1, 1, 2, 2), mode=s.random.choice(["nearest", "linear"]))
    held = s.shape(up)
    missing = (0, 0, 0, 0, 0, 0, rows - held[2], columns - held[3])
    up = s.pad(up, missing, "constant") if any(missing) else up
    return s.add("Concat", x, up, axis=1)


_STEPS: tuple[Step, ...] = (
    windows.conv, windows.conv, windows.conv, windows.conv_transpose, windows.pool, windows.pool,
    windows.resize, windows.resize, windows.blocks, activate, activate, normalize, scale,
    residual, inception, dense, spatial_concat, gate, gate, shuffle, flattened, rearrange,
    rearrange, padded, u_net,
)  # fmt: skip


def _head(s: Sketch, x: str) -> list[str]:
    """End in a map, in scores, or in several outputs."""
    kind = s.random.choice(["map", "softmax", "classes", "flat", "pooled", "mean", "product"])
    channels = s.shape(x)[1]
    if kind == "softmax":
        return [s.add("Softmax", x, axis=1)]
    if kind == "classes":
        keep = s.random.randint(0, 1)
        return [s.add("ArgMax", x, axis=1, keepdims=keep), x]
    if kind == "mean":
        y = s.reduce("ReduceMean", x, (2, 3), 0)
        return [s.add("Softmax", y, axis=1)]
    if kind == "map" or (kind == "flat" and s.size(x) > 4000):
        return [x]
    if kind == "product":
        y = s.add("Transpose", x, perm=[0, 2, 3, 1])
        y = s.add("MatMul", y, s.filters(channels, 5, fan_in=channels))
        return [s.add("Reshape", y, s.ints(1, -1, 5))]
    y = s.add("Flatten", s.add("GlobalAveragePool", x) if kind == "pooled" else x)
    width, depth = s.random.randint(3, 40), s.shape(y)[1]
    rows = s.random.randint(0, 1)
    weight = s.filters(*((width, depth) if rows else (depth, width)), fan_in=depth)
    y = s.add("Gemm", y, weight, s.weight(width), transB=rows)
    if s.random.random() < 0.5:
        y = s.add("Relu", y)
        y = s.add("Gemm", y, s.filters(7, width, fan_in=width), s.weight(1, 7), transB=1)
    return [y]


def sketch(random: Random) -> tuple[Sketch, list[str]]:
    """Draw a model, and the names of its outputs; what an ArgMax reads is one of them."""
    sides = random.choice([(7, 24, 7, 12), (7, 12, 7, 24), (3, 9, 3, 9), (17, 33, 5, 9)])
    shape = (1, random.randint(1, 5), random.randint(*sides[:2]), random.randint(*sides[2:]))
    s = Sketch(random, shape, random.choice(_OPSETS))
    x = "x"
    outputs: list[str] = []
    earlier: list[str] = []
    for _ in range(random.randint(1, 6)):
        y = None
        while y is None or s.size(y) > _LARGEST or max(s.shape(y)) > _LONGEST:
            y = random.choice(_STEPS)(s, x)
        x = y
        if earlier and random.random() < 0.3:
            other = random.choice(earlier)
            if s.shape(other)[2:] == s.shape(x)[2:]:
                x = s.add("Concat", x, other, axis=1)
        earlier.append(x)
        if random.random() < 0.15:
            outputs.append(x)
    if x == "x":
        x = s.add("Relu", x)
    return s, list(dict.fromkeys([*outputs, *_head(s, x)]))
