"""Pictures of brushed, turned and cast metal with defects, drawn by a seeded generator.

They stand in for a line camera over a workpiece: texture, uneven light, glare, dust, faint tool
marks and sensor noise are in every picture and are no defects. `draw` also gives the truth, so
that training, tests and the demo all measure against the same thing.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

LABELS = ("background", "scratch", "crack", "pit", "stain")
SIZE = 768
SAMPLE_SEED = 39  # of defects-sample.jpg, with SAMPLE_COUNT defects
SAMPLE_COUNT = 9
CELL = 8  # one cell of the model's output, in pixels

_SUPERSAMPLE = 4
_GAP = 28  # pixels between two defects, so that two never share or touch a cell
_EDGE = 12  # pixels between a defect and the border
_COVER = 0.3  # a pixel is part of a defect from this coverage on
_PLACING_ATTEMPTS = 40
_GLARE_CHANCE = 0.5


class Defect(NamedTuple):
    """A defect that was drawn: its class and its box (x0, y0, x1, y1) in pixels, half open."""

    label: str
    box: tuple[int, int, int, int]


class Picture(NamedTuple):
    """`pixels` uint8 [H, W, 3] (RGB), what is in it, and `mask` uint8 [H, W]: label per pixel."""

    pixels: NDArray[np.uint8]
    defects: tuple[Defect, ...]
    mask: NDArray[np.uint8]


class _Stamp(NamedTuple):
    """A defect on its own: coverage 0..1 [h, w] and what it adds to the pixels [h, w, 3]."""

    cover: NDArray[np.float32]
    delta: NDArray[np.float32]


def draw(seed: int, height: int = SIZE, width: int = SIZE, count: int | None = None) -> Picture:
    """Draw the picture of `seed`.

    Args:
        seed: any non-negative integer; the same seed gives the same picture.
        height: in pixels, at least 256.
        width: in pixels, at least 256.
        count: how many defects to try to place; drawn from the seed when None (0 to 12 for the
            full size, and fewer for a smaller picture).
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    canvas = _surface(rng, height, width)
    if count is None:
        count = int(rng.integers(0, max(2, round(12 * height * width / SIZE**2)) + 1))
    mask = np.zeros((height, width), np.uint8)
    defects: list[Defect] = []
    for _ in range(count):
        label = int(rng.integers(1, len(LABELS)))
        stamp = _STAMPS[LABELS[label]](rng)
        corner = _place(rng, stamp.cover.shape, (height, width), [found.box for found in defects])
        if corner is None:
            continue
        rows = slice(corner[0], corner[0] + stamp.cover.shape[0])
        columns = slice(corner[1], corner[1] + stamp.cover.shape[1])
        canvas[rows, columns] += stamp.delta
        covered = stamp.cover > _COVER
        mask[rows, columns][covered] = label
        ys, xs = np.nonzero(covered)
        defects.append(
            Defect(
                LABELS[label],
                (
                    corner[1] + int(xs.min()),
                    corner[0] + int(ys.min()),
                    corner[1] + int(xs.max()) + 1,
                    corner[0] + int(ys.max()) + 1,
                ),
            )
        )
    canvas += rng.normal(0, rng.uniform(1.5, 5), canvas.shape).astype(np.float32)
    pixels = np.clip(np.rint(canvas), 0, 255).astype(np.uint8)
    return Picture(pixels, tuple(defects), mask)


class Tally(NamedTuple):
    """How found objects compare with the truth, for one class or all."""

    hits: int
    misses: int
    false_alarms: int

    @property
    def precision(self) -> float:
        """Share of the found objects that are there (1 where nothing was found)."""
        found = self.hits + self.false_alarms
        return self.hits / found if found else 1.0

    @property
    def recall(self) -> float:
        """Share of the defects that were found (1 where there are none)."""
        there = self.hits + self.misses
        return self.hits / there if there else 1.0


def tally(
    pictures: Iterable[tuple[Picture, Sequence[Mapping[str, Any]]]],
) -> dict[str, Tally]:
    """Compare pictures with the `objects` of their answers; return a tally per class and "all".

    An object is a hit when its class is that of a defect whose box, grown by one cell, holds the
    object's centre. A defect is hit once: a defect found in two pieces is a false alarm too.
    """
    counts = {label: [0, 0, 0] for label in LABELS[1:]}
    for picture, objects in pictures:
        height, width = picture.mask.shape
        left = list(picture.defects)
        for found in objects:
            x0, y0, x1, y1 = found["box"]
            x, y = (x0 + x1) / 2 * width, (y0 + y1) / 2 * height
            hit = next((d for d in left if d.label == found["label"] and _near(d, x, y)), None)
            counts[found["label"]][0 if hit else 2] += 1
            if hit:
                left.remove(hit)
        for missed in left:
            counts[missed.label][1] += 1
    totals = [sum(column) for column in zip(*counts.values(), strict=True)]
    return {name: Tally(*count) for name, count in {**counts, "all": totals}.items()}


def _near(defect: Defect, x: float, y: float) -> bool:
    x0, y0, x1, y1 = defect.box
    return x0 - CELL <= x <= x1 + CELL and y0 - CELL <= y <= y1 + CELL


def _place(
    rng: np.random.Generator,
    shape: tuple[int, ...],
    room: tuple[int, int],
    taken: Sequence[tuple[int, int, int, int]],
) -> tuple[int, int] | None:
    """Return a free (row, column) for a stamp of `shape`, or None if none was found."""
    tallest, widest = room[0] - shape[0] - _EDGE, room[1] - shape[1] - _EDGE
    if tallest <= _EDGE or widest <= _EDGE:
        return None
    for _ in range(_PLACING_ATTEMPTS):
        y, x = int(rng.integers(_EDGE, tallest)), int(rng.integers(_EDGE, widest))
        if all(
            x + shape[1] + _GAP <= x0
            or x1 + _GAP <= x
            or y + shape[0] + _GAP <= y0
            or y1 + _GAP <= y
            for x0, y0, x1, y1 in taken
        ):
            return y, x
    return None


def _smooth(
    rng: np.random.Generator, cells: tuple[int, int], height: int, width: int
) -> NDArray[np.float32]:
    """Return [H, W] noise of about unit amplitude that varies over `cells` of the picture."""
    coarse = Image.fromarray(rng.normal(0, 1, cells).astype(np.float32))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32)


def _surface(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float32]:
    """Return the metal without defects: float32 [H, W, 3], about 0..255."""
    kind = rng.integers(0, 3)
    if kind == 0:  # brushed along the rows
        texture = _streaks(rng, height, width)
    elif kind == 1:  # brushed along the columns
        texture = _streaks(rng, width, height).T
    else:  # cast or blasted: grain of two sizes
        grain = rng.normal(0, 1, (height, width)).astype(np.float32)
        texture = 0.6 * grain + _smooth(rng, (height // 3, width // 3), height, width)
    light = rng.uniform(95, 165) + rng.uniform(5, 22) * _smooth(rng, (4, 4), height, width)
    angle = rng.uniform(0, 2 * math.pi)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    across = (x * math.cos(angle) + y * math.sin(angle)).astype(np.float32)
    light += rng.uniform(0, 30) * across
    if rng.random() < _GLARE_CHANCE:  # a soft band of it
        centre, spread = rng.uniform(-0.8, 0.8), rng.uniform(0.15, 0.5)
        light += rng.uniform(10, 40) * np.exp(-(((across - centre) / spread) ** 2))
    grey = light + rng.uniform(3, 8) * texture
    for _ in range(int(rng.integers(0, 5))):  # tool marks: faint, and from side to side
        at, strength = int(rng.integers(0, height)), rng.uniform(-9, 9)
        grey[at : at + int(rng.integers(1, 3))] += strength
    for _ in range(int(rng.integers(0, 40 * height * width // SIZE**2 + 1))):  # dust
        row, column = int(rng.integers(0, height - 3)), int(rng.integers(0, width - 3))
        extent = int(rng.integers(1, 4))
        grey[row : row + extent, column : column + extent] += rng.uniform(-45, 45)
    tint = 1 + rng.uniform(-0.07, 0.07, 3)
    return grey[:, :, None].astype(np.float32) * tint.astype(np.float32)


def _streaks(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float32]:
    """Return [H, W] noise of about unit amplitude, drawn out along the rows."""
    length = int(rng.integers(20, 90))
    noise = rng.normal(0, 1, (height, width + length)).astype(np.float32)
    total = np.cumsum(noise, axis=1, dtype=np.float64)
    return ((total[:, length:] - total[:, :-length]) / math.sqrt(length)).astype(np.float32)


def _trace(
    paths: Sequence[Sequence[tuple[float, float]]], width: float, margin: int
) -> NDArray[np.float32]:
    """Return the coverage [h, w] of lines through (x, y) points, with `margin` pixels around."""
    xs = [x for path in paths for x, _ in path]
    ys = [y for path in paths for _, y in path]
    columns = math.ceil(max(xs) - min(xs)) + 2 * margin + 1
    rows = math.ceil(max(ys) - min(ys)) + 2 * margin + 1
    large = Image.new("L", (columns * _SUPERSAMPLE, rows * _SUPERSAMPLE))
    pen = ImageDraw.Draw(large)
    for path in paths:
        points = [
            ((x - min(xs) + margin) * _SUPERSAMPLE, (y - min(ys) + margin) * _SUPERSAMPLE)
            for x, y in path
        ]
        pen.line(points, fill=255, width=round(width * _SUPERSAMPLE), joint="curve")
    small = large.resize((columns, rows), Image.Resampling.BOX)
    return np.asarray(small, np.float32) / np.float32(255)


def _grey(delta: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.repeat(delta[:, :, None], 3, axis=2)


def _scratch(rng: np.random.Generator) -> _Stamp:
    """A bright, smooth, slightly bent groove with a shadow along one side."""
    length, angle = rng.uniform(60, 220), rng.uniform(0, math.pi)
    bend = rng.uniform(-0.15, 0.15) * length
    along = np.array([math.cos(angle), math.sin(angle)])
    middle = along * length / 2 + np.array([-along[1], along[0]]) * bend
    t = np.linspace(0, 1, 24)[:, None]
    curve = 2 * t * (1 - t) * middle + t**2 * along * length
    cover = _trace([[(float(x), float(y)) for x, y in curve]], rng.uniform(1.5, 3.2), margin=4)
    shadow = np.roll(cover, (int(rng.choice([-2, 2])), int(rng.choice([-2, 2]))), (0, 1))
    delta = rng.uniform(40, 95) * cover - rng.uniform(10, 35) * shadow * (1 - cover)
    return _Stamp(cover, _grey(delta.astype(np.float32)))


def _crack(rng: np.random.Generator) -> _Stamp:
    """A dark, jagged path with up to two branches."""
    heading, paths = rng.uniform(0, 2 * math.pi), []
    trunk = _wander(rng, (0.0, 0.0), heading, int(rng.integers(8, 22)))
    paths.append(trunk)
    for _ in range(int(rng.integers(0, 3))):
        start = trunk[int(rng.integers(2, len(trunk) - 2))]
        turn = rng.choice([-1, 1]) * rng.uniform(0.6, 1.1)
        paths.append(_wander(rng, start, heading + turn, int(rng.integers(3, 8))))
    cover = _trace(paths, rng.uniform(1.5, 3.0), margin=3)
    return _Stamp(cover, _grey(-np.float32(rng.uniform(50, 95)) * cover))


def _wander(
    rng: np.random.Generator, start: tuple[float, float], heading: float, steps: int
) -> list[tuple[float, float]]:
    points = [start]
    for _ in range(steps):
        angle, stride = heading + rng.normal(0, 0.65), rng.uniform(5, 11)
        x, y = points[-1]
        points.append((x + stride * math.cos(angle), y + stride * math.sin(angle)))
    return points


def _pit(rng: np.random.Generator) -> _Stamp:
    """A dark hole with a rim that is lit on one side."""
    radius, squash = rng.uniform(5, 13), rng.uniform(0.75, 1.0)
    reach = math.ceil(radius) + 4
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float32)
    turn, light = rng.uniform(0, math.pi), rng.uniform(0, 2 * math.pi)
    u = x * math.cos(turn) + y * math.sin(turn)
    v = (y * math.cos(turn) - x * math.sin(turn)) / squash
    distance = np.hypot(u, v)
    cover = np.clip(radius - distance + 0.5, 0, 1)
    facing = np.clip((x * math.cos(light) + y * math.sin(light)) / (distance + 1), 0, 1)
    rim = np.exp(-(((distance - radius - 0.5) / 1.4) ** 2)) * facing
    depth = np.clip((radius - distance) / radius * 2, 0.4, 1)
    delta = -rng.uniform(60, 110) * cover * depth + rng.uniform(30, 80) * rim
    return _Stamp(cover.astype(np.float32), _grey(delta.astype(np.float32)))


def _stain(rng: np.random.Generator) -> _Stamp:
    """A soft, irregular, coloured patch (oil, rust, water) with a darker rim."""
    radius = rng.uniform(16, 52)
    reach = math.ceil(radius * 1.5) + 2
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float32)
    angle, outline = np.arctan2(y, x), np.ones_like(x)
    for wave in range(2, 6):
        strength, phase = rng.uniform(0, 0.13), rng.uniform(0, 2 * math.pi)
        outline += strength * np.cos(wave * angle + phase).astype(np.float32)
    inside = radius * np.minimum(outline, 1.45) - np.hypot(x, y)
    softness = rng.uniform(3, 9)
    cover = np.clip(inside / softness + 0.5, 0, 1)
    rim = np.exp(-((inside / softness) ** 2)) * rng.uniform(0, 0.6)
    mottle = 1 + 0.2 * _smooth(rng, (6, 6), *cover.shape)
    tints = ((-22, -38, -62), (-58, -40, -22), (-45, -45, -45), (-8, -36, -58))
    tint = np.array(tints[int(rng.integers(0, len(tints)))]) * rng.uniform(0.5, 1.1)
    delta = (cover * mottle + rim * cover)[:, :, None] * tint
    return _Stamp(cover.astype(np.float32), delta.astype(np.float32))


_STAMPS = {"scratch": _scratch, "crack": _crack, "pit": _pit, "stain": _stain}
