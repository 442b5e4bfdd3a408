"""Builds ONNX graphs layer by layer, with weights that keep activations alive at any depth.

Shapes are tracked as layers are added. So are the mean and variance that activations will have if
the picture's are 0 and 1; they scale the next layer's weights, and stand in a BatchNormalization as
its running statistics. A network of any depth thus neither explodes nor goes silent.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from models.zoo.graph import NONE, Graph, Value, pair_of, window
from models.zoo.weights import Weights, through

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from models.zoo.graph import Pads, Pair
    from models.zoo.weights import Moments

# Each filter is lowered by this share of its mean, as in models/vgg16.py: otherwise the positive
# mean of ReLU's output grows over the layers, until every position says the same.
_CENTRED = 0.375
_FEW = 16  # a filter of fewer elements, a depthwise one, would lose too much of its signal by that
# Around zero these make the strong stronger and the weak weaker, so that over many layers a picture
# would explode or vanish; away from zero they are as proportional as ReLU.
STEEP = {"silu": 2.5, "hardswish": 2.5}
_GATE = 0.5  # the deviation of what a gate is computed from, lest it copy how strong its input is
_AXES_ARE_INPUTS = 18  # the opset since which ReduceMean takes its axes as an input

_ACTIVATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "relu": ("Relu", {}),
    "leaky": ("LeakyRelu", {"alpha": 0.1}),
    "sigmoid": ("Sigmoid", {}),
    "hardsigmoid": ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}),
    "hardswish": ("HardSwish", {}),
    "gelu": ("Gelu", {}),
    "tanh": ("Tanh", {}),
}


class Builder(Graph):
    """Adds layers; every method returns the value that its nodes compute."""

    def __init__(self, name: str, *, opset: int = 17, ir_version: int = 8) -> None:
        super().__init__(name, opset=opset, ir_version=ir_version)
        self._weights = Weights(name)

    # Weighted layers

    def conv(
        self,
        x: Value,
        channels: int,
        kernel: Pair = 3,
        stride: Pair = 1,
        *,
        pads: Pads = None,
        groups: int = 1,
        dilation: int = 1,
        bias: bool = True,
        gain: float = 1.0,
    ) -> Value:
        """Add a Conv; without `pads` a map keeps its size (divided by the stride)."""
        attributes, size = window(x, kernel, stride, pads, dilation)
        if groups > 1:
            attributes["group"] = groups
        shape = (channels, x.channels // groups, *pair_of(kernel))
        weight = self._filters(x, channels, math.prod(shape[1:]), gain).reshape(shape)
        inputs = [x, self._weight(weight), *([self._bias(channels, gain)] if bias else [])]
        return self.node("Conv", inputs, (x.shape[0], channels, *size), (0, gain**2), **attributes)

    def conv_transpose(self, x: Value, channels: int, factor: int = 2) -> Value:
        """Add a ConvTranspose whose windows do not overlap, which enlarges by `factor`."""
        flat = self._filters(x, channels * factor**2, x.channels, 1.0)
        weight = flat.reshape(channels, factor, factor, x.channels).transpose(3, 0, 1, 2)
        shape = (x.shape[0], channels, x.shape[2] * factor, x.shape[3] * factor)
        attributes = {"kernel_shape": [factor, factor], "strides": [factor, factor]}
        inputs = [x, self._weight(weight), self._bias(channels, 1.0)]
        return self.node("ConvTranspose", inputs, shape, (0, 1), **attributes)

    def gemm(self, x: Value, features: int, gain: float = 1.0) -> Value:
        """Add a Gemm with transB=1, as torch exports a linear layer."""
        weight = self._weight(self._filters(x, features, x.shape[1], gain))
        inputs = [x, weight, self._bias(features, gain)]
        return self.node("Gemm", inputs, (x.shape[0], features), (0, gain**2), transB=1)

    def dense(self, x: Value, features: int, gain: float = 1.0) -> Value:
        """Add MatMul and Add on the last axis, as TensorFlow exports a dense layer."""
        weight = self._weight(self._filters(x, features, x.shape[-1], gain).T)
        product = self.node("MatMul", [x, weight], (*x.shape[:-1], features), (0, gain**2))
        return self.node(
            "Add", [product, self._bias(features, gain)], product.shape, product.moments
        )

    def bn(self, x: Value, gain: float = 1.0) -> Value:
        """Add a BatchNormalization, whose statistics are about those of its input."""
        deviation = math.sqrt(x.var)
        scale = self._between(0.8 * gain, 1.2 * gain, x.channels)
        bias = self._between(-0.2 * gain, 0.2 * gain, x.channels)
        mean = self._between(x.mean - 0.2 * deviation, x.mean + 0.2 * deviation, x.channels)
        var = self._between(0.8 * x.var, 1.25 * x.var, x.channels)
        moments = (0, gain**2)
        return self.node("BatchNormalization", [x, scale, bias, mean, var], x.shape, moments)

    def instance_norm(self, x: Value) -> Value:
        """Add an InstanceNormalization."""
        scale = self._between(0.8, 1.2, x.channels)
        bias = self._between(-0.2, 0.2, x.channels)
        return self.node("InstanceNormalization", [x, scale, bias], x.shape, (0, 1))

    def layer_norm(self, x: Value) -> Value:
        """Add a LayerNormalization over the last axis."""
        scale = self._between(0.8, 1.2, x.shape[-1])
        bias = self._between(-0.2, 0.2, x.shape[-1])
        return self.node(
            "LayerNormalization", [x, scale, bias], x.shape, (0, 1), axis=-1, epsilon=1e-6
        )

    def scaled(self, x: Value, gain: float) -> Value:
        """Multiply each item of the last axis by a weight near `gain`."""
        scale = self._between(0.8 * gain, 1.2 * gain, x.shape[-1])
        return self.node("Mul", [scale, x], x.shape, (x.mean * gain, x.var * gain**2))

    # Layers without weights

    def act(self, x: Value, kind: str) -> Value:
        """Add an activation function, one of `weights.FUNCTIONS`."""
        moments = through(kind, x.moments)
        if kind == "silu":
            return self.node("Mul", [x, self.act(x, "sigmoid")], x.shape, moments)
        if kind == "relu6":
            bounds = [self.constant(np.array(bound, np.float32)) for bound in (0, 6)]
            return self.node("Clip", [x, *bounds], x.shape, moments)
        operator, attributes = _ACTIVATIONS[kind]
        return self.node(operator, [x], x.shape, moments, **attributes)

    def relu(self, x: Value) -> Value:
        """Add a Relu."""
        return self.act(x, "relu")

    def max_pool(
        self, x: Value, kernel: int, stride: int, pads: Pads = 0, *, ceil: bool = False
    ) -> Value:
        """Add a MaxPool."""
        attributes, size = window(x, kernel, stride, pads, ceil=ceil)
        # About what neighbours that know of each other leave.
        moments = (
            (x.mean + 0.3 * kernel * math.sqrt(x.var), 0.7 * x.var) if kernel > 1 else x.moments
        )
        return self.node("MaxPool", [x], (*x.shape[:2], *size), moments, **attributes)

    def average_pool(
        self,
        x: Value,
        kernel: int,
        stride: int,
        pads: Pads = 0,
        *,
        ceil: bool = False,
        count_pads: bool = False,
    ) -> Value:
        """Add an AveragePool."""
        attributes, size = window(x, kernel, stride, pads, ceil=ceil)
        attributes["count_include_pad"] = int(count_pads)
        moments = (x.mean, 0.75 * x.var)  # most of it lies between channels
        return self.node("AveragePool", [x], (*x.shape[:2], *size), moments, **attributes)

    def global_pool(self, x: Value) -> Value:
        """Add a GlobalAveragePool."""
        return self.node("GlobalAveragePool", [x], (*x.shape[:2], 1, 1), _pooled(x))

    def reduce_mean(self, x: Value, *axes: int, keepdims: bool = False) -> Value:
        """Add a ReduceMean."""
        kept = (1 if axis in axes else length for axis, length in enumerate(x.shape))
        dropped = (length for axis, length in enumerate(x.shape) if axis not in axes)
        shape, keep = tuple(kept if keepdims else dropped), int(keepdims)
        if self.opset >= _AXES_ARE_INPUTS:
            inputs = [x, self.integers(*axes)]
            return self.node("ReduceMean", inputs, shape, _pooled(x), keepdims=keep)
        return self.node("ReduceMean", [x], shape, _pooled(x), axes=list(axes), keepdims=keep)

    def lrn(self, x: Value) -> Value:
        """Add the LRN of AlexNet."""
        attributes = {"size": 5, "alpha": 1e-4, "beta": 0.75, "bias": 1.0}
        return self.node("LRN", [x], x.shape, x.moments, **attributes)

    def add(self, left: Value, right: Value) -> Value:
        """Add an Add."""
        moments = (left.mean + right.mean, left.var + right.var)
        return self.node("Add", [left, right], left.shape, moments)

    def mul(self, left: Value, right: Value) -> Value:
        """Add a Mul of two values; the right one may be broadcast."""
        mean = left.mean * right.mean
        square = (left.var + left.mean**2) * (right.var + right.mean**2)
        return self.node("Mul", [left, right], left.shape, (mean, square - mean**2))

    def concat(self, values: Sequence[Value], axis: int = 1) -> Value:
        """Add a Concat."""
        lengths = [value.shape[axis] for value in values]
        first, total = values[0].shape, sum(lengths)
        pairs = list(zip(values, lengths, strict=True))
        mean = sum(value.mean * length for value, length in pairs) / total
        square = sum((value.var + value.mean**2) * length for value, length in pairs) / total
        shape = (*first[:axis], total, *first[axis + 1 :])
        return self.node("Concat", values, shape, (mean, square - mean**2), axis=axis)

    def split(self, x: Value, *lengths: int) -> list[Value]:
        """Add a Split of the channels."""
        shapes = [(x.shape[0], length, *x.shape[2:]) for length in lengths]
        return self.multiple("Split", [x, self.integers(*lengths)], shapes, x.moments, axis=1)

    def slice(self, x: Value, axis: int, start: int, stop: int) -> Value:
        """Add a Slice of one axis."""
        inputs = [x, *(self.integers(item) for item in (start, stop, axis))]
        shape = (*x.shape[:axis], stop - start, *x.shape[axis + 1 :])
        return self.node("Slice", inputs, shape, x.moments)

    def reshape(self, x: Value, *shape: int) -> Value:
        """Add a Reshape."""
        return self.node("Reshape", [x, self.integers(*shape)], shape, x.moments)

    def transpose(self, x: Value, *order: int) -> Value:
        """Add a Transpose."""
        shape = tuple(x.shape[axis] for axis in order)
        return self.node("Transpose", [x], shape, x.moments, perm=list(order))

    def flatten(self, x: Value) -> Value:
        """Add a Flatten to [1, features]."""
        return self.node("Flatten", [x], (x.shape[0], math.prod(x.shape[1:])), x.moments, axis=1)

    def softmax(self, x: Value) -> Value:
        """Add a Softmax over the last axis."""
        return self.node("Softmax", [x], x.shape, (1 / x.shape[-1], 0), axis=-1)

    def pad(self, x: Value, borders: tuple[int, int, int, int], mode: str) -> Value:
        """Add a Pad of height and width: top, left, bottom and right."""
        top, left, bottom, right = borders
        pads = self.integers(0, 0, top, left, 0, 0, bottom, right)
        shape = (*x.shape[:2], x.shape[2] + top + bottom, x.shape[3] + left + right)
        return self.node("Pad", [x, pads], shape, x.moments, mode=mode)

    def resize(self, x: Value, to: float | tuple[int, int], mode: str, coordinates: str) -> Value:
        """Add a Resize of height and width, by a factor (`scales`) or to a size (`sizes`)."""
        if isinstance(to, tuple):
            size = to
            inputs = [x, NONE, NONE, self.integers(*x.shape[:2], *size)]
        else:
            size = (math.floor(x.shape[2] * to), math.floor(x.shape[3] * to))
            inputs = [x, NONE, self.constant(np.array([1, 1, to, to], np.float32))]
        attributes = {"mode": mode, "coordinate_transformation_mode": coordinates}
        if mode == "nearest":
            attributes["nearest_mode"] = "floor"
        return self.node("Resize", inputs, (*x.shape[:2], *size), x.moments, **attributes)

    def depth_to_space(self, x: Value, factor: int) -> Value:
        """Add a DepthToSpace in the order of torch's PixelShuffle."""
        shape = (x.shape[0], x.channels // factor**2, x.shape[2] * factor, x.shape[3] * factor)
        return self.node("DepthToSpace", [x], shape, x.moments, blocksize=factor, mode="CRD")

    # Layers made of layers

    def conv_bn(
        self,
        x: Value,
        channels: int,
        kernel: Pair = 3,
        stride: Pair = 1,
        *,
        act: str = "relu",
        gain: float = 1.0,
        **options: Any,
    ) -> Value:
        """Add Conv without bias, BatchNormalization and an activation ("" for none)."""
        gain *= STEEP.get(act, 1.0)
        x = self.bn(self.conv(x, channels, kernel, stride, bias=False, **options), gain)
        return self.act(x, act) if act else x

    def squeeze_excite(
        self, x: Value, squeezed: int, act: str, gate: str, *, reduce: bool
    ) -> Value:
        """Scale each channel by what all channels' means tell.

        Args:
            x: the map.
            squeezed: channels of the bottleneck.
            act: the bottleneck's activation.
            gate: the activation that makes the factors.
            reduce: take means by ReduceMean rather than by GlobalAveragePool.
        """
        means = self.reduce_mean(x, 2, 3, keepdims=True) if reduce else self.global_pool(x)
        hidden = self.act(self.conv(means, squeezed, 1), act)
        return self.mul(x, self.act(self.conv(hidden, x.channels, 1, gain=_GATE), gate))

    def _filters(self, x: Value, count: int, fan_in: int, gain: float) -> NDArray[np.float32]:
        """Draw filters that give `x` a deviation of `gain`."""
        centred = _CENTRED if fan_in >= _FEW else 0.0
        strength = x.var + (1 - centred) ** 2 * x.mean**2
        return self._weights.filters(count, fan_in, gain / math.sqrt(fan_in * strength), centred)

    def _weight(self, array: NDArray[np.float32]) -> Value:
        return self.constant(array, f"weight_{len(self.initializers)}")

    def _between(self, low: float, high: float, count: int) -> Value:
        return self._weight(self._weights.between(low, high, count))

    def _bias(self, count: int, gain: float) -> Value:
        return self._between(-0.1 * gain, 0.1 * gain, count)


def _pooled(x: Value) -> Moments:
    # Of channels' means; those of a random network differ far more than chance would have it.
    return x.mean, x.var / 2
