"""onnxruntime: segments with weights that live outside, and whole models for comparison."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import onnxruntime as ort

from agent.errors import ConfigError, InputError, ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Array = np.ndarray[Any, Any]

EXAMPLE_SEED = 1
_TYPES = {"float": "float32", "double": "float64"}

# What fails is raised as well; printed too, it would only look like a second failure.
_FATAL_ONLY = 4


@dataclass(frozen=True, slots=True)
class RuntimeOptions:
    """How sessions run: onnxruntime's providers by preference, and threads in an operator."""

    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    threads: int = 1


class Runnable(Protocol):
    """What computes a segment."""

    def example(self) -> list[Array]:
        """Return inputs of the right shapes and types, to measure with."""
        ...

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Compute the outputs; see `Segment.run`."""
        ...


class Segment:
    """A loaded segment; its i-th input and output are those of its graph, in order."""

    def __init__(self, graph: bytes, weights: Mapping[str, Array], options: RuntimeOptions) -> None:
        """Load a graph whose external initializers are `weights`.

        onnxruntime keeps a copy of most weights in its kernels' own layout, so weights that are
        mapped from files take no memory once this is done (`MappedFiles.drop_pages`).

        Raises:
            ModelError: if onnxruntime refuses the graph or a weight is missing.
        """
        self._open(graph, weights, _settings(options), options)

    def _open(
        self, graph: bytes, weights: Mapping[str, Array], settings: Any, options: RuntimeOptions
    ) -> None:
        # The session reads these arrays in place, for as long as it lives.
        self._weights = [_value(array) for array in weights.values()]
        settings.add_external_initializers(list(weights), self._weights)
        self._session = _session(graph, settings, options)
        self._inputs = [value.name for value in self._session.get_inputs()]

    def example(self) -> list[Array]:
        """Return inputs of the graph's shapes and types: noise for floats, zeros else."""
        random = np.random.Generator(np.random.PCG64(EXAMPLE_SEED))
        return [_example(value, random) for value in self._session.get_inputs()]

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Compute the outputs.

        Raises:
            InputError: if the inputs are not what the graph takes, or onnxruntime fails.
        """
        if len(inputs) != len(self._inputs):
            raise InputError(f"the segment takes {len(self._inputs)} inputs, not {len(inputs)}")
        return _run(self._session, dict(zip(self._inputs, inputs, strict=True)))


class ProfiledSegment(Segment):
    """A segment of which onnxruntime notes how long each kernel runs."""

    def __init__(
        self, graph: bytes, weights: Mapping[str, Array], options: RuntimeOptions, folder: Path
    ) -> None:
        """Load a graph; what is noted goes to a file in `folder`.

        Raises:
            ModelError: if onnxruntime refuses the graph or a weight is missing.
        """
        settings = _settings(options)
        settings.enable_profiling = True
        settings.profile_file_prefix = str(folder / "profile")
        self._open(graph, weights, settings, options)

    def end_profiling(self) -> Path:
        """Write down what was noted and return the file (JSON trace events)."""
        return Path(self._session.end_profiling())


class WholeModel:
    """The original model on this device alone, at onnxruntime's default optimisation."""

    def __init__(self, path: Path, options: RuntimeOptions) -> None:
        """Load the model.

        Raises:
            ModelError: if onnxruntime cannot load it.
        """
        self._session = _session(str(path), _settings(options), options)
        self._inputs = [value.name for value in self._session.get_inputs()]

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Compute the outputs.

        Raises:
            InputError: if the inputs do not fit.
        """
        return _run(self._session, dict(zip(self._inputs, inputs, strict=True)))


def run_whole(path: Path, inputs: Sequence[Array], options: RuntimeOptions) -> list[Array]:
    """Run the original model once; see `WholeModel`."""
    return WholeModel(path, options).run(inputs)


def check_providers(options: RuntimeOptions) -> None:
    """Check that onnxruntime has every provider here; it would only warn and use the processor.

    Raises:
        ConfigError: naming the one that is missing and those that are there.
    """
    available = ort.get_available_providers()
    for name in options.providers:
        if name not in available:
            raise ConfigError(
                f"runtime.providers: onnxruntime has no {name} here; it has {', '.join(available)}"
            )


def _settings(options: RuntimeOptions) -> Any:
    settings = ort.SessionOptions()
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    settings.log_severity_level = _FATAL_ONLY
    settings.inter_op_num_threads = 1
    # Otherwise a product with a dequantized weight rounds its other factor to 8 bits, and only in
    # graphs where onnxruntime does not fold the weight first.
    settings.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    settings.intra_op_num_threads = options.threads
    if options.threads != 1:
        # Threads that wait by spinning take the core from the network while halos travel.
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return settings


def _example(value: Any, random: np.random.Generator) -> Array:
    name = value.type.removeprefix("tensor(").removesuffix(")")
    dtype = np.dtype(_TYPES.get(name, name))
    example: Array = np.zeros(value.shape, dtype)
    if dtype.kind == "f":
        example[...] = random.random(value.shape, np.float32)
    return example


def _value(array: Array) -> Any:
    return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))


def _session(model: bytes | str, settings: Any, options: RuntimeOptions) -> Any:
    try:
        return ort.InferenceSession(model, settings, providers=list(options.providers))
    except Exception as error:  # onnxruntime's exceptions have no common base
        raise ModelError(f"onnxruntime cannot load this: {_first_line(error)}") from error


def _run(session: Any, feeds: dict[str, Array]) -> list[Array]:
    try:
        outputs: list[Array] = session.run(None, feeds)
    except Exception as error:  # onnxruntime's exceptions have no common base
        raise InputError(f"onnxruntime cannot run this: {_first_line(error)}") from error
    return outputs


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
