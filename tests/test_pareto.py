from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lrexport.pareto import pareto_front

_POINT = st.tuples(st.integers(0, 6).map(float), st.integers(0, 6).map(float))


@given(st.lists(_POINT, max_size=12))
def test_the_front_is_what_no_other_point_beats(points: list[tuple[float, float]]) -> None:
    def beaten(index: int) -> bool:
        cost, accuracy = points[index]
        return any(
            c <= cost and a >= accuracy and ((c, a) != (cost, accuracy) or other < index)
            for other, (c, a) in enumerate(points)
            if other != index
        )

    front = pareto_front(points)
    assert sorted(front) == [index for index in range(len(points)) if not beaten(index)]
    assert [points[index][0] for index in front] == sorted(points[index][0] for index in front)


def test_a_network_without_a_figure_is_never_on_the_front() -> None:
    assert pareto_front([(float("nan"), 0.9), (1.0, float("nan")), (2.0, 0.5)]) == [2]
