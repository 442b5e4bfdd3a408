"""Regions of tensors: half-open boxes, and the arithmetic that tiles and halos need.

A region is a tuple with one `(start, stop)` pair for each axis, in elements, `0 <= start < stop`
(a scalar's region is the empty tuple). It is plain data, so it travels in messages as it is.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Region = tuple[tuple[int, int], ...]


def whole(shape: Sequence[int]) -> Region:
    """Return the region that covers a tensor of `shape`."""
    return tuple((0, extent) for extent in shape)


def shape_of(region: Region) -> tuple[int, ...]:
    """Return the region's extent along each axis."""
    return tuple(stop - start for start, stop in region)


def size(region: Region) -> int:
    """Return how many elements the region holds."""
    return prod(stop - start for start, stop in region)


def contains(outer: Region, inner: Region) -> bool:
    """Tell whether every element of `inner` is in `outer`; both have the same rank."""
    return all(a <= c and d <= b for (a, b), (c, d) in zip(outer, inner, strict=True))


def intersect(left: Region, right: Region) -> Region | None:
    """Return the elements in both regions (of the same rank), or None where there are none."""
    common = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(left, right, strict=True))
    return common if all(start < stop for start, stop in common) else None


def hull(regions: Iterable[Region]) -> Region:
    """Return the smallest region that contains all of `regions` (at least one)."""
    axes = zip(*regions, strict=True)
    return tuple((min(a for a, _ in axis), max(b for _, b in axis)) for axis in axes)


def subtract(region: Region, hole: Region) -> list[Region]:
    """Return disjoint regions that together are `region` without `hole`."""
    common = intersect(region, hole)
    if common is None:
        return [region]
    rest: list[Region] = []
    core = list(region)
    for axis, ((start, stop), (cut_start, cut_stop)) in enumerate(zip(region, common, strict=True)):
        edges = ((start, cut_start), (cut_stop, stop))
        rest += [(*core[:axis], edge, *core[axis + 1 :]) for edge in edges if edge[0] < edge[1]]
        core[axis] = (cut_start, cut_stop)
    return rest


def missing(region: Region, held: Iterable[Region]) -> list[Region]:
    """Return disjoint regions that make up what of `region` is in none of `held`."""
    wanted = [region]
    for piece in held:
        wanted = [rest for part in wanted for rest in subtract(part, piece)]
        if not wanted:
            break
    return wanted


def slices_within(region: Region, outer: Region) -> tuple[slice, ...]:
    """Return the index of `region` into an array that holds exactly `outer`."""
    return tuple(slice(a - c, b - c) for (a, b), (c, _) in zip(region, outer, strict=True))


def split_rows(region: Region, axis: int, rows: int) -> list[Region]:
    """Cut `region` along `axis` into regions of at most `rows` elements on that axis."""
    start, stop = region[axis]
    return [
        (*region[:axis], (at, min(at + rows, stop)), *region[axis + 1 :])
        for at in range(start, stop, rows)
    ]
