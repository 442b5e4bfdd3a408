"""Inception v3 (Szegedy 2015), as torchvision has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from models.zoo.builder import Builder

if TYPE_CHECKING:
    from models.zoo.graph import Value


class _Inception:
    """The modules, by the letters that torchvision gives them."""

    def __init__(self, b: Builder, share: int) -> None:
        self._b = b
        self._share = share

    def conv(
        self, x: Value, channels: int, *kernel: int, stride: int = 1, valid: bool = False
    ) -> Value:
        window = (kernel[0], kernel[-1])
        pads = 0 if valid else None
        return self._b.conv_bn(x, channels // self._share, window, stride, pads=pads)

    def pooled(self, x: Value, channels: int, *, count_pads: bool) -> Value:
        return self.conv(self._b.average_pool(x, 3, 1, 1, count_pads=count_pads), channels, 1)

    def module_a(self, x: Value, pool_channels: int) -> Value:
        return self._b.concat(
            [
                self.conv(x, 64, 1),
                self.conv(self.conv(x, 48, 1), 64, 5),
                self.conv(self.conv(self.conv(x, 64, 1), 96, 3), 96, 3),
                # PyTorch counts the border, TensorFlow does not: here both are found.
                self.pooled(x, pool_channels, count_pads=True),
            ]
        )

    def module_b(self, x: Value) -> Value:
        twice = self.conv(self.conv(x, 64, 1), 96, 3)
        return self._b.concat(
            [
                self.conv(x, 384, 3, stride=2, valid=True),
                self.conv(twice, 96, 3, stride=2, valid=True),
                self._b.max_pool(x, 3, 2),
            ]
        )

    def module_c(self, x: Value, width: int) -> Value:
        once = self.conv(self.conv(x, width, 1), width, 1, 7)
        twice = self.conv(self.conv(x, width, 1), width, 7, 1)
        twice = self.conv(self.conv(twice, width, 1, 7), width, 7, 1)
        return self._b.concat(
            [
                self.conv(x, 192, 1),
                self.conv(once, 192, 7, 1),
                self.conv(twice, 192, 1, 7),
                self.pooled(x, 192, count_pads=False),
            ]
        )

    def module_d(self, x: Value) -> Value:
        seven = self.conv(self.conv(self.conv(x, 192, 1), 192, 1, 7), 192, 7, 1)
        return self._b.concat(
            [
                self.conv(self.conv(x, 192, 1), 320, 3, stride=2, valid=True),
                self.conv(seven, 192, 3, stride=2, valid=True),
                self._b.max_pool(x, 3, 2),
            ]
        )

    def module_e(self, x: Value) -> Value:
        branches = [self.conv(x, 320, 1)]
        for y in (self.conv(x, 384, 1), self.conv(self.conv(x, 448, 1), 384, 3)):
            pair = [self.conv(y, 384, 1, 3), self.conv(y, 384, 3, 1)]
            branches.append(self._b.concat(pair))
        return self._b.concat([*branches, self.pooled(x, 192, count_pads=True)])


def inception_v3(*, small: bool) -> Builder:
    """1x7 and 7x1 windows, odd map sizes, no padding, borders averaged both ways."""
    b = Builder("inception_v3")
    net = _Inception(b, 16 if small else 1)
    x = b.input(1, 3, 107 if small else 299, 107 if small else 299)
    x = net.conv(x, 32, 3, stride=2, valid=True)
    x = net.conv(x, 32, 3, valid=True)
    x = net.conv(x, 64, 3)
    x = b.max_pool(x, 3, 2)
    x = net.conv(x, 80, 1)
    x = net.conv(x, 192, 3, valid=True)
    x = b.max_pool(x, 3, 2)
    for channels in (32, 64) if small else (32, 64, 64):
        x = net.module_a(x, channels)
    x = net.module_b(x)
    for width in (128, 192) if small else (128, 160, 160, 192):
        x = net.module_c(x, width)
    x = net.module_d(x)
    for _ in range(2):
        x = net.module_e(x)
    x = b.flatten(b.global_pool(x))
    b.output(b.gemm(x, 10 if small else 1000, 2.0), "logits")
    return b
