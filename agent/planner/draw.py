"""A plan as a picture: blocks from left to right, devices from top to bottom, tiles to scale."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent.planner.graph import Graph
    from agent.planner.plan import Block, Plan

_COLUMN, _GAP, _LEFT, _TOP, _HEIGHT, _BOTTOM = 150, 34, 20, 64, 320, 84
_COLOURS = (
    "#4878a8", "#e07b39", "#5a9e6f", "#b5586f", "#8a6fae", "#c2a23a", "#4fa3a5", "#7f7f7f",
)  # fmt: skip


def draw_plan(plan: Plan, graph: Graph) -> str:
    """Return the plan as an SVG picture: who owns which share of each block's first output.

    Args:
        plan: the plan.
        graph: the model that it was made for.
    """
    width = 2 * _LEFT + len(plan.blocks) * (_COLUMN + _GAP)
    height = _TOP + _HEIGHT + _BOTTOM
    body = [column for block in plan.blocks for column in _block(block, plan, graph)]
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


def _block(block: Block, plan: Plan, graph: Graph) -> list[str]:
    left = _LEFT + block.index * (_COLUMN + _GAP)
    below = _TOP + _HEIGHT + 18
    lines = [
        _text(left, _TOP - 10, f"block {block.index}: {len(block.layers)} layers"),
        *_tiles(block, plan, graph, left),
        _text(left, below, _shortened(block.layers[0])),
        _text(left, below + 16, f"to {_shortened(block.layers[-1])}"),
        _text(left, below + 32, f"compute {block.compute_s * 1e3:.1f} ms"),
    ]
    if block.halo_bytes:
        exchange = f"{block.halo_bytes / 1e3:.0f} kB in {block.exchange_s * 1e3:.1f} ms before"
        lines.append(_text(left, below + 48, exchange))
    return lines


def _tiles(block: Block, plan: Plan, graph: Graph, left: int) -> list[str]:
    """Draw each device's tile of the block's first output along the axis that is split."""
    lines = []
    for device in block.devices:
        name, region = block.tiles[device][0]
        shape = graph.shape(name)
        shares = [(a / n, b / n) for (a, b), n in zip(region, shape, strict=True)]
        start, stop = next((share for share in shares if share != (0.0, 1.0)), (0.0, 1.0))
        top, height = _TOP + start * _HEIGHT, (stop - start) * _HEIGHT
        colour = _COLOURS[plan.devices.index(device) % len(_COLOURS)]
        lines.append(
            f'<rect x="{left}" y="{top:.1f}" width="{_COLUMN}" height="{height:.1f}" '
            f'fill="{colour}" stroke="#ffffff"/>'
        )
        lines.append(_text(left + 8, top + height / 2 + 4, device, colour="#ffffff"))
    return lines


def _text(x: float, y: float, text: str, *, size: int = 12, colour: str = "#222222") -> str:
    return f'<text x="{x}" y="{y:.1f}" font-size="{size}" fill="{colour}">{escape(text)}</text>'


def _shortened(label: str) -> str:
    """Return a label that fits its column."""
    longest = 24
    return label if len(label) <= longest else f"{label[: longest - 1]}…"
