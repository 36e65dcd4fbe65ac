"""Rank selection: the global optimum under a budget, and the paper's one threshold for all layers (equation 4)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lrexport.errors import UsageError
from lrexport.lowrank.eligibility.factorisable import Factorisable
from lrexport.lowrank.factors.arguments import check_share, check_svd
from lrexport.lowrank.factors.decompose import SVDNetwork
from lrexport.lowrank.factors.moments import Moments, every_scheme_of
from lrexport.lowrank.factors.truncation import Truncation, Truncations, truncations
from lrexport.lowrank.selection import knapsack
from lrexport.lowrank.selection.costs import (
    NAMES,
    Cost,
    dense_cost,
    dense_layer,
    other_cost,
    pair_cost,
    plan_cost,
    plan_layer,
    planned_cost,
    whole_cost,
)
from lrexport.lowrank.selection.predicted_latency import LayerLatency, NetworkLatency
from lrexport.plan import Dense, Pair, Plan, PlannedLatency, Scheme
from lrexport.units import format_count, format_ms, format_percent

Rule = Literal["global", "threshold"]
# The global rule's loss of a layer is its share of energy dropped to this power. Between the energy (1) and its root (0.5)
# it spares the layers that lose most; found on held-out training images of two networks (benchmarks/training_free.py).
_LOSS_POWER = 0.75
_CHOSEN = "the budget is better spent on other layers"
_SLOW = "no pair is faster on the target"


@dataclass(frozen=True)
class Selection:
    """A plan, the truncations it was chosen from, and what the user should know about it.

    ``threshold`` is equation 4's e where one e made the plan, else None; ``heldout_top1`` the accuracy before pruning,
    where the goal was about it; ``latency`` what the target says of the plan.
    """

    plan: Plan
    threshold: float | None = None
    warnings: tuple[str, ...] = ()
    truncations: Truncations = field(default_factory=dict)
    heldout_top1: float | None = None
    latency: PlannedLatency | None = None

    @property
    def has_pairs(self) -> bool:
        """Whether anything is pruned."""
        return any(isinstance(layer, Pair) for layer in self.plan.values())


def select(
    svd: SVDNetwork,
    *,
    energy: float | None = None,
    macs: float | None = None,
    params: float | None = None,
    rule: Rule = "global",
    moments: Moments | None = None,
    every_scheme: bool = False,
    latency: NetworkLatency | None = None,
) -> Selection:
    """Choose scheme and rank, or dense, for every layer by exactly one goal.

    ``energy`` is equation 4's e, the largest share of Σ s² that may be dropped in a layer, in [0, 1]; ``macs`` and
    ``params`` are the largest share of the dense network's, in (0, 1]. ``rule`` "global" minimises the sum over layers of
    the share of energy dropped, to the power of 0.75; "threshold" takes the smallest e for all layers that meets the
    budget. ``moments`` weight the energy by the data; ``every_scheme`` lets each layer have any scheme that it admits;
    by ``latency`` ranks are on the target's grain. U, s, V are replaced by the exact SVD of the composed kernels first.
    Raises UsageError for an unknown rule, and for a goal out of range or out of reach.
    """
    check_svd(svd)
    if sum(goal is not None for goal in (energy, macs, params)) != 1:
        raise UsageError("give one goal: energy, macs or params")
    for name, value in (("energy", energy), ("macs", macs), ("params", params)):
        if value is not None:
            check_share(name, value)
    if energy is not None and not 0 <= energy <= 1:
        raise UsageError(f"energy is {energy}, a share in [0, 1] was wanted")
    for name, share in (("macs", macs), ("params", params)):
        if share is not None and not 0 < share <= 1:
            raise UsageError(f"{name} is {share}, a share of the dense network in (0, 1] was wanted")
    _check_rule(rule)
    found = truncations(svd, moments, every_scheme_of(svd) if every_scheme else None)
    if energy is not None:
        return at_threshold(svd, found, energy, latency)
    cost: Cost = "macs" if macs is not None else "params"
    share = macs if macs is not None else params
    assert share is not None
    return within(svd, found, cost, share * whole_cost(svd, cost), rule, latency)


def within(
    svd: SVDNetwork,
    found: Truncations,
    cost: Cost,
    budget: float,
    rule: Rule = "global",
    latency: NetworkLatency | None = None,
) -> Selection:
    """The plan of at most ``budget`` in all, in MACs or parameters. Raises UsageError with the least that can be reached.

    With ``latency`` only pairs that are faster than their layer on the target, and than those of higher rank, are taken;
    where the budget cannot be met so, any, with a warning.
    """
    _check_rule(rule)
    if rule == "threshold":
        return _least_threshold(svd, found, cost, budget, latency)
    options = {
        name: _costed_choices(layer, found[name], cost, latency.layers[name] if latency else None)
        for name, layer in svd.layers.items()
    }
    fixed = other_cost(svd, cost) + sum(dense_cost(layer, cost) for layer in svd.dense.values())
    least = fixed + sum(min(choice.cost for choice in choices) for choices in options.values())
    if least > budget and latency is not None:
        warning = "the budget cannot be met by pairs that are faster than their layer on the target: others are there, too"
        selection = within(svd, found, cost, budget, rule)
        return replace(selection, warnings=(*selection.warnings, warning))
    if least > budget:
        raise _out_of_reach(svd, cost, budget, least)
    return _least_loss(svd, found, options, budget - fixed)


def within_latency(
    svd: SVDNetwork, found: Truncations, latency: NetworkLatency, budget: float, rule: Rule = "global"
) -> Selection:
    """The plan that is predicted to take at most ``budget`` milliseconds on the target.

    The dense network, with a warning, where no pair is faster than its layer. Raises UsageError with the least that can be
    reached.
    """
    _check_rule(rule)
    options = {name: _choices(found[name], latency.layers[name].dense, latency.layers[name].gaining) for name in svd.layers}
    if all(len(choices) == 1 for choices in options.values()):
        dense = _least_loss(svd, found, options, float("inf"))
        return replace(dense, warnings=(*dense.warnings, "no pair is faster than its layer on the target: all stay dense"))
    if latency.least > budget:
        raise UsageError(
            f"a latency of {format_ms(budget)} is out of reach",
            f"The fastest plan is predicted to take {format_ms(latency.least)}, "
            f"{format_percent(latency.least / latency.dense)} of the dense network's {format_ms(latency.dense)}.",
        )
    if rule == "threshold":  # time falls as e rises, and at 1 every layer has its fastest pair: within the budget
        steps = _steps(truncation for schemes in found.values() for truncation in schemes.values())

        def at(step: int) -> Selection:
            return at_threshold(svd, found, float(steps[step]), latency)

        return at(first_true(len(steps) - 1, lambda step: latency.of_plan(at(step).plan) <= budget))
    selection = _least_loss(svd, found, options, budget - latency.other)
    if selection.has_pairs:
        return selection
    met = f"the dense network takes {format_ms(latency.dense)}, within the {format_ms(budget)} asked for: nothing is pruned"
    return replace(selection, warnings=(*selection.warnings, met))


def _least_loss(svd: SVDNetwork, found: Truncations, options: Mapping[str, list[_Choice]], budget: float) -> Selection:
    """The options of least total loss within ``budget``, which holds for factorisable layers only."""
    arrays = [
        knapsack.Options(np.array([choice.loss for choice in choices]), np.array([float(choice.cost) for choice in choices]))
        for choices in options.values()
    ]
    solution = knapsack.minimise(arrays, budget)
    plan: Plan = dict(svd.dense)
    for (name, choices), index in zip(options.items(), solution.chosen, strict=True):
        plan[name] = _entry(svd.layers[name], found[name], choices[index], len(choices) == 1)
    warnings = () if solution.optimal else ("the search was cut short: a slightly better plan may exist",)
    return Selection(in_order(svd, plan), None, (*svd.notes, *warnings), found)


def at_threshold(svd: SVDNetwork, found: Truncations, threshold: float, latency: NetworkLatency | None = None) -> Selection:
    """Equation 4: in each layer the smallest rank that drops at most ``threshold`` of the energy, and at least 1.

    Of several schemes the one with the fewest MACs is taken; with ``latency`` the fastest, its rank rounded up where that
    is not slower. A layer whose pair would cost as much as itself, in MACs or on the target, stays dense.
    """
    plan: Plan = dict(svd.dense)
    for name, layer in svd.layers.items():
        plan[name] = _at_threshold(layer, found[name], threshold, latency.layers[name] if latency else None)
    return Selection(in_order(svd, plan), threshold, (*svd.notes, *_warnings(plan, threshold)), found)


def _at_threshold(
    layer: Factorisable, found: Mapping[Scheme, Truncation], threshold: float, latency: LayerLatency | None
) -> Pair | Dense:
    ranks = {scheme: _rank_for(truncation, threshold) for scheme, truncation in found.items()}
    if latency is None:
        scheme = min(ranks, key=lambda scheme: pair_cost(layer, scheme, ranks[scheme], "macs"))
    else:
        rounded = {scheme: latency.round_up(scheme, rank) for scheme, rank in ranks.items()}
        ranks = {scheme: rank for scheme, rank in rounded.items() if rank is not None}
        if not ranks:
            return dense_layer(layer, "slow", _SLOW)
        scheme = min(ranks, key=lambda scheme: latency.gaining[scheme][ranks[scheme]])
    dropped = float(found[scheme].energy_dropped[ranks[scheme]])
    return plan_layer(layer, ranks[scheme], 1 - dropped, scheme)


def smallest(svd: SVDNetwork, found: Truncations, cost: Cost) -> Selection:
    """The plan that costs least: rank 1 wherever that is less than the layer."""
    plan: Plan = dict(svd.dense)
    for name, layer in svd.layers.items():
        choice = min(_costed_choices(layer, found[name], cost), key=lambda choice: choice.cost)
        plan[name] = _entry(layer, found[name], choice)
    return Selection(in_order(svd, plan), None, svd.notes, found)


@dataclass(frozen=True)
class _Choice:
    """What one layer may become; no scheme is dense."""

    scheme: Scheme | None
    rank: int
    loss: float
    cost: float


def _choices(found: Mapping[Scheme, Truncation], dense: float, pairs: Mapping[Scheme, Mapping[int, float]]) -> list[_Choice]:
    """The layer as it is, at the price ``dense``, and its pairs by scheme, rank and price."""
    made = [
        _Choice(scheme, rank, float(found[scheme].energy_dropped[rank]) ** _LOSS_POWER, price)
        for scheme, prices in pairs.items()
        if scheme in found
        for rank, price in prices.items()
    ]
    return [_Choice(None, 0, 0.0, dense), *made]


def _costed_choices(
    layer: Factorisable, found: Mapping[Scheme, Truncation], cost: Cost, latency: LayerLatency | None = None
) -> list[_Choice]:
    """Every pair that costs less than the layer, in MACs too; with ``latency`` those that gain by it."""
    dense, pairs = dense_cost(layer, cost), dict[Scheme, dict[int, float]]()
    for scheme, truncation in found.items():
        prices = pairs.setdefault(scheme, {})
        for rank in range(1, len(truncation.energy_dropped)) if latency is None else latency.gaining.get(scheme, ()):
            price = pair_cost(layer, scheme, rank, cost)
            if price >= dense or pair_cost(layer, scheme, rank, "macs") >= layer.dense_macs:
                break
            prices[rank] = price
    return _choices(found, dense, pairs)


def _entry(layer: Factorisable, found: Mapping[Scheme, Truncation], choice: _Choice, slow: bool = False) -> Pair | Dense:
    if choice.scheme is None:
        return dense_layer(layer, "slow", _SLOW) if slow else dense_layer(layer, "chosen", _CHOSEN)
    return plan_layer(layer, choice.rank, 1 - float(found[choice.scheme].energy_dropped[choice.rank]), choice.scheme)


def _rank_for(truncation: Truncation, threshold: float) -> int:
    return max(1, int((truncation.energy_dropped > threshold).sum()))


def _least_threshold(
    svd: SVDNetwork, found: Truncations, cost: Cost, budget: float, latency: NetworkLatency | None
) -> Selection:
    """The smallest threshold's plan within ``budget``. Raises UsageError with the least that can be reached.

    As the threshold rises cost can rise, too: of several schemes the one with the fewest MACs, or the fastest, may have more
    parameters than the one before. So every step is looked at, layer by layer.
    """
    steps = _steps(truncation for schemes in found.values() for truncation in schemes.values())
    costs = np.full(len(steps), plan_cost(svd, dict(svd.dense), cost))
    for name, layer in svd.layers.items():
        own, times = _steps(found[name].values()), latency.layers[name] if latency else None
        prices = [planned_cost(_at_threshold(layer, found[name], float(step), times), cost) for step in own]
        costs += np.array(prices)[np.searchsorted(own, steps, side="right") - 1]
    within = np.flatnonzero(costs <= budget)
    if not len(within):
        raise _out_of_reach(svd, cost, budget, float(costs.min()))
    return at_threshold(svd, found, float(steps[within[0]]), latency)


def _steps(found: Iterable[Truncation]) -> NDArray[np.float64]:
    """The thresholds at which a rank changes, rising from 0."""
    steps: NDArray[np.float64] = np.unique(np.concatenate([[0.0], *(each.energy_dropped.numpy() for each in found)]))
    return steps


def first_true(last: int, holds: Callable[[int], bool]) -> int:
    """The smallest of 0 … ``last`` at which ``holds``, which stays true once it is; ``last`` where it never is."""
    low, high = 0, last
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


def _check_rule(rule: str) -> None:
    if rule not in get_args(Rule):
        raise UsageError(f"unknown rule {rule!r}", f"Known: {', '.join(get_args(Rule))}.")


def _out_of_reach(svd: SVDNetwork, cost: Cost, budget: float, least: float) -> UsageError:
    whole, name = whole_cost(svd, cost), NAMES[cost]
    hint = f"The smallest plan, rank 1 in every layer, has {format_percent(least / whole)} of {format_count(whole)}."
    place, layer = max(svd.dense.items(), key=lambda item: dense_cost(item[1], cost), default=("", None))
    if layer is not None and (own := dense_cost(layer, cost)):
        hint += f" The largest layer that stays dense is {place} with {format_count(own)} of them: {layer.reason}."
    return UsageError(f"{format_percent(budget / whole)} of the {name} is out of reach", hint)


def in_order(svd: SVDNetwork, plan: Plan) -> Plan:
    """Layers as they stand in the network, dense ones among the others."""
    names = [name for name, _ in svd.network.named_modules(remove_duplicate=False) if name in plan]
    return {name: plan[name] for name in names}


def _warnings(plan: Plan, threshold: float) -> tuple[str, ...]:
    if threshold < 1:
        return ()
    count = sum(isinstance(layer, Pair) for layer in plan.values())
    return (f"the threshold would prune everything; rank 1 was kept in {count} layers",)
