"""What several of the networks are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable

Pair = tuple[int, int]


def conv(
    inner: int,
    outer: int,
    kernel: int | Pair = 3,
    stride: int = 1,
    *,
    groups: int = 1,
    activation: Callable[[], nn.Module] | None = nn.ReLU,
) -> nn.Sequential:
    """Return a convolution with batch normalisation that keeps the size, but for its stride."""
    kernels = (kernel, kernel) if isinstance(kernel, int) else kernel
    padding = (kernels[0] // 2, kernels[1] // 2)
    layers = [
        nn.Conv2d(inner, outer, kernels, stride, padding, groups=groups, bias=False),
        nn.BatchNorm2d(outer),
    ]
    return nn.Sequential(*layers, *([activation()] if activation else []))


class Squeeze(nn.Module):
    """Squeeze-and-excitation: channels weighted by what the whole map holds."""

    def __init__(
        self, channels: int, gate: Callable[[], nn.Module], *, pooled: bool = True
    ) -> None:
        super().__init__()
        self.pooled = pooled
        self.reduce = nn.Conv2d(channels, 4, 1)
        self.act = nn.ReLU()
        self.expand = nn.Conv2d(4, channels, 1)
        self.gate = gate()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Weight the channels, averaged by a pooling or by a mean."""
        if self.pooled:
            mean = nn.functional.adaptive_avg_pool2d(x, 1)
        else:
            mean = x.mean((2, 3), keepdim=True)
        return x * self.gate(self.expand(self.act(self.reduce(mean))))


class Classifier(nn.Module):
    """Features, pooled over the whole map, flattened and classified."""

    def __init__(self, features: nn.Module, channels: int, classes: int = 10) -> None:
        super().__init__()
        self.features = features
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classify = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return a score for each class."""
        return self.classify(torch.flatten(self.pool(self.features(x)), 1))


def seed_weights(model: nn.Module, seed: int) -> nn.Module:
    """Give every weight a seeded value that keeps activations varied; return the model."""
    generator = torch.Generator().manual_seed(seed)

    def normal(values: torch.Tensor, deviation: float) -> None:
        values.copy_(torch.randn(values.shape, generator=generator) * deviation)

    def uniform(values: torch.Tensor, low: float, high: float) -> None:
        values.copy_(torch.rand(values.shape, generator=generator) * (high - low) + low)

    with torch.no_grad():
        for name, values in model.named_parameters():
            if values.dim() > 1:
                normal(values, (1.5 / values[0].numel()) ** 0.5)
            elif name.endswith("bias"):
                normal(values, 0.2)
            else:
                uniform(values, 0.1, 0.9)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                uniform(module.weight, 0.7, 1.3)
                normal(module.running_mean, 0.2)
                uniform(module.running_var, 0.5, 1.5)
    return model
