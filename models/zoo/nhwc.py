"""MobileNet v1 as tf2onnx writes it: pictures with their channels last."""

from __future__ import annotations

from models.zoo.builder import Builder
from models.zoo.mobilenet import V1, V1_SMALL


def nhwc(*, small: bool) -> Builder:
    """Transpose first and last, SAME_UPPER borders, a head of ReduceMean, MatMul and Add."""
    b = Builder("nhwc", opset=13, ir_version=7)
    size, unit = (64, 4) if small else (224, 32)
    x = b.transpose(b.input(1, size, size, 3), 0, 3, 1, 2)
    x = b.act(b.conv(x, unit, 3, 2, pads="SAME_UPPER"), "relu6")
    for channels, stride in V1_SMALL if small else V1:
        x = b.conv(x, x.channels, 3, stride, pads="SAME_UPPER", groups=x.channels)
        x = b.act(x, "relu6")
        x = b.act(b.conv(x, channels * unit, 1, pads="SAME_UPPER"), "relu6")
    x = b.reduce_mean(b.transpose(x, 0, 2, 3, 1), 1, 2)
    b.output(b.softmax(b.dense(x, 10 if small else 1000, 2.0)), "prob")
    return b
