"""A plan as a picture: blocks from left to right, devices from top to bottom, tiles to scale."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from agent.geometry import hull

if TYPE_CHECKING:
    from agent.geometry import Region
    from agent.planner.layout import Shape
    from agent.planner.plan import Block, Plan

_COLUMN, _GAP, _LEFT, _TOP, _HEIGHT, _BOTTOM = 150, 34, 20, 64, 320, 84
_LETTER = 7  # width
_LAST_OF_A_MAP = 3  # axis
_COLOURS = (
    "#4878a8", "#e07b39", "#5a9e6f", "#b5586f", "#8a6fae", "#c2a23a", "#4fa3a5", "#7f7f7f",
)  # fmt: skip


def draw_plan(plan: Plan) -> str:
    """Return the plan as an SVG picture: who owns which share of each block's first output."""
    width = 2 * _LEFT + len(plan.blocks) * (_COLUMN + _GAP)
    height = _TOP + _HEIGHT + _BOTTOM
    body = [column for block in plan.blocks for column in _block(block, plan)]
    title = (
        f"{plan.model} on {len(plan.devices)} devices: {plan.predicted_s * 1e3:.1f} ms predicted, "
        f"{plan.distributed_share:.1%} of the arithmetic shared"
    )
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif">'
    )
    return "\n".join(
        [
            opening,
            f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
            _text(_LEFT, 26, title, size=16),
            *body,
            "</svg>",
            "",
        ]
    )


def _block(block: Block, plan: Plan) -> list[str]:
    left = _LEFT + block.index * (_COLUMN + _GAP)
    below = _TOP + _HEIGHT + 18
    layout = plan.layouts[block.index]
    lines = [
        _text(left, _TOP - 10, f"block {block.index}: {layout}, {len(block.layers)} layers"),
        *_tiles(block, plan, left),
        _text(left, below, _shortened(block.layers[0])),
        _text(left, below + 16, f"to {_shortened(block.layers[-1])}"),
        _text(left, below + 32, f"compute {block.compute_s * 1e3:.1f} ms"),
    ]
    if block.halo_bytes:
        exchange = f"{block.halo_bytes / 1e3:.0f} kB in {block.exchange_s * 1e3:.1f} ms before"
        lines.append(_text(left, below + 48, exchange))
    return lines


def drawn_axes(block: Block, shape: Shape) -> tuple[int | None, int | None]:
    """Return the axes of a block's first output that are its rows and columns, as far as known.

    A map that is shared by channels, or a tensor that is no map, has its share's axis for rows and
    nothing for columns; what is not shared has neither.
    """
    regions = [block.tiles[device][0][1] for device in block.devices]
    split = [n for n, spans in enumerate(zip(*regions, strict=True)) if len(set(spans)) > 1]
    if len(split) > 1:
        return split[0], split[1]
    if not split:
        return None, None
    axis, last = split[0], len(regions[0]) - 1
    if last != _LAST_OF_A_MAP or axis == 1:
        return axis, None
    if axis == last or shape.rows == 1:
        return axis - 1, axis
    return axis, (axis + 1 if regions[0][axis + 1] != (0, 1) else None)


def _tiles(block: Block, plan: Plan, left: int) -> list[str]:
    """Draw each device's tile of the block's first output, its rows and columns to scale."""
    axes = drawn_axes(block, plan.layouts[block.index])
    whole = hull(block.tiles[device][0][1] for device in block.devices)
    lines = []
    for device in block.devices:
        name, region = block.tiles[device][0]
        (a, b), (c, d) = (_share(region, whole, axis) for axis in axes)
        x, width = left + c * _COLUMN, (d - c) * _COLUMN
        y, height = _TOP + a * _HEIGHT, (b - a) * _HEIGHT
        rank = plan.devices.index(device)
        spans = " x ".join(f"{start}:{stop}" for start, stop in region)
        lines.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" '
            f'fill="{_COLOURS[rank % len(_COLOURS)]}" stroke="#ffffff">'
            f"<title>{escape(f'{device}: {name} {spans}')}</title></rect>"
        )
        label = _fitting(device, rank, width)
        lines.append(_text(x + 4, y + height / 2 + 4, label, colour="#ffffff"))
    return lines


def _share(region: Region, whole: Region, axis: int | None) -> tuple[float, float]:
    """Return where a region starts and stops on an axis, as shares of its whole extent."""
    if axis is None:
        return 0.0, 1.0
    start, stop = region[axis]
    return start / whole[axis][1], stop / whole[axis][1]


def _fitting(device: str, rank: int, width: float) -> str:
    """Return a device's name, or its number where that is too wide."""
    return device if len(device) * _LETTER + 8 <= width else str(rank + 1)


def _text(x: float, y: float, text: str, *, size: int = 12, colour: str = "#222222") -> str:
    return f'<text x="{x}" y="{y:.1f}" font-size="{size}" fill="{colour}">{escape(text)}</text>'


def _shortened(label: str) -> str:
    """Return a label that fits its column."""
    longest = 24
    return label if len(label) <= longest else f"{label[: longest - 1]}…"
