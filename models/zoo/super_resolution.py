"""Two networks that enlarge pictures: ESPCN (Shi 2016), and EDSR's baseline (Lim 2017)."""

from __future__ import annotations

import numpy as np

from models.zoo.builder import Builder

_MEAN = (0.4488, 0.4371, 0.4040)  # of DIV2K's pictures


def espcn(*, small: bool) -> Builder:
    """One channel, enlarged three times by DepthToSpace."""
    b = Builder("espcn", opset=13, ir_version=7)
    size, width = (64, 8) if small else (224, 64)
    x = b.relu(b.conv(b.input(1, 1, size, size), width, 5))
    x = b.relu(b.conv(x, width))
    x = b.relu(b.conv(x, width // 2))
    b.output(b.depth_to_space(b.conv(x, 9), 3), "enlarged")
    return b


def edsr(*, small: bool) -> Builder:
    """Sixteen residual blocks without normalization, enlarged twice by DepthToSpace."""
    b = Builder("edsr", opset=13, ir_version=7)
    size, width = (64, 8) if small else (128, 64)
    mean = b.constant(np.array(_MEAN, np.float32).reshape(1, 3, 1, 1), "mean")
    image = b.input(1, 3, size, size)
    x = b.node("Sub", [image, mean], image.shape, image.moments)
    first = x = b.conv(x, width)
    for _ in range(3 if small else 16):
        y = b.conv(b.relu(b.conv(x, width)), width, gain=0.5)
        x = b.add(y, x)
    x = b.add(b.conv(x, width), first)
    x = b.depth_to_space(b.conv(x, 4 * width), 2)
    x = b.conv(x, 3)
    b.output(b.node("Add", [x, mean], x.shape, x.moments), "enlarged")
    return b
