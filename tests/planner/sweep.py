"""Compares the zoo's float models, quantized in every way, whole and split: every byte.

    python -m tests.planner.sweep [--models resnet50,yolo] [--size small|published] [--threads 1,4]

Each model is quantized five ways (signed activations or not, a scale for each filter or one, QDQ or
operators of 8 bits) and split by four fleets. A line tells what became of each quantized model; the
exit status is 1 if any byte differs. Some cannot be quantized by onnxruntime's tool; these are
named.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from agent.verification import Verification
from models.zoo import ZOO
from models.zoo.converted import quantized

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agent.planner.plan import Form

WAYS: dict[str, Callable[[Path, Path], Path]] = {
    "u8": quantized,
    "u8 by filter": partial(quantized, per_channel=True),
    "s8": partial(quantized, activations="s8"),
    "s8 by filter": partial(quantized, activations="s8", per_channel=True),
    "operators": partial(quantized, format="qoperator"),
}
FLEETS: tuple[tuple[int, Form], ...] = ((2, "rows"), (3, "columns"), (4, "grid"), (8, "any"))


def sweep(name: str, threads: Sequence[int], *, small: bool) -> bool:
    """Compare one model in every way, and say what became of it; whether all bytes were equal."""
    right = True
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder, "plain.onnx")
        ZOO[name].make(small=small).save(plain)
        for way, convert in WAYS.items():
            began = time.monotonic()
            try:
                path = convert(plain, Path(folder, "quantized.onnx"))
            except Exception as error:  # noqa: BLE001 - the quantizer's have no common base
                _say(f"{name}, {way}: cannot be quantized: {str(error).splitlines()[0]}")
                continue
            found = [
                (verdict.identical, verdict.distributed_share, f"{count} {form}, {number} threads")
                for number in threads
                for verification in (Verification(path, threads=number),)
                for count, form in FLEETS
                for verdict in (verification.verify(count, form),)
            ]
            wrong = [fleet for identical, _, fleet in found if not identical]
            shares = [share for _, share, _ in found]
            outcome = f"DIFFERS on {'; '.join(wrong)}" if wrong else "identical"
            shared = f"{min(shares):.0%} to {max(shares):.0%} shared"
            _say(f"{name}, {way}: {outcome}, {shared}, {time.monotonic() - began:.0f} s")
            right = right and not wrong
    return right


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit status tells whether something differed."""
    parser = argparse.ArgumentParser(description=__doc__)
    floats = [name for name, recipe in ZOO.items() if recipe.convert is None]
    parser.add_argument("--models", default=",".join(floats))
    parser.add_argument("--size", choices=["small", "published"], default="small")
    parser.add_argument("--threads", default="1,4")
    options = parser.parse_args(arguments)
    threads = [int(number) for number in options.threads.split(",")]
    small = options.size == "small"
    results = [sweep(name, threads, small=small) for name in options.models.split(",")]
    return 0 if all(results) else 1


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
