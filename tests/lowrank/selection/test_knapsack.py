"""The least loss within a budget, against trying everything and against HiGHS."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrexport.lowrank.selection.knapsack import Options, least_cost, minimise


def by_trying(layers: list[Options], budget: float) -> float:
    best = np.inf
    for choice in itertools.product(*(range(len(layer.costs)) for layer in layers)):
        if sum(layer.costs[i] for layer, i in zip(layers, choice, strict=True)) <= budget:
            best = min(best, sum(layer.losses[i] for layer, i in zip(layers, choice, strict=True)))
    return best


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[Options], float]:
    """Costs and losses from a few values each, so that ties and dominated options are common."""
    layers = []
    for _ in range(draw(st.integers(1, 5))):
        count = draw(st.integers(1, 5))
        costs = draw(st.lists(st.integers(0, 12), min_size=count, max_size=count))
        losses = draw(st.lists(st.integers(0, 20), min_size=count, max_size=count))
        layers.append(Options(np.array(losses) / 7, np.array(costs, float)))
    least, most = least_cost(layers), sum(float(layer.costs.max()) for layer in layers)
    return layers, least + draw(st.floats(0, 1)) * (most - least)


@settings(max_examples=400, deadline=None)
@given(problems())
def test_no_other_choice_within_the_budget_loses_less(problem: tuple[list[Options], float]) -> None:
    layers, budget = problem
    found = minimise(layers, budget)
    assert found.optimal
    assert found.cost <= budget
    assert found.loss == pytest.approx(by_trying(layers, budget), abs=1e-9)
    pairs = list(zip(layers, found.chosen, strict=True))
    assert found.loss == pytest.approx(sum(layer.losses[i] for layer, i in pairs))
    assert found.cost == pytest.approx(sum(layer.costs[i] for layer, i in pairs))


def by_highs(layers: list[Options], budget: float) -> float:
    """The least loss by scipy's solver for integer programs: a variable for each option, those of a layer add up to 1."""
    losses, costs = (np.concatenate([getattr(layer, part) for layer in layers]) for part in ("losses", "costs"))
    owner = np.repeat(np.arange(len(layers)), [len(layer.costs) for layer in layers])
    from scipy.optimize import Bounds, LinearConstraint, milp  # slow to import, and used here alone

    one_each = LinearConstraint((owner == np.arange(len(layers))[:, None]).astype(float), 1, 1)
    within = LinearConstraint(costs[None], -np.inf, budget)
    answer = milp(
        losses,
        integrality=np.ones(len(losses)),
        bounds=Bounds(0, 1),
        constraints=[one_each, within],
        options={"mip_rel_gap": 0},
    )
    assert answer.success, answer.message
    return float(losses @ answer.x.round())


@st.composite
def larger_problems(draw: st.DrawFn) -> tuple[list[Options], float]:
    """Too many choices to try them all; whole costs and budgets, which HiGHS's tolerance does not blur."""
    layers = []
    for _ in range(draw(st.integers(2, 15))):
        count = draw(st.integers(1, 12))
        costs = draw(st.lists(st.integers(0, 300), min_size=count, max_size=count))
        losses = draw(st.lists(st.integers(0, 1000), min_size=count, max_size=count))
        layers.append(Options(np.array(losses) / 7, np.array(costs, float)))
    least, most = least_cost(layers), sum(float(layer.costs.max()) for layer in layers)
    return layers, float(draw(st.integers(int(least), int(most))))


@settings(max_examples=60, deadline=None)
@given(larger_problems())
def test_the_optimum_is_that_of_highs(problem: tuple[list[Options], float]) -> None:
    layers, budget = problem
    solution = minimise(layers, budget)
    assert solution.optimal
    assert solution.cost <= budget
    assert solution.loss == pytest.approx(by_highs(layers, budget), abs=1e-6)


def network_like(layers: int, ranks: int, seed: int) -> list[Options]:
    """Convex losses that fall with rank, as singular values give them, at MACs per rank of many sizes."""
    generator = np.random.default_rng(seed)
    made = []
    for _ in range(layers):
        count = int(generator.integers(ranks // 4, ranks))
        energy = np.sort(generator.exponential(size=count) ** 3)[::-1]
        tail = np.append(energy[::-1].cumsum()[::-1], 0.0) / energy.sum()
        per_rank = int(generator.integers(1_000, 40_000))
        made.append(Options(tail[1:], per_rank * np.arange(1, count + 1, dtype=float)))
    return made


@pytest.mark.parametrize("seed", range(5))
def test_a_problem_of_a_real_network_s_size_is_solved_to_the_end_and_leaves_no_room_for_one_more_rank(seed: int) -> None:
    layers = network_like(160, 200, seed)
    budget = 0.4 * sum(float(layer.costs.max()) for layer in layers)
    found = minimise(layers, budget)
    assert found.optimal
    spare = budget - found.cost
    assert spare >= 0
    for layer, index in zip(layers, found.chosen, strict=True):
        later = np.flatnonzero((layer.costs > layer.costs[index]) & (layer.losses < layer.losses[index] - 1e-12))
        assert not len(later) or (layer.costs[later] - layer.costs[index]).min() > spare


@pytest.mark.parametrize("share", [0.9, 0.7, 0.5])
def test_blocks_of_equal_layers_with_flat_spectra_that_may_stay_dense_are_solved_to_the_end(share: float) -> None:
    """A fresh ResNet-50: dense is a leap in cost from the dearest pair, so the relaxation alone is far from the best."""
    generator = np.random.default_rng(0)
    layers = []
    for size, count in ((64, 10), (128, 13), (256, 19), (512, 10)):
        for _ in range(count):
            energy = np.linspace(4, 0.01, 3 * size) * generator.uniform(0.999, 1.001, 3 * size)
            ranks = np.arange(1, int(1.4 * size))
            lost = (1 - energy.cumsum()[ranks - 1] / energy.sum()) ** 0.75
            layers.append(Options(np.append(0.0, lost), np.append(9.0 * size * size, 6.0 * size * ranks)))
    found = minimise(layers, share * sum(float(layer.costs[0]) for layer in layers))
    assert found.optimal


def test_without_layers_there_is_nothing_to_choose() -> None:
    assert minimise([], 1.0).chosen == ()


def test_a_budget_below_the_cheapest_choice_is_refused() -> None:
    layers = [Options(np.array([1.0, 0.0]), np.array([2.0, 5.0]))] * 2
    assert least_cost(layers) == 4
    with pytest.raises(ValueError, match=r"4\.0, more than 3"):
        minimise(layers, 3)


def test_a_budget_for_everything_takes_the_least_loss_of_every_layer() -> None:
    layers = [Options(np.array([1.0, 0.25, 0.5]), np.array([2.0, 5.0, 9.0]))] * 3
    assert minimise(layers, 1e9).chosen == (1, 1, 1)
