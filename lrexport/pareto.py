"""The Pareto front of points (cost, accuracy)."""

from __future__ import annotations

from collections.abc import Sequence


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points (cost, accuracy) that no other point beats, cheapest first.

    One point beats another if it is at least as good in both cost and accuracy and better in one. Of equal points the
    first is taken. Points with NaN are never on the front.
    """
    order = sorted((i for i, (x, y) in enumerate(points) if x == x and y == y), key=lambda i: (points[i][0], -points[i][1]))
    front: list[int] = []
    for index in order:
        if not front or points[index][1] > points[front[-1]][1]:
            front.append(index)
    return front
