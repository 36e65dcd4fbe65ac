"""MACs of an Einstein summation, for both the torch network and the exported graph."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod


def einsum_macs(equation: str, shapes: Sequence[tuple[int, ...]]) -> int | None:
    """One MAC for every combination of indices of two operands; None if unknown, as for three operands."""
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    if len(terms) != 2 or len(shapes) != 2:
        return None
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, shapes, strict=True):
        before, ellipsis, after = term.partition("...")
        spread = len(shape) - len(before) - len(after)
        if spread < 0 or (spread and not ellipsis):
            return None
        # Axes under an ellipsis are numbered from the right, because they broadcast that way.
        indices = [*before, *(str(axis) for axis in reversed(range(spread))), *after]
        for index, size in zip(indices, shape, strict=True):
            sizes[index] = max(size, sizes.get(index, 0))
    return None if 0 in sizes.values() else prod(sizes.values())
