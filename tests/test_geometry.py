"""Regions against masks: every operation must do what numpy's indexing does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from agent.geometry import (
    Region,
    contains,
    hull,
    intersect,
    missing,
    shape_of,
    size,
    slices_within,
    split_rows,
    subtract,
    whole,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

EXTENT = 6


def spans() -> st.SearchStrategy[tuple[int, int]]:
    starts = st.integers(0, EXTENT - 1)
    return starts.flatmap(lambda a: st.tuples(st.just(a), st.integers(a + 1, EXTENT)))


def regions(rank: int) -> st.SearchStrategy[Region]:
    return st.tuples(*[spans()] * rank)


PAIRS = st.integers(0, 3).flatmap(lambda rank: st.tuples(regions(rank), regions(rank)))
GROUPS = st.integers(0, 3).flatmap(
    lambda rank: st.tuples(regions(rank), st.lists(regions(rank), max_size=5))
)


def mask(rank: int, *held: Region) -> NDArray[Any]:
    """Count how many of `held` have each element."""
    counts = np.zeros((EXTENT,) * rank, int)
    for region in held:
        counts[tuple(slice(a, b) for a, b in region)] += 1
    return counts


@given(PAIRS)
def test_subtract_gives_disjoint_regions_that_make_up_the_rest(pair: tuple[Region, Region]) -> None:
    region, hole = pair
    rank = len(region)
    expected = (mask(rank, region) > 0) & (mask(rank, hole) == 0)
    assert np.array_equal(mask(rank, *subtract(region, hole)), expected.astype(int))


@given(GROUPS)
def test_missing_gives_what_nobody_holds_once(group: tuple[Region, list[Region]]) -> None:
    region, held = group
    rank = len(region)
    expected = (mask(rank, region) > 0) & (mask(rank, *held) == 0)
    assert np.array_equal(mask(rank, *missing(region, held)), expected.astype(int))


@given(PAIRS)
def test_intersect_is_what_both_have(pair: tuple[Region, Region]) -> None:
    left, right = pair
    rank = len(left)
    both = (mask(rank, left) > 0) & (mask(rank, right) > 0)
    common = intersect(left, right)
    assert (common is not None) == bool(both.any())
    if common is not None:
        assert np.array_equal(mask(rank, common) > 0, both)


@given(PAIRS)
def test_contains_means_that_nothing_is_left(pair: tuple[Region, Region]) -> None:
    outer, inner = pair
    rank = len(outer)
    assert contains(outer, inner) == bool((mask(rank, outer) >= mask(rank, inner)).all())


@given(GROUPS.filter(lambda group: bool(group[1])))
def test_hull_is_the_smallest_region_around_all(group: tuple[Region, list[Region]]) -> None:
    _, held = group
    around = hull(held)
    filled = np.argwhere(mask(len(around), *held))
    low, high = filled.min(axis=0), filled.max(axis=0) + 1
    assert around == tuple(zip(low.tolist(), high.tolist(), strict=True))


@given(st.integers(1, 3).flatmap(regions), st.data())
def test_split_rows_cuts_one_axis_in_order(region: Region, data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, len(region) - 1))
    rows = data.draw(st.integers(1, EXTENT))
    parts = split_rows(region, axis, rows)
    assert np.array_equal(mask(len(region), *parts), mask(len(region), region))
    assert parts == sorted(parts)
    assert all(shape_of(part)[axis] == rows for part in parts[:-1])
    assert 0 < shape_of(parts[-1])[axis] <= rows


@given(PAIRS)
def test_slices_within_index_an_array_that_holds_the_outer_region(
    pair: tuple[Region, Region],
) -> None:
    outer = hull(pair)
    rank = len(outer)
    everything = np.arange(EXTENT**rank).reshape((EXTENT,) * rank)
    held = everything[tuple(slice(a, b) for a, b in outer)]
    for region in pair:
        expected = everything[tuple(slice(a, b) for a, b in region)]
        assert np.array_equal(held[slices_within(region, outer)], expected)
        assert shape_of(region) == expected.shape
        assert size(region) == expected.size


def test_a_scalar_is_one_element() -> None:
    assert whole(()) == ()
    assert size(()) == 1
    assert intersect((), ()) == ()
    assert missing((), []) == [()]
    assert missing((), [()]) == []


def test_whole_covers_the_shape() -> None:
    assert whole((2, 3)) == ((0, 2), (0, 3))
    assert missing(whole((2, 3)), [((0, 1), (0, 3)), ((1, 2), (0, 3))]) == []
