"""Small detectors: YOLO's blocks with raw and with decoded heads."""

from __future__ import annotations

import torch
from torch import nn

from tests.torch_models.parts import conv

STRIDES = (4, 8, 16)
CLASSES = 3
BINS = 4


class Bottleneck(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(channels, channels, activation=nn.SiLU),
            conv(channels, channels, activation=nn.SiLU),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add what the block changes."""
        return x + self.body(x)


class C2f(nn.Module):
    """YOLOv8's block: split in two, each bottleneck's output kept, all joined."""

    def __init__(self, inner: int, outer: int, *, chunked: bool = False) -> None:
        super().__init__()
        self.half, self.chunked = outer // 2, chunked
        self.first = conv(inner, outer, 1, activation=nn.SiLU)
        self.inside = nn.ModuleList([Bottleneck(self.half)])
        self.last = conv(3 * self.half, outer, 1, activation=nn.SiLU)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return `outer` channels."""
        x = self.first(x)
        parts = list(x.chunk(2, 1) if self.chunked else x.split((self.half, self.half), 1))
        parts.extend(block(parts[-1]) for block in self.inside)
        return self.last(torch.cat(parts, 1))


class Sppf(nn.Module):
    """Three poolings in a row, all joined."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = conv(channels, 4, 1, activation=nn.SiLU)
        self.pool = nn.MaxPool2d(5, 1, 2)
        self.last = conv(16, channels, 1, activation=nn.SiLU)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return as many channels."""
        maps = [self.first(x)]
        for _ in range(3):
            maps.append(self.pool(maps[-1]))
        return self.last(torch.cat(maps, 1))


class Pyramid(nn.Module):
    """YOLO's backbone and neck: three maps of eight channels, at strides 4, 8 and 16."""

    def __init__(self) -> None:
        super().__init__()
        act = nn.SiLU
        self.stem = nn.Sequential(
            conv(3, 6, 3, 2, activation=act), conv(6, 8, 3, 2, activation=act)
        )
        self.middle = nn.Sequential(conv(8, 8, 3, 2, activation=act), C2f(8, 8, chunked=True))
        self.coarse = nn.Sequential(conv(8, 8, 3, 2, activation=act), Sppf(8))
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.join_middle, self.join_fine = C2f(16, 8), C2f(16, 8, chunked=True)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the maps from fine to coarse."""
        fine = self.stem(x)
        middle = self.middle(fine)
        coarse = self.coarse(middle)
        middle = self.join_middle(torch.cat([self.up(coarse), middle], 1))
        fine = self.join_fine(torch.cat([self.up(middle), fine], 1))
        return fine, middle, coarse


class RawDetector(nn.Module):
    """Three outputs, one for each stride, as the device's own code would decode them."""

    def __init__(self) -> None:
        super().__init__()
        self.pyramid = Pyramid()
        self.heads = nn.ModuleList(nn.Conv2d(8, 5 + CLASSES, 1) for _ in STRIDES)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return boxes, objectness and classes of each cell."""
        maps = self.pyramid(x)
        return tuple(head(m) for head, m in zip(self.heads, maps, strict=True))


class DecodedDetector(nn.Module):
    """YOLOv8's head: distributions of distances, decoded to boxes with scores in one tensor."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.pyramid = Pyramid()
        self.heads = nn.ModuleList(nn.Conv2d(8, 4 * BINS + CLASSES, 1) for _ in STRIDES)
        centres, strides = [], []
        for stride in STRIDES:
            rows = torch.arange(size[0] // stride) + 0.5
            columns = torch.arange(size[1] // stride) + 0.5
            y, x = torch.meshgrid(rows, columns, indexing="ij")
            centres.append(torch.stack((x, y), -1).view(-1, 2))
            strides.append(torch.full((centres[-1].shape[0], 1), float(stride)))
        self.register_buffer("centres", torch.cat(centres).transpose(0, 1).unsqueeze(0))
        self.register_buffer("strides", torch.cat(strides).transpose(0, 1))
        self.register_buffer("bins", torch.arange(BINS, dtype=torch.float32).view(1, BINS, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (1, 4 + classes, cells): box centres and sizes, and scores."""
        maps = self.pyramid(x)
        answers = [head(one) for head, one in zip(self.heads, maps, strict=True)]
        joined = [one.view(one.shape[0], 4 * BINS + CLASSES, -1) for one in answers]
        distances, scores = torch.cat(joined, 2).split((4 * BINS, CLASSES), 1)
        distances = distances.view(1, 4, BINS, -1).transpose(2, 1).softmax(1)
        left, right = (distances * self.bins).sum(1).chunk(2, 1)
        low, high = self.centres - left, self.centres + right
        boxes = torch.cat([(low + high) / 2, high - low], 1) * self.strides
        return torch.cat([boxes, scores.sigmoid()], 1)


class GridDetector(nn.Module):
    """YOLOv5's head: anchors by cell, the grid made while tracing, decoded by slices."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            conv(3, 8, 6, 2, activation=nn.LeakyReLU),
            conv(8, 8, 3, 2, activation=nn.LeakyReLU),
            conv(8, 12, 3, 2, activation=nn.LeakyReLU),
        )
        self.head = nn.Conv2d(12, 2 * (5 + CLASSES), 1)
        self.register_buffer("anchors", torch.tensor([[10.0, 13.0], [33.0, 23.0]]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (1, cells * anchors, 5 + classes)."""
        x = self.head(self.backbone(x))
        rows, columns = x.shape[2:]
        x = x.view(1, 2, 5 + CLASSES, rows, columns).permute(0, 1, 3, 4, 2).contiguous().sigmoid()
        y, z = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        grid = torch.stack((z, y), 2).view(1, 1, rows, columns, 2).float()
        centre = (x[..., 0:2] * 2.0 - 0.5 + grid) * 8.0
        extent = (x[..., 2:4] * 2.0) ** 2 * self.anchors.view(1, 2, 1, 1, 2)
        return torch.cat([centre, extent, x[..., 4:]], -1).view(1, -1, 5 + CLASSES)


class CornerPooled(nn.Module):
    """A detector that ends as CenterNet does: heat that is its own maximum, the best cells kept."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(conv(3, 8, 3, 2), conv(8, 8, 3, 2))
        self.heat = nn.Conv2d(8, CLASSES, 3, padding=1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the scores of the best cells, and the heat."""
        heat = torch.sigmoid(self.heat(self.backbone(x)))
        peak = nn.functional.max_pool2d(heat, 3, 1, 1)
        heat = heat * (peak == heat).float()
        return torch.topk(heat.flatten(1), 5).values, heat
