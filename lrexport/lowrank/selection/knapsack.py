"""The exact least total loss within a budget, with one option for every layer: the multiple-choice knapsack problem.

Source: Kellerer, Pferschy, Pisinger, "Knapsack Problems" (2004), chapter 11. The linear relaxation by convex hulls gives a
bound and a first solution, which exchanges between two layers improve. Options and partial solutions that cannot beat it
are dropped, and the others are enumerated.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
# Partial solutions kept at once. Real networks need hundreds; beyond this only the best are kept, and `optimal` is False.
_MOST_STATES = 100_000
# A first search with so few finds a good solution, with which the full search keeps far fewer.
_FEW_STATES = 200
# Smaller differences of losses, relative to the total, are rounding.
_RELATIVE_ZERO = 1e-12
# A budget that is a difference of costs is rounded: the cheapest choice fits into what it costs.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Options:
    """The options of one layer: losses and costs, (n,) each; costs are not negative."""

    losses: Floats
    costs: Floats


@dataclass(frozen=True)
class Solution:
    """The chosen option of every layer, their total loss and cost, and whether the loss is proven to be the least."""

    chosen: tuple[int, ...]
    loss: float
    cost: float
    optimal: bool


def least_cost(layers: Sequence[Options]) -> float:
    """The smallest feasible budget."""
    return float(sum(layer.costs.min() for layer in layers))


def minimise(layers: Sequence[Options], budget: float) -> Solution:
    """The choice of least total loss with total cost ≤ ``budget``. Raises ValueError if no choice is cheap enough."""
    least = least_cost(layers)
    if least > budget and not math.isclose(least, budget, rel_tol=_ROUNDING):
        raise ValueError(f"the cheapest choice costs {least}, more than {budget}")
    budget = max(budget, least)
    kept = [_undominated(layer) for layer in layers]
    own = [Options(layer.losses[index], layer.costs[index]) for layer, index in zip(layers, kept, strict=True)]
    price, picks = _relax(own, budget)
    for most in (_FEW_STATES, _MOST_STATES):
        picks, optimal = _enumerate(own, budget, price, _exchange(own, budget, picks), most)
        if optimal:
            break
    chosen = tuple(int(index[pick]) for index, pick in zip(kept, picks, strict=True))
    loss, cost = _totals(layers, chosen)
    return Solution(chosen, loss, cost, optimal)


def _totals(layers: Sequence[Options], chosen: Sequence[int]) -> tuple[float, float]:
    pairs = list(zip(layers, chosen, strict=True))
    return float(sum(layer.losses[i] for layer, i in pairs)), float(sum(layer.costs[i] for layer, i in pairs))


def _undominated(layer: Options) -> NDArray[np.intp]:
    """Indices of the options that lose less than all cheaper ones, by rising cost."""
    order = np.lexsort((layer.losses, layer.costs))
    losses = layer.losses[order]
    before = np.concatenate([[np.inf], np.minimum.accumulate(losses)[:-1]])
    return order[losses < before]


def _hull(layer: Options) -> list[int]:
    """The options on the lower convex hull, by rising cost."""
    hull: list[int] = []
    for index in range(len(layer.costs)):
        while len(hull) > 1 and _slope(layer, hull[-2], hull[-1]) <= _slope(layer, hull[-1], index):
            hull.pop()
        hull.append(index)
    return hull


def _slope(layer: Options, here: int, there: int) -> float:
    """Loss saved per unit of cost."""
    return float((layer.losses[here] - layer.losses[there]) / (layer.costs[there] - layer.costs[here]))


def _relax(layers: Sequence[Options], budget: float) -> tuple[float, list[int]]:
    """The price of cost at the relaxation's optimum, and the choice after all steps along the hulls that fit, best first."""
    hulls = [_hull(layer) for layer in layers]
    steps = [
        (_slope(layer, here, there), position, there)
        for position, (layer, hull) in enumerate(zip(layers, hulls, strict=True))
        for here, there in itertools.pairwise(hull)
    ]
    steps.sort(key=lambda step: (-step[0], step[1], step[2]))
    picks = [0] * len(layers)
    cost = sum(float(layer.costs[0]) for layer in layers)
    price, stuck = 0.0, set[int]()
    for slope, position, there in steps:
        layer = layers[position]
        more = float(layer.costs[there] - layer.costs[picks[position]])
        if position in stuck or cost + more > budget:
            price = price or slope  # the first step that does not fit
            stuck.add(position)
            continue
        cost, picks[position] = cost + more, there
    return price, picks


def _exchange(layers: Sequence[Options], budget: float, first: list[int]) -> list[int]:
    """``first`` improved by changing two layers at a time, as long as that reduces the loss."""
    picks = list(first)
    if not layers:
        return picks
    owner = np.concatenate([np.full(len(layer.costs), position) for position, layer in enumerate(layers)])
    option = np.concatenate([np.arange(len(layer.costs)) for layer in layers])
    costs, losses = (np.concatenate([getattr(layer, name) for layer in layers]) for name in ("costs", "losses"))
    while True:
        loss, cost = _totals(layers, picks)
        current = np.array([(layer.costs[pick], layer.losses[pick]) for layer, pick in zip(layers, picks, strict=True)])
        more, change = costs - current[owner, 0], losses - current[owner, 1]
        # For each option, the best partner that still fits the budget; partners in the same layer are skipped.
        order = np.argsort(more, kind="stable")
        gains = np.minimum.accumulate(change[order])
        best = order[np.maximum.accumulate(np.where(change[order] == gains, np.arange(len(order)), 0))]
        fitting = np.searchsorted(more[order], budget - cost - more, side="right") - 1
        partner = best[fitting.clip(0)]
        together = np.where((fitting >= 0) & (owner[partner] != owner), change + change[partner], np.inf)
        index = int(together.argmin())
        if not together[index] < -_RELATIVE_ZERO * max(1.0, loss):
            return picks
        for each in (index, int(partner[index])):
            picks[owner[each]] = int(option[each])


def _enumerate(
    layers: Sequence[Options], budget: float, price: float, first: list[int], most: int
) -> tuple[list[int], bool]:
    """The best choice, and whether it is proven, by enumerating partial choices that could still beat the best known one.

    At most ``most`` partial choices are kept at once.
    """
    # An option's gap to its layer's best at this price; a choice loses at least the bound plus its gaps.
    priced = [layer.losses + price * layer.costs for layer in layers]
    gaps = [value - value.min() for value in priced]
    bound = sum(float(value.min()) for value in priced) - price * budget
    best_loss, best = _totals(layers, first)[0], list(first)
    slack = _RELATIVE_ZERO * max(1.0, abs(best_loss))
    room = best_loss - bound - slack
    useful = [np.flatnonzero(gap <= room) for gap in gaps]
    # Layers with the most options come last, which keeps the number of states small until then.
    order = sorted(range(len(layers)), key=lambda position: len(useful[position]))
    rest = float(sum(layer.costs.min() for layer in layers))
    costs, losses, gap = np.zeros(1), np.zeros(1), np.zeros(1)
    trail: list[tuple[NDArray[np.intp], NDArray[np.intp]]] = []
    optimal = True
    for position in order:
        layer, options = layers[position], useful[position]
        if not len(options):  # even the best options of all layers together do not beat the best known choice
            return best, True
        rest -= float(layer.costs.min())
        added = (layer.costs[options], layer.losses[options], gaps[position][options])
        grid = (state[:, None] + more for state, more in zip((costs, losses, gap), added, strict=True))
        costs, losses, gap = (part.ravel() for part in grid)
        alive = np.flatnonzero((gap <= room) & (costs + rest <= budget))
        alive = alive[_pareto(costs[alive], losses[alive])]
        if len(alive) > most:
            alive, optimal = np.sort(alive[np.argsort(gap[alive], kind="stable")[:most]]), False
        costs, losses, gap = costs[alive], losses[alive], gap[alive]
        trail.append((alive // len(options), options[alive % len(options)]))
        if not len(alive):
            return best, optimal
    winner = int(losses.argmin())
    if losses[winner] < best_loss:
        for position, (parent, option) in zip(reversed(order), reversed(trail), strict=True):
            best[position], winner = int(option[winner]), int(parent[winner])
    return best, optimal


def _pareto(costs: Floats, losses: Floats) -> NDArray[np.intp]:
    """Indices of the states on the Pareto front of cost and loss."""
    order = np.lexsort((losses, costs))
    ranked = losses[order]
    before = np.concatenate([[np.inf], np.minimum.accumulate(ranked)[:-1]])
    return order[ranked < before]
