"""The networks that are exported, with the size of their pictures."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from tests.torch_models import classifiers, detectors, maps

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn


@dataclass(frozen=True)
class Network:
    """How to build one network, the shape of its input, and whether it is of half precision.

    `opsets` are those that the older exporter writes; not each of them for each network, but all
    that people use are there. `newest` asks the newer exporter for its newest opset too. A `raw`
    network is written with nothing folded or optimised, and its weights as inputs.
    """

    build: Callable[[], nn.Module]
    shape: tuple[int, int, int]
    opsets: tuple[int, ...] = (13,)
    half: bool = False
    newest: bool = False
    raw: bool = False


NETWORKS = {
    "chain": Network(classifiers.chain, (3, 32, 32), (9, 11, 13, 17), newest=True),
    "chain_raw": Network(classifiers.chain, (3, 32, 32), (9, 17), raw=True),
    "alexnet": Network(classifiers.alexnet, (3, 95, 95), (9, 13), newest=True),
    "resnet_basic": Network(
        partial(classifiers.resnet, bottleneck=False), (3, 64, 64), (9, 13), newest=True
    ),
    "resnet_bottleneck": Network(
        partial(classifiers.resnet, bottleneck=True), (3, 75, 53), (11, 17)
    ),
    "resnet_half": Network(
        partial(classifiers.resnet, bottleneck=False), (3, 64, 48), (13, 17), half=True
    ),
    "densenet": Network(classifiers.densenet, (3, 48, 48), (9, 13)),
    "inception": Network(classifiers.inception, (3, 75, 53), (11, 17), newest=True),
    "squeezenet": Network(classifiers.squeezenet, (3, 64, 64), (11, 17), newest=True),
    "shufflenet": Network(classifiers.shufflenet, (3, 64, 48), (9, 11, 17), newest=True),
    "mobilenet2": Network(classifiers.mobilenet2, (3, 64, 64), (9, 11)),
    "mobilenet3": Network(classifiers.mobilenet3, (3, 64, 64), (11, 17), newest=True),
    "efficientnet": Network(classifiers.efficientnet, (3, 48, 64), (11, 17), newest=True),
    "convnext": Network(classifiers.convnext, (3, 64, 64), (11, 17, 20), newest=True),
    "group_norm": Network(classifiers.group_norm, (3, 48, 40), (9, 17), newest=True),
    "unet_transposed": Network(maps.TransposedUNet, (3, 48, 64), (9, 13), newest=True),
    "unet_bilinear": Network(maps.InterpolatedUNet, (3, 64, 48), (11, 13, 18), newest=True),
    "unet_half": Network(maps.TransposedUNet, (3, 48, 32), (17,), half=True),
    "deeplab": Network(maps.DeepLab, (3, 75, 53), (11, 17), newest=True),
    "super_resolution": Network(maps.super_resolution, (1, 32, 40), (9, 11, 17), newest=True),
    "style": Network(maps.Style, (3, 48, 48), (9, 11, 17), newest=True),
    "odd": Network(maps.Odd, (3, 95, 53), (9, 11, 17), newest=True),
    "activations": Network(maps.activations, (3, 48, 32), (11, 17), newest=True),
    "heads": Network(maps.Heads, (3, 48, 64), (11, 13, 18), newest=True),
    "detector_raw": Network(detectors.RawDetector, (3, 64, 96), (9, 13), newest=True),
    "detector_decoded": Network(
        partial(detectors.DecodedDetector, (64, 96)), (3, 64, 96), (11, 17), newest=True
    ),
    "detector_grid": Network(detectors.GridDetector, (3, 64, 64), (11, 17), newest=True),
    "detector_peaks": Network(detectors.CornerPooled, (3, 48, 64), (11, 17), newest=True),
}
