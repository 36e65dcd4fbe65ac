"""Ranks nest: those of larger blocks are also good for smaller ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrexport.lowrank.selection.multiples import down_to_multiple, is_multiple


@pytest.mark.parametrize(
    ("multiple", "ranks"),
    [
        (1, list(range(1, 41))),
        (4, [1, 2, 3, *range(4, 41, 4)]),
        (8, [1, 2, 3, 4, *range(8, 41, 8)]),
        (16, [1, 2, 3, 4, 8, 16, 32]),
        (5, [1, 2, 3, 4, *range(5, 41, 5)]),
    ],
)
def test_the_ranks_up_to_40(multiple: int, ranks: list[int]) -> None:
    assert [rank for rank in range(1, 41) if is_multiple(rank, multiple)] == ranks


@given(st.integers(1, 500), st.integers(1, 64))
def test_rounding_down_gives_the_nearest_lower_one(rank: int, multiple: int) -> None:
    down = down_to_multiple(rank, multiple)
    assert is_multiple(down, multiple)
    assert down == max(each for each in range(1, rank + 1) if is_multiple(each, multiple))


@given(st.integers(1, 500), st.sampled_from([4, 8, 16]), st.sampled_from([4, 8, 16]))
def test_ranks_of_larger_blocks_suit_smaller_ones(rank: int, one: int, other: int) -> None:
    if is_multiple(rank, max(one, other)):
        assert is_multiple(rank, min(one, other))
