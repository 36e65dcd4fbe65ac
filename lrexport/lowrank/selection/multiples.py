"""Ranks that runtimes like: multiples of what they compute channels in blocks of."""

from __future__ import annotations

_LEAST = 4  # no runtime has smaller blocks


def is_multiple(rank: int, multiple: int) -> bool:
    """Whether a rank is a multiple of ``multiple``, or if it is smaller, of the largest half, quarter … of it that fits.

    Halving ends at 4, below which every rank is one: with 16 the ranks are 1, 2, 3, 4, 8, 16, 32, 48 and so on. Blocks
    have 4, 8 or 16 channels, by processor.
    """
    step = _step(rank, multiple)
    return rank < step or rank % step == 0


def down_to_multiple(rank: int, multiple: int) -> int:
    """The largest rank of at most ``rank`` that :func:`is_multiple`."""
    step = _step(rank, multiple)
    return rank if rank < step else rank - rank % step


def _step(rank: int, multiple: int) -> int:
    while multiple > rank and multiple > _LEAST and multiple % 2 == 0:
        multiple //= 2
    return multiple
