"""Random operators that move a window over a map, enlarge it or shrink it."""

from __future__ import annotations

from math import floor
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tests.planner.sketch import Sketch

_PLACES = ("asymmetric", "half_pixel", "pytorch_half_pixel", "align_corners")
_NEAREST = ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")
_AWKWARD = (1.25, 1.5, 1.7, 2.3, 3.1, 0.5, 0.6, 0.34, 0.75)


def same_conv(s: Sketch, x: str, filters: int) -> str:
    """A convolution that keeps the map's size."""
    kernel = s.random.choice([(3, 3), (1, 1), (5, 3), (1, 5), (3, 1)])
    channels = s.shape(x)[1]
    weight = s.filters(filters, channels, *kernel, fan_in=channels * kernel[0] * kernel[1])
    pads = [side // 2 for side in kernel] * 2
    bias = [s.weight(filters)] if s.random.random() < 0.6 else []
    return s.add("Conv", x, weight, *bias, pads=pads)


def pixel_conv(s: Sketch, x: str, filters: int) -> str:
    """A convolution of one pixel."""
    channels = s.shape(x)[1]
    weight = s.filters(filters, channels, 1, 1, fan_in=channels)
    return s.add("Conv", x, weight, s.weight(filters))


def _window(
    s: Sketch, x: str, kernel: tuple[int, int], strides: int, dilations: int, *, wide: bool
) -> dict[str, Any] | None:
    """Draw strides, dilations and padding; None where nothing would be left."""
    r = s.random
    window: dict[str, Any] = {"strides": [r.randint(1, strides), r.randint(1, strides)]}
    mode = r.choice(["pads"] * 4 + ["SAME_UPPER", "SAME_LOWER", "VALID"])
    if mode == "pads" and dilations > 1:
        window["dilations"] = [r.randint(1, dilations), r.randint(1, dilations)]
    reach = [d * (k - 1) for k, d in zip(kernel, window.get("dilations", (1, 1)), strict=True)]
    if mode != "pads":
        # onnxruntime refuses poolings whose padding would be negative.
        fits = all(far + 1 >= step for far, step in zip(reach, window["strides"], strict=True))
        window["auto_pad"] = mode if wide or fits else "VALID"
        room = list(s.shape(x)[2:])
    else:
        most = [n + (1 if wide and r.random() < 0.1 else 0) for n in reach]
        if not wide:
            most = [k - 1 for k in kernel]
        pads = [r.randint(0, min(m, 5)) for m in most * 2]
        window["pads"] = pads
        room = [n + pads[a] + pads[a + 2] for a, n in enumerate(s.shape(x)[2:])]
    if any(have <= far for have, far in zip(room, reach, strict=True)):
        return None
    return window


def conv(s: Sketch, x: str) -> str | None:
    """Convolutions of all kinds."""
    r, channels = s.random, s.shape(x)[1]
    kernel = r.choice([(3, 3), (1, 1), (2, 2), (1, 5), (5, 1), (3, 2), (4, 4), (1, 3)])
    window = _window(s, x, kernel, 3, 3, wide=True)
    if window is None:
        return None
    group = r.choice([g for g in (1, 1, 2, 3, channels) if channels % g == 0])
    filters = group * r.randint(1, 3)
    inner = channels // group
    weight = s.filters(filters, inner, *kernel, fan_in=inner * kernel[0] * kernel[1])
    bias = [s.weight(filters)] if r.random() < 0.6 else []
    y = s.add("Conv", x, weight, *bias, group=group, **window)
    return s.add("Relu", y) if r.random() < 0.5 else y


def conv_transpose(s: Sketch, x: str) -> str | None:
    """Transposed convolutions, also with gaps between windows."""
    r, shape = s.random, s.shape(x)
    group = r.choice([g for g in (1, 1, 2, shape[1]) if shape[1] % g == 0])
    filters = r.randint(1, 3)
    kernel = [r.randint(1, 4), r.randint(1, 4)]
    strides = [r.randint(1, 3), r.randint(1, 3)]
    dilations = [r.choice([1, 1, 2]), r.choice([1, 1, 2])]
    reach = [d * (k - 1) for k, d in zip(kernel, dilations, strict=True)]
    window: dict[str, Any] = {"strides": strides, "dilations": dilations}
    if r.random() < 0.8:
        window["pads"] = [r.randint(0, min(far, 2)) for far in reach * 2]
    if r.random() < 0.3:
        window["output_padding"] = [r.randint(0, step - 1) for step in strides]
    pads = window.get("pads", [0] * 4)
    sides = [
        (n - 1) * step + far + 1 - pads[a] - pads[a + 2]
        for a, (n, step, far) in enumerate(zip(shape[2:], strides, reach, strict=True))
    ]
    if min(sides) < 1:
        return None
    inner = shape[1] // group
    weight = s.filters(shape[1], filters, *kernel, fan_in=inner * kernel[0] * kernel[1])
    bias = [s.weight(filters * group)] if r.random() < 0.6 else []
    return s.add("ConvTranspose", x, weight, *bias, group=group, **window)


def pool(s: Sketch, x: str) -> str | None:
    """Poolings of all kinds."""
    r = s.random
    op = r.choice(["MaxPool", "MaxPool", "AveragePool", "AveragePool", "LpPool"])
    kernel = (r.randint(1, 3), r.randint(1, 3))
    since = {"MaxPool": 10, "AveragePool": 19, "LpPool": 18}[op]
    window = _window(s, x, kernel, 3, 2 if s.opset >= since else 1, wide=False)
    if window is None:
        return None
    if op == "AveragePool":
        window["count_include_pad"] = r.randint(0, 1)
    rounds = s.opset >= (18 if op == "LpPool" else 10) and "pads" in window
    if rounds and r.random() < 0.4:
        window |= {"ceil_mode": 1, "pads": [*window["pads"][:2], 0, 0]}
        if _ends_in_padding(s, x, kernel, window):
            return None
    y = s.add(op, x, kernel_shape=list(kernel), **window)
    if op == "LpPool":
        return s.add("Mul", y, s.floats(1 / (kernel[0] * kernel[1])))
    return y


def _ends_in_padding(s: Sketch, x: str, kernel: tuple[int, int], window: dict[str, Any]) -> bool:
    """Tell whether a window lies in the padding or beyond, which is refused at import."""
    dilations = window.get("dilations", (1, 1))
    for axis, extent in enumerate(s.shape(x)[2:]):
        room = extent + window["pads"][axis]
        left = room - dilations[axis] * (kernel[axis] - 1) - 1
        step = window["strides"][axis]
        if left < 0 or -(-left // step) * step >= room:
            return True
    return False


def resize(s: Sketch, x: str) -> str | None:
    """Resize in every mode, by scales and by sizes; Upsample before opset 10."""
    r, shape = s.random, s.shape(x)
    modes = ["nearest", "linear"] + (["cubic"] if s.opset >= 11 else [])
    attributes: dict[str, Any] = {"mode": r.choice(modes)}
    if r.random() < 0.4:
        scales = [float(r.randint(1, 3)), float(r.randint(1, 3))]
    else:
        scales = [r.choice((1.0, *_AWKWARD)), r.choice(_AWKWARD)]
        if s.opset < 10:
            scales = [max(1.0, value) for value in scales]
    sizes = [floor(n * factor) for n, factor in zip(shape[2:], scales, strict=True)]
    rounded = [int(np.float32(n) * np.float32(f)) for n, f in zip(shape[2:], scales, strict=True)]
    # onnxruntime's sizes may be one more than those it infers: see test_resize_by_scales.
    inferred = [int(n * float(np.float32(f))) for n, f in zip(shape[2:], scales, strict=True)]
    if min(sizes) < 1 or rounded != inferred:
        return None
    if s.opset < 11:
        return s.resize(x, scales=(1.0, 1.0, *scales), **attributes)
    attributes["coordinate_transformation_mode"] = r.choice(_PLACES)
    if attributes["mode"] == "nearest":
        attributes["nearest_mode"] = r.choice(_NEAREST)
    if attributes["mode"] == "cubic":
        # onnxruntime takes a map of one column for channels.
        if min(*sizes, *shape[2:]) < 2:
            return None
        attributes["cubic_coeff_a"] = r.choice([-0.75, -0.5])
    if r.random() < 0.5:
        return s.resize(x, sizes=(*shape[:2], *sizes), **attributes)
    return s.resize(x, scales=(1.0, 1.0, *scales), **attributes)


def blocks(s: Sketch, x: str) -> str | None:
    """Pixels from channels, and channels from pixels."""
    _, channels, rows, columns = s.shape(x)
    fitting = [b for b in (2, 3) if rows % b == 0 and columns % b == 0]
    if s.random.random() < 0.5 and fitting and channels <= 6:
        return s.add("SpaceToDepth", x, blocksize=s.random.choice(fitting))
    block = s.random.choice([2, 3])
    wide = same_conv(s, x, block**2 * s.random.randint(1, 2))
    mode = {"mode": s.random.choice(["DCR", "CRD"])} if s.opset >= 11 else {}
    return s.add("DepthToSpace", wide, blocksize=block, **mode)
