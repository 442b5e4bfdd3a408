"""Small networks whose answers are maps: segmentation, super-resolution, style, odd geometry."""

from __future__ import annotations

import torch
from torch import nn

from tests.torch_models.parts import conv


class TransposedUNet(nn.Module):
    """U-Net with ConvTranspose2d, of even and of overlapping kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.deep = conv(3, 6), conv(6, 8), conv(8, 12)
        self.pool = nn.MaxPool2d(2)
        self.up_even = nn.ConvTranspose2d(12, 8, 2, 2)
        self.up_over = nn.ConvTranspose2d(8, 6, 3, 2, padding=1, output_padding=1)
        self.join_deep, self.join = conv(16, 8), conv(12, 6)
        self.answer = nn.Conv2d(6, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return a map of probabilities."""
        first = self.first(x)
        second = self.second(self.pool(first))
        x = self.up_even(self.deep(self.pool(second)))
        x = self.up_over(self.join_deep(torch.cat([second, x], 1)))
        return torch.sigmoid(self.answer(self.join(torch.cat([first, x], 1))))


class InterpolatedUNet(nn.Module):
    """U-Net with bilinear interpolation, once with aligned corners and once without."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.deep = conv(3, 6), conv(6, 8), conv(8, 8)
        self.pool = nn.MaxPool2d(2)
        self.join_deep, self.join = conv(16, 6), conv(12, 6)
        self.answer = nn.Conv2d(6, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return a map of scores."""
        grow = nn.functional.interpolate
        first = self.first(x)
        second = self.second(self.pool(first))
        x = self.deep(self.pool(second))
        x = grow(x, size=second.shape[2:], mode="bilinear", align_corners=True)
        x = self.join_deep(torch.cat([second, x], 1))
        x = grow(x, scale_factor=2, mode="bilinear", align_corners=False)
        return self.answer(self.join(torch.cat([first, x], 1)))


class DeepLab(nn.Module):
    """DeepLab: dilated convolutions, pooled at several rates and over the whole picture."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 8, 3, 2), conv(8, 8, 3, 2))
        self.backbone = nn.Conv2d(8, 8, 3, padding=2, dilation=2)
        rates = (1, 2, 3)
        self.rates = nn.ModuleList(nn.Conv2d(8, 4, 3, padding=r, dilation=r) for r in rates)
        self.image = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 4, 1), nn.ReLU())
        self.project, self.answer = conv(16, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return a map of scores of the picture's size."""
        size = x.shape[2:]
        x = nn.functional.relu(self.backbone(self.stem(x)))
        image = nn.functional.interpolate(
            self.image(x), size=x.shape[2:], mode="bilinear", align_corners=False
        )
        branches = [nn.functional.relu(rate(x)) for rate in self.rates]
        x = self.answer(self.project(torch.cat([*branches, image], 1)))
        return nn.functional.interpolate(x, size=size, mode="bilinear", align_corners=False)


def super_resolution() -> nn.Module:
    """ESPCN: convolutions and a pixel shuffle."""
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 5, padding=2), nn.Tanh(), nn.Conv2d(8, 8, 3, padding=1), nn.Tanh()),
        *(nn.Conv2d(8, 9, 3, padding=1), nn.PixelShuffle(3)),
    )


class Reflected(nn.Module):
    """Style transfer's layer: reflected padding, a convolution, instance normalisation."""

    def __init__(self, inner: int, outer: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.pad = nn.ReflectionPad2d(kernel // 2)
        self.conv = nn.Conv2d(inner, outer, kernel, stride)
        self.norm = nn.InstanceNorm2d(outer, affine=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return a normalised map of the same size, but for the stride."""
        return self.norm(self.conv(self.pad(x)))


class Style(nn.Module):
    """Fast style transfer: down, a residual block, and up by nearest interpolation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.down = Reflected(3, 6, 5), Reflected(6, 8, 3, 2)
        self.body = nn.Sequential(Reflected(8, 8), nn.ReLU(), Reflected(8, 8))
        self.up = Reflected(8, 6)
        self.answer = nn.Sequential(nn.ReflectionPad2d(2), nn.Conv2d(6, 3, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return a picture of the same size."""
        act = nn.functional.relu
        x = act(self.down(act(self.first(x))))
        x = x + self.body(x)
        x = nn.functional.interpolate(x, mode="nearest", scale_factor=2)
        return torch.tanh(self.answer(act(self.up(x))))


class Odd(nn.Module):
    """Strides of three, a kernel of 1x7 and padding on some sides only, on an odd picture."""

    def __init__(self) -> None:
        super().__init__()
        self.strided = nn.Conv2d(3, 8, 5, 3, 1)
        self.flat = nn.Conv2d(8, 8, (1, 7), padding=(0, 3))
        self.plain = nn.Conv2d(8, 8, 3, 2)
        self.mixed = nn.Conv2d(8, 8, (3, 2), (1, 2), (0, 1), dilation=(2, 1))
        self.answer = nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return a small map."""
        x = nn.functional.leaky_relu(self.flat(nn.functional.relu(self.strided(x))), 0.1)
        x = self.plain(nn.functional.pad(x, (0, 1, 2, 1)))
        x = nn.functional.max_pool2d(nn.functional.pad(x, (1, 0, 0, 1), value=-9.0), (3, 2), 1)
        return self.answer(nn.functional.relu(self.mixed(x)))


def activations() -> nn.Module:
    """A layer with each of the less usual activations."""
    kinds = [
        *(nn.PReLU(8), nn.LeakyReLU(0.2), nn.Softplus(), nn.Mish(), nn.Hardtanh(-2.0, 2.0)),
        *(nn.ELU(), nn.SELU(), nn.PReLU(), nn.GELU("tanh"), nn.Softsign(), nn.LogSigmoid()),
    ]
    layers = [nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), kind) for kind in kinds]
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), *layers, nn.Softmax2d())


class Heads(nn.Module):
    """One backbone with four heads: a class, an embedding, a map and a depth."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(conv(3, 8, 3, 2), conv(8, 8), conv(8, 12, 3, 2))
        self.classify, self.embed = nn.Linear(12, 5), nn.Linear(12, 8)
        self.segment = nn.Conv2d(12, 3, 1)
        self.depth = nn.Sequential(conv(12, 6), nn.Conv2d(6, 1, 3, padding=1), nn.Softplus())

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the answers of all heads."""
        x = self.backbone(x)
        mean, most = x.mean((2, 3)), x.amax((2, 3))
        embedding = nn.functional.normalize(self.embed(most), dim=1)
        labels = torch.log_softmax(self.classify(mean), 1)
        return labels, embedding, torch.softmax(self.segment(x), 1), self.depth(x)
