"""VGG-19 (Simonyan and Zisserman 2014); VGG-16 is models/vgg16.py."""

from __future__ import annotations

from models.zoo.builder import Builder


def vgg19(*, small: bool) -> Builder:
    """Sixteen 3x3 convolutions and three Gemms, a plain chain."""
    b = Builder("vgg19")
    width = 4 if small else 64
    x = b.input(1, 3, 64 if small else 224, 64 if small else 224)
    for convs, factor in ((2, 1), (2, 2), (4, 4), (4, 8), (4, 8)):
        for _ in range(convs):
            x = b.relu(b.conv(x, factor * width))
        x = b.max_pool(x, 2, 2)
    x = b.flatten(x)
    for _ in range(2):
        x = b.relu(b.gemm(x, 64 * width))
    b.output(b.gemm(x, 10 if small else 1000), "logits")
    return b
