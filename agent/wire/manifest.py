"""The manifest of a model: how a picture becomes its input, and how its output becomes an answer.

People write it as TOML beside the model (MODEL.onnx has MODEL.toml); it travels as JSON:

    task = "heatmap"                     # "classification", "segmentation", "detection", "tensor"
    exact = false                        # true: every bit is kept (docs/exactness.md)
    objective = "latency"                # or "throughput", with several requests in flight
    strategy = "dpfp"                    # or a rival's way to split it (docs/strategies.md)
    halos = "lossless"                   # packed where links are slow; or "plain", or "half", in
                                         # float16 there (docs/exactness.md)
    labels = ["background", "scratch"]   # in the order of the model's classes

    [input]
    color = "rgb"                        # or "bgr", "gray"
    resize = "stretch"                   # or "crop", "letterbox", "none"
    mean = [0.485, 0.456, 0.406]         # value = (pixel / 255 - mean) / std
    std = [0.229, 0.224, 0.225]
    layout = "nchw"                      # or "nhwc"; also the layout of maps in the output

    [output]
    softmax = false                      # true where the model ends in logits of which one is right
    sigmoid = false                      # true where it ends in logits that are independent
    top = 5                              # classification: how many classes to report
    background = 0                       # the class that is nothing, -1 where there is none
    threshold = 0.5                      # a cell, pixel or box counts from this score on
    min_cells = 1                        # heatmap: smaller objects are dropped

    [detection]                          # see agent/wire/detection.py
    format = "yolov8"

Every field but `task`, and a detection's `format`, may be left out.
"""

from __future__ import annotations

import tomllib
from math import isfinite
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import msgspec
from msgspec import Meta, Struct

from agent.errors import ConfigError, WireError
from agent.wire.detection import Coding, DetectionManifest, Format, read_layout

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

PICTURE_RANK = 4

MAX_MASK_CLASSES = 255  # a mask has 8 bits, and one value is kept for pixels of no class

Task = Literal["classification", "heatmap", "segmentation", "detection", "tensor"]
Color = Literal["rgb", "bgr", "gray"]
Resize = Literal["stretch", "crop", "letterbox", "none"]
Layout = Literal["nchw", "nhwc"]
Strategy = Literal["single", "modnn", "deepthings", "halp", "dpfp-paper", "dpfp"]
Objective = Literal["latency", "throughput"]
Halos = Literal["lossless", "plain", "half"]

_CHOICES: dict[str, tuple[str, ...]] = {
    "task": get_args(Task),
    "strategy": get_args(Strategy),
    "objective": get_args(Objective),
    "halos": get_args(Halos),
    "input.color": get_args(Color),
    "input.resize": get_args(Resize),
    "input.layout": get_args(Layout),
    "detection.format": get_args(Format),
    "detection.boxes": get_args(Coding),
}

_WITH_BACKGROUND = frozenset({"heatmap", "segmentation", "detection"})

# A model with a million classes is not one that a small device serves.
Label = Annotated[str, Meta(min_length=1, max_length=200)]
Labels = Annotated[tuple[Label, ...], Meta(max_length=1_000_000)]
PerChannel = Annotated[tuple[float, ...], Meta(min_length=1, max_length=3)]


class InputManifest(Struct, frozen=True, forbid_unknown_fields=True):
    """How a picture becomes the model's input: value = (pixel / 255 - mean) / std.

    `mean` and `std` have one value for each channel in the model's order (so blue first for
    "bgr"), or one for all. A model whose input is uint8 gets the pixels as they are.

    `resize`: "stretch" to the model's size; "crop" the largest centred part of the model's aspect;
    "letterbox" the whole picture with grey bars; "none" takes pictures of the exact size only.
    """

    color: Color = "rgb"
    resize: Resize = "stretch"
    mean: PerChannel = (0.0,)
    std: PerChannel = (1.0,)
    layout: Layout = "nchw"

    @property
    def channels(self) -> int:
        """How many channels the model's input has."""
        return 1 if self.color == "gray" else 3

    def __post_init__(self) -> None:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in {1, self.channels}:
                raise ValueError(
                    f"`{name}` has {len(values)} values, but color {self.color} has "
                    f"{self.channels} (one value for all channels will do)"
                )
            if not all(isfinite(value) for value in values):
                raise ValueError(f"`{name}` must be finite numbers")
        if not all(value > 0 for value in self.std):
            raise ValueError("`std` must be above 0")


class OutputManifest(Struct, frozen=True, forbid_unknown_fields=True):
    """How the model's outputs become an answer.

    `softmax` applies a softmax over the classes first, `sigmoid` the logistic function to each;
    left out, `sigmoid` is applied to the raw maps of detectors alone. `background` and `threshold`
    (0..1) follow the task where they are left out: see `Manifest`. `min_cells` is for heatmaps,
    `top` for classification.
    """

    softmax: bool = False
    sigmoid: bool | None = None
    top: Annotated[int, Meta(ge=1, le=1000)] = 5
    background: Annotated[int, Meta(ge=-1)] | None = None
    threshold: float | None = None
    min_cells: Annotated[int, Meta(ge=1)] = 1

    def __post_init__(self) -> None:
        if self.softmax and self.sigmoid:
            raise ValueError("`softmax` and `sigmoid` exclude each other")
        # Written so that NaN, which TOML can say, is refused as well.
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise ValueError("`threshold` must be from 0 to 1")


class Manifest(Struct, frozen=True, forbid_unknown_fields=True):
    """What a model is for; without `labels`, classes are called by their number.

    `exact` has it split only where sums are added in one device's order, which may be slower.
    `objective` is what the plan is the best for: the time of a request that is alone, or requests
    a second when several are in flight. `strategy` is whose way of splitting it is used, for
    comparisons.
    """

    task: Task
    labels: Labels = ()
    input: InputManifest = InputManifest()
    output: OutputManifest = OutputManifest()
    detection: DetectionManifest | None = None
    exact: bool = False
    objective: Objective = "latency"
    strategy: Strategy = "dpfp"
    halos: Halos = "lossless"

    def __post_init__(self) -> None:
        if self.task == "detection" and self.detection is None:
            raise ValueError(
                "task detection needs `detection.format` "
                f"(choose one of {', '.join(get_args(Format))})"
            )
        if self.task != "detection" and self.detection is not None:
            raise ValueError(f"`detection` is for task detection, but the task is {self.task}")
        if self.task in _WITH_BACKGROUND and self.labels and self.background >= len(self.labels):
            raise ValueError(
                f"`output.background` is {self.background}, "
                f"but there are {len(self.labels)} labels, counted from 0"
            )

    @property
    def background(self) -> int:
        """The class that is nothing, or -1: unless set 0, but none in detectors other than SSD."""
        if self.output.background is not None:
            return self.output.background
        return -1 if self.detection is not None and self.detection.format != "ssd" else 0

    @property
    def threshold(self) -> float:
        """The least score that counts: unless set 0.5, but 0.25 for detection.

        A segmentation of several classes has none unless it is set: see `agent.segmentation`.
        """
        if self.output.threshold is not None:
            return self.output.threshold
        return 0.25 if self.task == "detection" else 0.5

    def label(self, index: int) -> str:
        """Return the name of class `index`."""
        return self.labels[index] if index < len(self.labels) else f"class {index}"


def manifest_path(model: Path) -> Path:
    """Return where the manifest of a model file is."""
    return model.with_suffix(".toml")


def load_manifest(path: Path) -> Manifest:
    """Read a manifest from its TOML file.

    Raises:
        ConfigError: if it cannot be read, is not TOML, or says something impossible; the message
            names the file and the field.
    """
    try:
        return msgspec.convert(tomllib.loads(path.read_bytes().decode()), type=Manifest)
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the manifest: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: the manifest is not a text file in UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: the manifest is not valid TOML: {error}") from error
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {_with_field_first(str(error))}") from error


def default_manifest(
    input_shape: Sequence[int], output_shapes: Sequence[Sequence[int]]
) -> Manifest:
    """Return the manifest of a model that has none.

    A single output [1, N] is taken for the scores of a classification, as they are; anything else
    is answered as tensors. Pixels are scaled to 0..1, and layout and colour follow the shape.
    """
    nhwc = (
        len(input_shape) == PICTURE_RANK
        and input_shape[1] not in {1, 3}
        and input_shape[3] in {1, 3}
    )
    channels = input_shape[3 if nhwc else 1] if len(input_shape) == PICTURE_RANK else 3
    shapes = [tuple(shape) for shape in output_shapes]
    # [1, 1] is a single value (a regression): there is no class to choose.
    scores = len(shapes) == 1 and len(shapes[0]) == 2 and shapes[0][0] == 1 < shapes[0][1]  # noqa: PLR2004
    return Manifest(
        task="classification" if scores else "tensor",
        input=InputManifest(
            color="gray" if channels == 1 else "rgb", layout="nhwc" if nhwc else "nchw"
        ),
    )


def check_fits(
    manifest: Manifest,
    input_shape: Sequence[int],
    output_shapes: Sequence[Sequence[int]],
    output_dtypes: Sequence[str] = (),
) -> None:
    """Check that a manifest is one for a model of these shapes, so that deployment can refuse.

    With `output_dtypes` (names of numpy) the labels of a segmentation by one map are checked, too.

    Raises:
        ConfigError: naming the field that does not fit.
    """
    if manifest.task == "tensor":
        return
    _check_input(manifest, input_shape)
    if not output_shapes:
        raise ConfigError(f"task: the manifest says {manifest.task}, but the model has no output")
    if manifest.detection is not None:
        labels, layout = len(manifest.labels), manifest.input.layout
        found = read_layout(manifest.detection, layout, labels, input_shape, output_shapes)
        classes = found.classes
    else:
        classes = class_count(manifest, output_shapes[0])
        if manifest.task == "segmentation":
            classes = _mask_classes(manifest, classes, output_dtypes)
    if classes is None:
        return
    if manifest.labels and len(manifest.labels) != classes:
        raise ConfigError(
            f"labels: the manifest has {len(manifest.labels)}, but the model has {classes} classes"
        )
    if manifest.task in _WITH_BACKGROUND and manifest.background >= classes:
        raise ConfigError(
            f"output.background: it is {manifest.background}, "
            f"but the model has {classes} classes, counted from 0"
        )


def _check_input(manifest: Manifest, input_shape: Sequence[int]) -> None:
    if len(input_shape) == PICTURE_RANK:
        channels = input_shape[1 if manifest.input.layout == "nchw" else 3]
        if channels != manifest.input.channels:
            raise ConfigError(
                f"input.color: the manifest says {manifest.input.color} "
                f"({manifest.input.channels} channels, layout {manifest.input.layout}), "
                f"but the model takes {'x'.join(map(str, input_shape))}"
            )
    elif manifest.task == "detection":
        raise ConfigError(
            "task: detection needs a model that takes pictures, "
            f"but this one takes {'x'.join(map(str, input_shape))}"
        )


def class_count(manifest: Manifest, output_shape: Sequence[int]) -> int:
    """Return how many classes a first output of this shape scores.

    For a segmentation 1 stands for one map: the score of class 1, or the classes themselves.

    Raises:
        ConfigError: if the shape is none that the manifest's task has.
    """
    shape = tuple(output_shape)
    wanted = "one map of class scores"
    if manifest.task in {"heatmap", "segmentation"} and len(shape) == PICTURE_RANK:
        classes = shape[1 if manifest.input.layout == "nchw" else 3]
        if manifest.task == "segmentation" and classes > MAX_MASK_CLASSES:
            wanted = f"at most {MAX_MASK_CLASSES} classes in layout {manifest.input.layout}"
        elif shape[0] == 1:
            return classes
    elif manifest.task == "segmentation":
        if len(shape) == PICTURE_RANK - 1 and shape[0] == 1:
            return 1
        wanted = "1 x classes x height x width, or 1 x height x width"
    elif manifest.task == "classification":
        extents = [extent for extent in shape if extent != 1]
        if len(extents) == 1:
            return extents[0]
        wanted = "1 x classes"
    raise ConfigError(
        f"task: {manifest.task} needs an output of {wanted}, "
        f"but the model's is {'x'.join(map(str, shape))}"
    )


def _mask_classes(manifest: Manifest, maps: int, dtypes: Sequence[str]) -> int | None:
    """Return how many classes a segmentation has, None where its outputs do not say."""
    if len(manifest.labels) > MAX_MASK_CLASSES:
        raise ConfigError(
            f"labels: a mask has at most {MAX_MASK_CLASSES} classes, "
            f"but there are {len(manifest.labels)}"
        )
    if maps > 1:
        return maps
    # Scores of one class, which then has a background; or, as integers, classes of any number.
    return 2 if dtypes and dtypes[0].startswith("float") else None


def encode_manifest(manifest: Manifest) -> bytes:
    """Encode a manifest as deterministic JSON, the form in which it is a blob."""
    return msgspec.json.encode(manifest, order="deterministic")


def decode_manifest(content: bytes) -> Manifest:
    """Decode and check a manifest blob.

    Raises:
        WireError: if it is malformed.
    """
    try:
        return msgspec.json.decode(content, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise WireError(f"not a manifest of this version of HaloMQ: {error}") from error


def _with_field_first(message: str) -> str:
    """Turn msgspec's "<reason> - at `$.input.color`" into "input.color: <reason>"."""
    reason, _, field = message.partition(" - at `$.")
    field = field.rstrip("`")
    if field in _CHOICES and reason.startswith("Invalid enum value"):
        # msgspec does not say what would have been right.
        reason = f"{reason} (choose one of {', '.join(_CHOICES[field])})"
    return f"{field}: {reason}" if field else reason
