"""Published CNNs with random weights: what a planner of other people's models must expect.

path = build("googlenet", Path("/tmp"))
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, Protocol

from models.zoo.alexnet import alexnet, zfnet
from models.zoo.converted import half, quantized
from models.zoo.convnext import convnext
from models.zoo.darknet import yolo_tiny_head, yolov2_16
from models.zoo.deeplab import deeplab
from models.zoo.densenet import densenet121
from models.zoo.efficientnet import efficientnet_b0
from models.zoo.fpn import fpn
from models.zoo.googlenet import googlenet
from models.zoo.inception_v3 import inception_v3
from models.zoo.mobilenet import mobilenet_v1, mobilenet_v2, mobilenet_v3
from models.zoo.nhwc import nhwc
from models.zoo.resnet import resnet50, resnet152
from models.zoo.shufflenet import shufflenet_v1, shufflenet_v2
from models.zoo.squeezenet import squeezenet
from models.zoo.style import instance_norm_style
from models.zoo.super_resolution import edsr, espcn
from models.zoo.unet import unet_resize, unet_transposed
from models.zoo.vgg import vgg19
from models.zoo.yolo import yolo

if TYPE_CHECKING:
    from collections.abc import Mapping

    from models.zoo.builder import Builder


class Make(Protocol):
    """Builds a model, at its published size or small."""

    def __call__(self, *, small: bool) -> Builder:
        """Return the model, not yet written."""
        ...


class Convert(Protocol):
    """Reads a model from one file and writes it to another in other types."""

    def __call__(self, path: Path, out: Path) -> Path:
        """Write `out` and return it."""
        ...


class Recipe(NamedTuple):
    """How a model is made."""

    description: str
    make: Make
    convert: Convert | None = None


ZOO: Mapping[str, Recipe] = MappingProxyType(
    {
        "alexnet": Recipe("grouped convolutions, LRN, large Gemms", alexnet),
        "zfnet": Recipe("LRN, padded pools that overlap, large Gemms", zfnet),
        "vgg19": Recipe("a plain chain of 3x3 convolutions", vgg19),
        "resnet50": Recipe("bottlenecks, BatchNormalization nodes", resnet50),
        "resnet152": Recipe("fifty residual blocks", resnet152),
        "densenet121": Recipe("Concats of all earlier layers", densenet121),
        "googlenet": Recipe("four branches a module, pools that round up", googlenet),
        "inception_v3": Recipe("1x7 and 7x1 windows, odd sizes, no padding", inception_v3),
        "squeezenet": Recipe("fire modules, pools that round up, no Gemm", squeezenet),
        "shufflenet_v1": Recipe("grouped 1x1 convolutions, shuffled channels", shufflenet_v1),
        "shufflenet_v2": Recipe("Split, Concat and shuffled channels", shufflenet_v2),
        "mobilenet_v1": Recipe("depthwise and 1x1 convolutions", mobilenet_v1),
        "mobilenet_v2": Recipe("inverted residuals, Clip", mobilenet_v2),
        "mobilenet_v3": Recipe("HardSwish, squeeze-and-excitation by ReduceMean", mobilenet_v3),
        "efficientnet_b0": Recipe("squeeze-and-excitation, Sigmoid and Mul", efficientnet_b0),
        "unet_transposed": Recipe("long skips, ConvTranspose", unet_transposed),
        "unet_resize": Recipe("long skips to padded odd maps, bilinear Resize", unet_resize),
        "yolo": Recipe("YOLOv8n: Split, chained pools, three outputs", yolo),
        "yolov2_16": Recipe("the first 16 layers of YOLOv2", yolov2_16),
        "yolo_tiny_head": Recipe("tiny YOLOv3, its boxes listed in the graph", yolo_tiny_head),
        "deeplab": Recipe("dilated convolutions, a branch of one pixel", deeplab),
        "fpn": Recipe("a feature pyramid, five outputs", fpn),
        "espcn": Recipe("super-resolution by DepthToSpace", espcn),
        "edsr": Recipe("residual super-resolution by DepthToSpace", edsr),
        "instance_norm_style": Recipe("reflected borders, whole-map norms", instance_norm_style),
        "nhwc": Recipe("TensorFlow's layout, borders and head", nhwc),
        "convnext": Recipe("depthwise 7x7, LayerNormalization, MatMul, Gelu", convnext),
        "resnet50_int8": Recipe("8 bits, unsigned activations, QDQ", resnet50, quantized),
        "mobilenet_v2_int8": Recipe(
            "8 bits, signed activations, a scale for each filter, QDQ",
            mobilenet_v2,
            partial(quantized, activations="s8", per_channel=True),
        ),
        "squeezenet_int8": Recipe(
            "8 bits, unsigned activations, operators of 8 bits",
            squeezenet,
            partial(quantized, format="qoperator"),
        ),
        "resnet50_fp16": Recipe("16 bits, inputs and outputs too", resnet50, half),
        "mobilenet_v2_fp16": Recipe(
            "16 bits between float32 inputs and outputs",
            mobilenet_v2,
            partial(half, keep_io_types=True),
        ),
    }
)


def build(name: str, folder: Path, *, small: bool = False) -> Path:
    """Write a model of the zoo.

    Args:
        name: a key of ZOO.
        folder: created if need be.
        small: few channels, a small picture, and stages cut short, with the same kinds of layers.

    Returns:
        The path of NAME.onnx, which has its weights inside.

    Raises:
        KeyError: if the zoo has no such model.
    """
    recipe = ZOO[name]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.onnx"
    builder = recipe.make(small=small)
    if recipe.convert is None:
        builder.save(path)
        return path
    with TemporaryDirectory() as scratch:
        plain = Path(scratch) / "plain.onnx"
        builder.save(plain)
        return recipe.convert(plain, path)
