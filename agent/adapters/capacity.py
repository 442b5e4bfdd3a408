"""What this device can do: measured once at the start, and how it is now."""

from __future__ import annotations

import os
import platform
import time
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
import psutil

from agent.adapters.mapping import trim_heap
from agent.adapters.runtime import Segment
from agent.wire.messages import Capacity, Health
from agent.wire.packing import pack, unpack

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.adapters.runtime import RuntimeOptions

PROBE_FLOPS = 2 * 9 * 56 * 56 * (64 * 128 + 128 * 128)
PROBE_SHAPE = (1, 64, 56, 56)
PROBE_S = 1.0
STEP_SHAPE = (1, 1, 1, 1)
# The hops between the threads of an agent take many times as long as the smallest run.
STEP_RUNS = 20
# A row of a map in the middle of a CNN; half of it is zero, as behind a ReLU.
HALO_SHAPE, HALO_SEED = (1, 128, 1, 28), 1
# More than any cache holds.
COPY_BYTES = 64 << 20


def measure_capacity(
    options: RuntimeOptions,
    memory_limit_bytes: int | None,
    link_latency_s: float,
    link_bytes_per_s: float,
    probe_s: float = PROBE_S,
) -> Capacity:
    """Measure small convolutions, memory, a step and packing: `probe_s` seconds each."""
    capacity = Capacity(
        cpu=cpu_model(),
        cores=os.cpu_count() or 1,
        threads=options.threads or len(os.sched_getaffinity(0)),
        memory_bytes=psutil.virtual_memory().total,
        providers=options.providers,
        flops_per_s=measure_flops(options, probe_s),
        memory_bytes_per_s=measure_copy(probe_s),
        step_overhead_s=measure_step(options, probe_s),
        packing_bytes_per_s=measure_packing(probe_s),
        link_latency_s=link_latency_s,
        link_bytes_per_s=link_bytes_per_s,
        memory_limit_bytes=memory_limit_bytes,
    )
    trim_heap()
    return capacity


def measure_flops(options: RuntimeOptions, probe_s: float = PROBE_S) -> float:
    """Return the rate, in flop/s, of two 3x3 convolutions like those in the middle of a CNN."""
    graph = files("agent.adapters").joinpath("probe.onnx").read_bytes()
    segment = Segment(graph, {}, options)
    image = np.ones(PROBE_SHAPE, np.float32)
    segment.run([image])
    return PROBE_FLOPS / _fastest(lambda: segment.run([image]), probe_s)


def measure_step(options: RuntimeOptions, probe_s: float = PROBE_S) -> float:
    """Return what a step costs beyond its computing, in seconds."""
    segment = Segment(files("agent.adapters").joinpath("step.onnx").read_bytes(), {}, options)
    value = np.ones(STEP_SHAPE, np.float32)

    def step() -> None:
        for _ in range(STEP_RUNS):
            segment.run([np.ascontiguousarray(value)])

    return _fastest(step, probe_s)


def measure_copy(probe_s: float = PROBE_S) -> float:
    """Return how many bytes a second one thread copies in memory."""
    source = np.ones(COPY_BYTES, np.uint8)
    target = np.empty_like(source)
    return COPY_BYTES / _fastest(lambda: np.copyto(target, source), probe_s)


def measure_packing(probe_s: float = PROBE_S) -> float:
    """Return how many bytes a second of a small halo one thread packs, or unpacks."""
    noise = np.random.Generator(np.random.PCG64(HALO_SEED)).standard_normal(HALO_SHAPE, np.float32)
    halo = np.maximum(noise, 0.0)
    coding, data = pack(halo, "packed")
    packed = memoryview(data)
    slower = max(
        _fastest(lambda: pack(halo, "packed"), probe_s / 2),
        _fastest(lambda: unpack(coding, halo.dtype.name, halo.shape, packed), probe_s / 2),
    )
    return halo.nbytes / slower


def _fastest(work: Callable[[], object], probe_s: float) -> float:
    # The quickest of many: whatever else ran meanwhile, as at the start of a system, only adds.
    best = float("inf")
    until = time.perf_counter() + probe_s
    while (start := time.perf_counter()) < until:
        work()
        best = min(best, time.perf_counter() - start)
    return best


def measure_health() -> Health:
    """Return load, memory and temperature as they are now."""
    memory = psutil.virtual_memory()
    return Health(
        load=round(psutil.getloadavg()[0], 2),
        memory_available_bytes=memory.available,
        memory_used_bytes=psutil.Process().memory_info().rss,
        temperature_c=temperature(),
    )


def room_for_spares(limit_bytes: int | None) -> int:
    """Return how many bytes may be taken for what is only kept ready.

    That is what is left of the device's limit, or half of what the system has to give.
    """
    health = measure_health()
    half = health.memory_available_bytes // 2
    return half if limit_bytes is None else min(half, limit_bytes - health.memory_used_bytes)


def temperature() -> float | None:
    """Return the hottest sensor's temperature in degrees Celsius, where there is one."""
    sensors: dict[str, Any] = getattr(psutil, "sensors_temperatures", dict)()
    readings = [sensor.current for group in sensors.values() for sensor in group]
    return max(readings, default=None)


def cpu_model() -> str:
    """Return the processor's name as the system gives it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.exists() else []
    for key in ("Model", "model name", "Hardware"):
        for line in lines:
            if line.startswith(key) and ":" in line:
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def runtime_versions() -> dict[str, str]:
    """Return the versions that decide what a segment computes here."""
    return {
        "python": platform.python_version(),
        "onnxruntime": ort.__version__,
        "numpy": np.__version__,
    }
