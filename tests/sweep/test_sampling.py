from __future__ import annotations

import optuna
import pytest

from lrexport.sweep.sampling import Sampler, radical_inverse, spread_point, suggest
from lrexport.sweep.space import Point, parse_space

PLANE = parse_space(["macs=0.2..0.8", "sparsity-strength=0.01..0.3:log", "scheme=spatial,channel,auto"])


def study(space, seed: int = 0) -> optuna.Study:
    return optuna.create_study(directions=["maximize", "minimize"], sampler=Sampler(space, seed))


def points(found: optuna.Study, space, count: int) -> list[Point]:
    """Trials one after the other, with figures that depend on the point alone."""
    made: list[Point] = []
    for _ in range(count):
        trial = found.ask()
        made.append({dimension.name: suggest(trial, dimension) for dimension in space})
        macs = made[-1].get("macs", 0.5)
        found.tell(trial, [1 - (1 - macs) ** 2, macs])
    return made


def test_digits_are_turned_around() -> None:
    assert [radical_inverse(index, 2) for index in range(5)] == [0, 1 / 2, 1 / 4, 3 / 4, 1 / 8]
    assert [radical_inverse(index, 3) for index in range(4)] == pytest.approx([0, 1 / 3, 2 / 3, 1 / 9])


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("power", [1, 2, 3, 4])
def test_any_power_of_two_of_trials_has_one_in_every_equal_part_of_a_range(power: int, seed: int) -> None:
    space, count = parse_space(["orthogonality=0..1"]), 2**power
    found = [float(spread_point(space, index, seed)["orthogonality"]) for index in range(count)]
    gaps = [later - earlier for earlier, later in zip(sorted(found), sorted(found)[1:], strict=False)]
    assert gaps == pytest.approx([1 / count] * (count - 1))


def test_one_dimension_is_spread_to_the_end() -> None:
    space = parse_space(["macs=0.2..0.8"])
    assert points(study(space), space, 16) == [spread_point(space, index, 0) for index in range(16)]


def test_the_same_seed_gives_the_same_trials_and_another_one_others() -> None:
    first, again, other = (points(study(PLANE, seed), PLANE, 14) for seed in (3, 3, 4))
    assert first == again
    assert first[:10] != other[:10]
    assert len({tuple(point.values()) for point in first}) == 14


def test_every_point_lies_in_the_space_before_and_after_tpe_begins() -> None:
    for point in points(study(PLANE), PLANE, 14):
        assert 0.2 <= point["macs"] <= 0.8
        assert 0.01 <= point["sparsity_strength"] <= 0.3
        assert point["scheme"] in ("spatial", "channel", "auto")


@pytest.mark.parametrize(
    "texts", [["macs=0.2,0.4,0.6"], ["macs=0.2..0.8:step=0.2", "scheme=spatial,channel,auto", "svd-epochs=1..2"]]
)
def test_a_finite_space_is_gone_through_without_trying_a_point_twice(texts: list[str]) -> None:
    space = parse_space(texts)
    count = {1: 3, 3: 24}[len(texts)]
    found = points(study(space), space, count)
    assert len({tuple(point.values()) for point in found}) == count
