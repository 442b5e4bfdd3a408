"""Small classifiers of the families that people run."""

from __future__ import annotations

import torch
from torch import nn

from tests.torch_models.parts import Classifier, Squeeze, conv


def chain() -> nn.Module:
    """VGG's way: convolutions and poolings, then a pooled grid and two layers that classify it."""
    return nn.Sequential(
        *(conv(3, 8), conv(8, 8), nn.MaxPool2d(2)),
        *(conv(8, 12), conv(12, 12), nn.MaxPool2d(2)),
        *(nn.AdaptiveAvgPool2d(4), nn.Flatten()),
        *(nn.Linear(12 * 4 * 4, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 10), nn.Softmax(1)),
    )


def alexnet() -> nn.Module:
    """AlexNet: a wide first kernel, local response normalisation, grouped convolutions."""
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 11, 4, 2), nn.ReLU(), nn.LocalResponseNorm(5), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(8, 12, 5, padding=2, groups=2), nn.ReLU(), nn.LocalResponseNorm(3, k=2.0)),
        *(nn.Conv2d(12, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 4)),
        *(nn.Flatten(), nn.Dropout(), nn.Linear(108, 16), nn.ReLU(), nn.Linear(16, 10)),
    )


class Residual(nn.Module):
    """ResNet's block, basic or a bottleneck, with a projection where shapes change."""

    def __init__(self, inner: int, outer: int, stride: int, *, bottleneck: bool) -> None:
        super().__init__()
        if bottleneck:
            layers = [conv(inner, 4, 1), conv(4, 4, 3, stride), conv(4, outer, 1, activation=None)]
        else:
            layers = [conv(inner, outer, 3, stride), conv(outer, outer, activation=None)]
        self.body = nn.Sequential(*layers)
        same = inner == outer and stride == 1
        self.skip = nn.Identity() if same else conv(inner, outer, 1, stride, activation=None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add what the block changes."""
        return nn.functional.relu(self.body(x) + self.skip(x))


def resnet(*, bottleneck: bool) -> nn.Module:
    """ResNet with its stem and two blocks of each of two sizes."""
    stem = [conv(3, 8, 7, 2), nn.MaxPool2d(3, 2, 1)]
    shapes = [(8, 8, 1), (8, 8, 1), (8, 12, 2), (12, 12, 1)]
    blocks = [Residual(*shape, bottleneck=bottleneck) for shape in shapes]
    return Classifier(nn.Sequential(*stem, *blocks), 12)


class DenseLayer(nn.Module):
    """DenseNet's layer: normalised before it is convolved, joined to what came before."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.norm, self.reduce = nn.BatchNorm2d(inner), nn.Conv2d(inner, 8, 1, bias=False)
        self.again, self.grow = nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the input with four channels more."""
        bottleneck = self.reduce(nn.functional.relu(self.norm(x)))
        return torch.cat([x, self.grow(nn.functional.relu(self.again(bottleneck)))], 1)


def densenet() -> nn.Module:
    """DenseNet: two dense blocks and the transition between them."""
    return Classifier(
        nn.Sequential(
            *(conv(3, 8, 3, 2), DenseLayer(8), DenseLayer(12), DenseLayer(16)),
            *(nn.BatchNorm2d(20), nn.ReLU(), nn.Conv2d(20, 8, 1), nn.AvgPool2d(2, 2)),
            *(DenseLayer(8), DenseLayer(12), nn.BatchNorm2d(16), nn.ReLU()),
        ),
        16,
    )


class Mixed(nn.Module):
    """Inception's block: a 1x1, a factorised 7x7, a 3x3 and a pooling, joined."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.single = conv(inner, 4, 1)
        self.factors = nn.Sequential(conv(inner, 4, 1), conv(4, 4, (1, 7)), conv(4, 4, (7, 1)))
        self.small = nn.Sequential(conv(inner, 4, 1), conv(4, 4))
        self.average = nn.AvgPool2d(3, 1, 1, count_include_pad=False)
        self.pooled = conv(inner, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the four branches side by side."""
        branches = [self.single(x), self.factors(x), self.small(x)]
        return torch.cat([*branches, self.pooled(self.average(x))], 1)


class Reduction(nn.Module):
    """Inception's way to a smaller map: a convolution and a pooling without padding, joined."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.step, self.pool = nn.Conv2d(inner, 8, 3, 2), nn.MaxPool2d(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Halve the map."""
        return torch.cat([self.step(x), self.pool(x)], 1)


def inception() -> nn.Module:
    """Inception: mixed blocks around a reduction, on an odd picture."""
    return Classifier(nn.Sequential(conv(3, 8, 3, 2), Mixed(8), Reduction(16), Mixed(24)), 16)


class Fire(nn.Module):
    """SqueezeNet's module: a squeeze by 1x1, an expansion by 1x1 and 3x3."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inner, 4, 1)
        self.one, self.three = nn.Conv2d(4, 8, 1), nn.Conv2d(4, 8, 3, padding=1)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return both expansions side by side."""
        x = self.act(self.squeeze(x))
        return torch.cat([self.act(self.one(x)), self.act(self.three(x))], 1)


def squeezenet() -> nn.Module:
    """SqueezeNet: fire modules, poolings that round up, and a classifier that is a convolution."""
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, ceil_mode=True)),
        *(Fire(8), Fire(16), nn.MaxPool2d(3, 2, ceil_mode=True), Fire(16)),
        *(nn.Conv2d(16, 10, 1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )


class Shuffled(nn.Module):
    """ShuffleNetV2's unit: half of the channels convolved, then all shuffled."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(
            conv(half, half, 1),
            conv(half, half, groups=half, activation=None),
            conv(half, half, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return as many channels, shuffled."""
        kept, changed = x.chunk(2, dim=1)
        x = torch.cat([kept, self.branch(changed)], 1)
        batch, channels, height, width = x.size()
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).contiguous()
        return x.view(batch, channels, height, width)


def shufflenet() -> nn.Module:
    """ShuffleNetV2: its stem and three units."""
    units = [Shuffled(8), Shuffled(8), conv(8, 16, 1), Shuffled(16)]
    return Classifier(nn.Sequential(conv(3, 8, 3, 2), nn.MaxPool2d(3, 2, 1), *units), 16)


class Inverted(nn.Module):
    """MobileNet's inverted residual: expanded, convolved by channel, squeezed, projected."""

    def __init__(
        self,
        inner: int,
        outer: int,
        stride: int,
        activation: type[nn.Module],
        squeeze: Squeeze | None = None,
    ) -> None:
        super().__init__()
        wide = 2 * inner
        layers = [
            conv(inner, wide, 1, activation=activation),
            conv(wide, wide, 3, stride, groups=wide, activation=activation),
            *([squeeze] if squeeze else []),
            conv(wide, outer, 1, activation=None),
        ]
        self.body = nn.Sequential(*layers)
        self.adds = inner == outer and stride == 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add what the block changes, where shapes allow."""
        return x + self.body(x) if self.adds else self.body(x)


def mobilenet2() -> nn.Module:
    """MobileNetV2: inverted residuals with ReLU6."""
    shapes = [(8, 8, 1), (8, 12, 2), (12, 12, 1), (12, 16, 2)]
    blocks = [Inverted(*shape, nn.ReLU6) for shape in shapes]
    return Classifier(nn.Sequential(conv(3, 8, 3, 2, activation=nn.ReLU6), *blocks), 16)


def mobilenet3() -> nn.Module:
    """MobileNetV3: Hardswish, and squeeze-and-excitation by a pooling."""
    blocks = [
        Inverted(8, 8, 1, nn.ReLU, Squeeze(16, nn.Hardsigmoid)),
        Inverted(8, 12, 2, nn.Hardswish, Squeeze(16, nn.Hardsigmoid)),
        Inverted(12, 12, 1, nn.Hardswish, Squeeze(24, nn.Hardsigmoid)),
    ]
    return Classifier(nn.Sequential(conv(3, 8, 3, 2, activation=nn.Hardswish), *blocks), 12)


def efficientnet() -> nn.Module:
    """EfficientNet: SiLU, and squeeze-and-excitation by a mean."""
    blocks = [
        Inverted(8, 8, 1, nn.SiLU, Squeeze(16, nn.Sigmoid, pooled=False)),
        Inverted(8, 12, 2, nn.SiLU, Squeeze(16, nn.Sigmoid, pooled=False)),
        Inverted(12, 12, 1, nn.SiLU),
    ]
    return Classifier(nn.Sequential(conv(3, 8, 3, 2, activation=nn.SiLU), *blocks), 12)


class Next(nn.Module):
    """ConvNeXt's block: a wide convolution by channel, then dense layers on the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.wide = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.grow, self.act = nn.Linear(channels, 2 * channels), nn.GELU()
        self.shrink = nn.Linear(2 * channels, channels)
        self.scale = nn.Parameter(torch.ones(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add what the block changes."""
        last = self.norm(self.wide(x).permute(0, 2, 3, 1))
        return x + (self.scale * self.shrink(self.act(self.grow(last)))).permute(0, 3, 1, 2)


def convnext() -> nn.Module:
    """ConvNeXt: a stem of patches and two blocks."""
    return Classifier(nn.Sequential(nn.Conv2d(3, 8, 4, 4), Next(8), Next(8)), 8)


def group_norm() -> nn.Module:
    """A chain with group normalisation, whose statistics are those of the whole map."""
    return Classifier(
        nn.Sequential(
            *(nn.Conv2d(3, 8, 3, 2, 1), nn.GroupNorm(4, 8), nn.ReLU()),
            *(nn.Conv2d(8, 12, 3, padding=1), nn.GroupNorm(2, 12), nn.ReLU(), nn.MaxPool2d(2)),
        ),
        12,
    )
