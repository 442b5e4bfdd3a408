"""Train the defects model: `python -m models.train_defects` (needs `pip install halomq[train]`).

Draws its pictures, trains on crops of them with one thread, folds the batch normalisation,
writes defects.onnx, defects.toml and defects-sample.jpg beside this file, and prints precision
and recall on held-out pictures, measured through the code that serves requests. The figures of
the weights that are kept are in defects.toml. About ten minutes on one core.
"""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import onnxruntime
import torch
from PIL import Image
from torch import nn

from agent.adapters.media import decode_input
from agent.answers import answer
from agent.wire.manifest import load_manifest
from models.defects_network import INPUT, LAYERS, channels_of, export, gflops
from models.defects_pictures import (
    CELL,
    LABELS,
    SAMPLE_COUNT,
    SAMPLE_SEED,
    SIZE,
    Picture,
    Tally,
    draw,
    tally,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

SEED = 2207
PICTURES = 320
# Seeds below this are free for tests and demos: no training picture has one of them.
FIRST_TRAINING_SEED = 1_000_000
HELD_OUT = range(500_000, 500_060)
STEPS = 2000
BATCH = 9
CROP = 256
PEAK_RATE = 4e-3
# A cell that a defect covers less than this is neither: it may be called either way.
MIN_COVER = 3 / CELL**2
IGNORED = -100
DEFECT_WEIGHT = 2.0

MANIFEST = """\
# The defects model: scratches, cracks, pits and stains on metal, a score per 8x8 pixels.
# Made by models/train_defects.py (seed {seed}, {steps} steps of {batch} crops, {minutes:.0f} min
# on one core): {gflops:.1f} GFLOP a picture of {size}x{size}. On {held_out} held-out pictures, as
# JPEG (precision, recall, and how many defects there were):
{figures}
task = "heatmap"
labels = [{labels}]

[input]
color = "rgb"
resize = "stretch"
mean = [0.5, 0.5, 0.5]
std = [0.25, 0.25, 0.25]

[output]
background = 0
threshold = 0.5
min_cells = 2
"""


class Example(NamedTuple):
    """A training picture: pixels uint8 [H, W, 3] and mask uint8 [H, W]."""

    pixels: NDArray[np.uint8]
    mask: NDArray[np.uint8]


def build_network() -> Any:
    """Return the trainable layers of the table: a module for each conv, by name."""
    channels = channels_of()
    layers = {}
    for layer in LAYERS:
        if layer.kind == "conv":
            conv = nn.Conv2d(
                channels[layer.inputs[0]],
                layer.channels,
                layer.kernel,
                layer.stride,
                layer.kernel // 2 * layer.dilation,
                layer.dilation,
                bias=layer.name == "logits",
            )
            norm = nn.Identity() if layer.name == "logits" else nn.BatchNorm2d(layer.channels)
            layers[layer.name] = nn.Sequential(conv, norm)
    return nn.ModuleDict(layers)


def forward(network: Any, image: Any) -> Any:
    """Return the logits [N, 5, H/8, W/8] of normalised pictures [N, 3, H, W]."""
    values = {INPUT: image}
    for layer in LAYERS:
        inputs = [values[name] for name in layer.inputs]
        if layer.kind == "conv":
            value = network[layer.name](inputs[0])
        elif layer.kind == "pool":
            value = nn.functional.max_pool2d(inputs[0], 2)
        elif layer.kind == "add":
            value = inputs[0] + inputs[1]
        else:
            value = torch.cat(inputs, dim=1)
        activated = layer.relu and layer.kind in {"conv", "add"}
        values[layer.name] = torch.relu(value) if activated else value
    return values[LAYERS[-1].name]


def folded(network: Any) -> dict[str, NDArray[np.float32]]:
    """Return weight and bias of each conv with its batch normalisation folded in (in float64)."""
    weights = {}
    for name, (conv, norm) in network.items():
        weight = conv.weight.detach().double()
        if isinstance(norm, nn.BatchNorm2d):
            scale = norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
            weight = weight * scale[:, None, None, None]
            bias = norm.bias.detach().double() - norm.running_mean.double() * scale
        else:
            bias = conv.bias.detach().double()
        weights[f"{name}.weight"] = weight.float().numpy()
        weights[f"{name}.bias"] = bias.float().numpy()
    return weights


def cell_targets(mask: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the class of each cell [H/8, W/8] of a mask [H, W], IGNORED where it is marginal."""
    rows, columns = mask.shape[0] // CELL, mask.shape[1] // CELL
    cells = mask.reshape(rows, CELL, columns, CELL)
    cover = (cells > 0).mean(axis=(1, 3))
    label: NDArray[np.int64] = cells.max(axis=(1, 3)).astype(np.int64)
    label[(cover > 0) & (cover < MIN_COVER)] = IGNORED
    return label


def draw_examples() -> list[Example]:
    """Draw the training pictures; every other one has been through a camera's JPEG encoder."""
    examples = []
    rng = np.random.Generator(np.random.PCG64(SEED))
    for index in range(PICTURES):
        picture = draw(FIRST_TRAINING_SEED + index, count=int(rng.integers(8, 15)))
        pixels = picture.pixels
        if index % 2:
            jpeg = encode_jpeg(pixels, int(rng.integers(60, 96)))
            pixels = np.asarray(Image.open(io.BytesIO(jpeg)))
        examples.append(Example(pixels, picture.mask))
    return examples


def encode_jpeg(pixels: NDArray[np.uint8], quality: int) -> bytes:
    """Return pixels uint8 [H, W, 3] as a JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def batch_of(examples: list[Example], rng: np.random.Generator) -> tuple[Any, Any]:
    """Return crops [N, 3, CROP, CROP], normalised as the manifest says, and their targets."""
    images, targets = [], []
    for _ in range(BATCH):
        example = examples[int(rng.integers(0, len(examples)))]
        y, x = (int(rng.integers(0, SIZE - CROP + 1)) for _ in range(2))
        pixels = example.pixels[y : y + CROP, x : x + CROP].astype(np.float32)
        mask = example.mask[y : y + CROP, x : x + CROP]
        turns, mirrored = int(rng.integers(0, 4)), bool(rng.integers(0, 2))
        pixels, mask = np.rot90(pixels, turns), np.rot90(mask, turns)
        if mirrored:
            pixels, mask = pixels[:, ::-1], mask[:, ::-1]
        pixels = np.clip(pixels * rng.uniform(0.8, 1.2) + rng.uniform(-15, 15), 0, 255)
        images.append((pixels / 255 - 0.5).transpose(2, 0, 1) / 0.25)
        targets.append(cell_targets(mask))
    return (
        torch.from_numpy(np.ascontiguousarray(np.stack(images), np.float32)),
        torch.from_numpy(np.stack(targets)),
    )


def train() -> Any:
    """Train and return the network, in evaluation mode."""
    examples = draw_examples()
    network = build_network().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=PEAK_RATE, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK_RATE, total_steps=STEPS, pct_start=0.15
    )
    weight = torch.tensor([1.0] + [DEFECT_WEIGHT] * (len(LABELS) - 1))
    rng = np.random.Generator(np.random.PCG64(SEED + 1))
    begun, recent = time.monotonic(), 0.0
    for step in range(1, STEPS + 1):
        images, targets = batch_of(examples, rng)
        logits = forward(network, images.to(memory_format=torch.channels_last))
        loss = nn.functional.cross_entropy(logits, targets, weight, ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        recent += loss.item()
        if step % 50 == 0:
            spent = time.monotonic() - begun
            print(f"step {step}/{STEPS}  loss {recent / 50:.4f}  {spent:.0f} s", flush=True)
            recent = 0.0
    return network.eval()


def check_export(network: Any, session: Any) -> None:
    """Compare the exported model with the network.

    Raises:
        RuntimeError: if the scores differ by more than rounding.
    """
    image = np.random.Generator(np.random.PCG64(SEED)).normal(size=(1, 3, SIZE, SIZE))
    image = image.astype(np.float32)
    with torch.no_grad():
        expected = forward(network, torch.from_numpy(image)).softmax(1).numpy()
    error = float(np.abs(session.run(None, {INPUT: image})[0] - expected).max())
    print(f"largest difference between onnxruntime and torch: {error:.1e}")
    if error > 1e-4:  # noqa: PLR2004 - folding and another summing order cost about 1e-6
        raise RuntimeError("the exported model is not the trained one")


def evaluate(session: Any, manifest_file: Path) -> dict[str, Tally]:
    """Return how the objects found in the held-out pictures (as JPEG) compare with the truth."""
    manifest = load_manifest(manifest_file)
    shape = (1, 3, SIZE, SIZE)
    results: list[tuple[Picture, list[dict[str, Any]]]] = []
    for seed in HELD_OUT:
        picture = draw(seed)
        payload = encode_jpeg(picture.pixels, 90)
        image = decode_input(payload, manifest, shape, "float32", "image/jpeg").whole()
        scores = session.run(None, {INPUT: image})[0]
        results.append((picture, answer({"scores": scores}, manifest)["objects"]))
    return tally(results)


def manifest_text(figures: str, minutes: float) -> str:
    """Return the manifest, with the held-out `figures` in its comment."""
    return MANIFEST.format(
        seed=SEED,
        steps=STEPS,
        batch=BATCH,
        minutes=minutes,
        gflops=gflops(SIZE, SIZE),
        size=SIZE,
        held_out=len(HELD_OUT),
        figures=figures,
        labels=", ".join(f'"{label}"' for label in LABELS),
    )


def finish(network: Any, minutes: float) -> None:
    """Write the files of a trained network, check them, and print the held-out figures."""
    folder = Path(__file__).parent
    content = export(folded(network), SIZE, SIZE)
    (folder / "defects.onnx").write_bytes(content)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options)
    check_export(network, session)
    manifest_file = folder / "defects.toml"
    manifest_file.write_text(manifest_text("# (not measured yet)", minutes))
    rows = [
        f"#   {name:8} {result.precision:.3f} {result.recall:.3f}  of {result.hits + result.misses}"
        for name, result in evaluate(session, manifest_file).items()
    ]
    print("\n".join(rows))
    manifest_file.write_text(manifest_text("\n".join(rows), minutes))
    sample = draw(SAMPLE_SEED, count=SAMPLE_COUNT)
    (folder / "defects-sample.jpg").write_bytes(encode_jpeg(sample.pixels, 82))


def main() -> None:
    """Train the model and write its files."""
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    begun = time.monotonic()
    network = train()
    finish(network, (time.monotonic() - begun) / 60)


if __name__ == "__main__":
    main()
