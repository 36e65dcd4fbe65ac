"""Which of several points (cost, accuracy) no other one beats."""

from __future__ import annotations

from collections.abc import Sequence


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points (cost, accuracy) that no other point beats, cheapest first.

    A point is beaten by one that costs no more and is at least as accurate, and better in one of the two; of equal points
    the first is taken. Points with NaN are never on the front.
    """
    order = sorted((i for i, (x, y) in enumerate(points) if x == x and y == y), key=lambda i: (points[i][0], -points[i][1]))
    front: list[int] = []
    for index in order:
        if not front or points[index][1] > points[front[-1]][1]:
            front.append(index)
    return front
