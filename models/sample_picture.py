"""The picture that the demo sends to VGG-16: `python -m models.sample_picture` draws sample.jpg.

A lake between mountains at sunset, drawn by a seeded generator, so that the repository holds a
real JPEG without anybody's rights in it.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

if TYPE_CHECKING:
    from numpy.typing import NDArray

SEED = 1422
WIDTH, HEIGHT = 640, 480
SHORE = 330  # the row where the lake begins
QUALITY = 85

_SKY = ((38, 62, 120), (120, 130, 175), (240, 170, 120), (255, 214, 150))
_RANGES = (  # crest row, roughness in rows, colour: from the far range to the near one
    (215, 70, (112, 110, 150)),
    (255, 55, (74, 78, 112)),
    (298, 40, (42, 52, 66)),
)


def draw(seed: int = SEED) -> NDArray[np.uint8]:
    """Return the picture as uint8 [480, 640, 3], RGB."""
    rng = np.random.Generator(np.random.PCG64(seed))
    scene = _sky(rng)
    for crest, rough, colour in _RANGES:
        _add_range(rng, scene, crest, rough, colour)
    _add_lake(rng, scene)
    image = Image.fromarray(np.clip(scene, 0, 255).astype(np.uint8))
    _add_trees(rng, image)
    scene = np.asarray(image.filter(ImageFilter.GaussianBlur(0.6)), np.float64)
    scene += rng.normal(0, 2.5, scene.shape)
    return np.clip(np.rint(scene), 0, 255).astype(np.uint8)


def _noise(rng: np.random.Generator, height: int, width: int, octaves: int) -> NDArray[np.float64]:
    """Return fractal noise [H, W] within about -1..1."""
    total = np.zeros((height, width))
    for octave in range(octaves):
        cells = (max(1, height * 2**octave // 160), 2 ** (octave + 2))
        coarse = Image.fromarray(rng.uniform(-1, 1, cells).astype(np.float32))
        total += np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)) / 2**octave
    return np.asarray(total / 1.5, np.float64)


def _sky(rng: np.random.Generator) -> NDArray[np.float64]:
    heights = np.linspace(0, SHORE, len(_SKY))
    rows = np.arange(HEIGHT)
    bands = [np.interp(rows, heights, [colour[band] for colour in _SKY]) for band in range(3)]
    scene = np.repeat(np.stack(bands, axis=-1)[:, None], WIDTH, axis=1)
    clouds = np.clip(_noise(rng, HEIGHT, WIDTH, 6) * 1.6 - 0.15, 0, 1)[:, :, None]
    scene += clouds * (np.array([255, 205, 190]) - scene) * 0.75
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    distance = np.hypot(x - 430, y - 190)
    glow = np.exp(-distance / 90)[:, :, None] * np.array([90, 70, 30])
    disc = np.clip(26 - distance, 0, 1)[:, :, None]
    return np.asarray(scene * (1 - disc) + disc * np.array([255, 244, 214]) + glow)


def _add_range(
    rng: np.random.Generator,
    scene: NDArray[np.float64],
    crest: int,
    rough: int,
    colour: tuple[int, int, int],
) -> None:
    """Paint a mountain range whose crest is a fractal line; its sides are lit from the right."""
    line = crest - rough * _noise(rng, 1, WIDTH, 7)[0]
    below = np.arange(HEIGHT)[:, None] - line[None]
    rock = _noise(rng, HEIGHT, WIDTH, 7)
    shade = 1 + 0.3 * np.tanh(12 * np.gradient(rock, axis=1)) + 0.15 * rock
    snow = np.clip(1 - below / (rough * 0.7) + rock, 0, 1) * (crest < SHORE - 60)
    body = np.array(colour) * shade[:, :, None]
    body += snow[:, :, None] * (np.array([226, 216, 226]) * shade[:, :, None] - body) * 0.8
    cover = np.clip(below, 0, 1)[:, :, None]
    scene *= 1 - cover
    scene += cover * body


def _add_lake(rng: np.random.Generator, scene: NDArray[np.float64]) -> None:
    """Mirror what is above the shore, with ripples that grow towards the viewer."""
    depth = np.arange(HEIGHT - SHORE)
    ripple = rng.normal(0, 1, (len(depth), WIDTH // 16))
    fine = Image.fromarray(ripple.astype(np.float32)).resize((WIDTH, len(depth)))
    shift = np.asarray(fine) * (1 + depth[:, None] / 18)
    rows = np.clip(SHORE - 1 - depth[:, None] * 1.6 + shift, 0, SHORE - 1).astype(int)
    mirror = scene[rows, np.arange(WIDTH)[None]]
    scene[SHORE:] = mirror * 0.72 + np.array([10, 22, 40])


def _add_trees(rng: np.random.Generator, image: Image.Image) -> None:
    """Plant spruces along the near shore, in front of everything."""
    pen = ImageDraw.Draw(image)
    for _ in range(46):
        side = rng.beta(0.5, 0.5)  # more of them at the edges than in the middle
        x, foot = float(side * WIDTH), float(HEIGHT - 30 + rng.uniform(0, 40))
        tall = float(rng.uniform(60, 170) * (0.45 + 1.1 * abs(side - 0.5)))
        green = tuple(int(level) for level in np.array([14, 26, 22]) + rng.integers(0, 14, 3))
        for layer in np.linspace(0, 1, 14):
            y = foot - tall * (1 - float(layer))
            reach = tall * 0.17 * float(layer) * float(rng.uniform(0.75, 1.15)) + 1
            pen.polygon([(x, y - tall / 9), (x - reach, y), (x + reach, y)], fill=green)
    pen.rectangle((0, HEIGHT - 14, WIDTH, HEIGHT), fill=(16, 24, 20))


def main() -> None:
    """Write sample.jpg beside this file."""
    buffer = io.BytesIO()
    Image.fromarray(draw()).save(buffer, "JPEG", quality=QUALITY)
    path = Path(__file__).with_name("sample.jpg")
    path.write_bytes(buffer.getvalue())
    print(f"{path}: {len(buffer.getvalue())} bytes")


if __name__ == "__main__":
    main()
