"""Models of 8 and 16 bits, made of float ones by onnxruntime's own tools."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx
from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers import float16
from onnxruntime.transformers.onnx_model import OnnxModel

if TYPE_CHECKING:
    from collections.abc import Collection

    from numpy.typing import NDArray

_SEED = 8
_PICTURES = 4


class _Pictures(quantization.CalibrationDataReader):  # type: ignore[misc]
    """Random pictures, from which the quantizer takes the ranges of activations."""

    def __init__(self, path: Path) -> None:
        image = onnx.load(path, load_external_data=False).graph.input[0]
        shape = [item.dim_value for item in image.type.tensor_type.shape.dim]
        drawn = np.random.default_rng(_SEED).standard_normal((_PICTURES, *shape))
        self._left = [{image.name: picture.astype(np.float32)} for picture in drawn]

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """Return the next picture's feed, and None after the last."""
        return self._left.pop() if self._left else None


def quantized(
    path: Path,
    out: Path,
    format: Literal["qdq", "qoperator"] = "qdq",  # noqa: A002 - the name that users know
    *,
    activations: Literal["u8", "s8"] = "u8",
    per_channel: bool = False,
    left_out: Collection[str] = (),
    float_outputs: Collection[str] = (),
) -> Path:
    """Write a model of 8 bits; its weights are signed.

    Args:
        path: the float model.
        out: where to write.
        format: QuantizeLinear and DequantizeLinear around float operators, or operators of 8 bits.
        activations: whether they are unsigned or signed.
        per_channel: give each filter a scale of its own.
        left_out: names of nodes that are left as they are.
        float_outputs: operators of which the inputs are quantized only.

    Returns:
        `out`.
    """
    formats = {"qdq": quantization.QuantFormat.QDQ, "qoperator": quantization.QuantFormat.QOperator}
    kinds = {"u8": quantization.QuantType.QUInt8, "s8": quantization.QuantType.QInt8}
    with TemporaryDirectory() as folder:
        folded = Path(folder) / "folded.onnx"
        # Folds each BatchNormalization into its convolution: the quantizer knows none.
        quant_pre_process(path, folded, skip_symbolic_shape=True)
        quantization.quantize_static(
            folded,
            out,
            _Pictures(folded),
            quant_format=formats[format],
            per_channel=per_channel,
            activation_type=kinds[activations],
            weight_type=quantization.QuantType.QInt8,
            nodes_to_exclude=list(left_out),
            extra_options={"OpTypesToExcludeOutputQuantization": list(float_outputs)},
        )
    return out


def half(path: Path, out: Path, *, keep_io_types: bool = False) -> Path:
    """Write a model of 16 bits.

    Args:
        path: the float model.
        out: where to write.
        keep_io_types: leave inputs and outputs float32, with a Cast next to each.

    Returns:
        `out`.
    """
    model: Any = float16.convert_float_to_float16(onnx.load(path), keep_io_types=keep_io_types)
    # Casts of inputs are added last, where the standard does not allow them.
    OnnxModel(model).topological_sort(is_deterministic=True)
    out.write_bytes(model.SerializeToString(deterministic=True))
    return out
