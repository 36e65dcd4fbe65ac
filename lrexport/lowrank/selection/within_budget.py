"""The best plan within a budget of MACs or parameters."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lrexport.errors import UsageError
from lrexport.lowrank.factors.decompose import SVDNetwork
from lrexport.lowrank.factors.truncation import Selection, Truncations
from lrexport.lowrank.selection.costs import (
    Cost,
    cost_name,
    dense_cost,
    in_order,
    other_cost,
    plan_cost,
    planned_cost,
    whole_cost,
)
from lrexport.lowrank.selection.least_loss import chosen_entry, costed_options, least_loss
from lrexport.lowrank.selection.predicted_latency import NetworkLatency
from lrexport.lowrank.selection.problem import Rule, check_rule
from lrexport.lowrank.selection.threshold import at_threshold, layer_at_threshold, steps_of
from lrexport.plan import Plan
from lrexport.units import format_count, format_percent


def within(
    svd: SVDNetwork,
    truncated: Truncations,
    cost: Cost,
    budget: float,
    rule: Rule = "global",
    latency: NetworkLatency | None = None,
    multiple: int = 1,
) -> Selection:
    """The best plan with at most ``budget`` MACs or parameters in all.

    By the rule "global", ranks are multiples as is_multiple says, unless there are latencies.

    With ``latency`` only pairs on the target's grain that are faster than their layer are considered; if these cannot meet
    the budget, all pairs, with a warning. Raises UsageError for an unreachable budget, with the least that can be reached.
    """
    check_rule(rule)
    if rule == "threshold":
        return _least_threshold(svd, truncated, cost, budget, latency)
    options = {
        name: costed_options(layer, truncated[name], cost, latency.layers[name] if latency else None, multiple)
        for name, layer in svd.layers.items()
    }
    fixed = other_cost(svd, cost) + sum(dense_cost(layer, cost) for layer in svd.dense.values())
    least = fixed + sum(min(choice.cost for choice in choices) for choices in options.values())
    if least > budget and latency is not None:
        warning = (
            "pairs that are faster than their layer on the target cannot meet the budget, so slower pairs are used as well"
        )
        selection = within(svd, truncated, cost, budget, rule)
        return replace(selection, warnings=(*selection.warnings, warning))
    if least > budget:
        raise _out_of_reach(svd, cost, budget, least)
    return least_loss(svd, truncated, options, budget - fixed)


def smallest(svd: SVDNetwork, truncated: Truncations, cost: Cost) -> Selection:
    """The cheapest plan: rank 1 in every layer where that is cheaper than the layer."""
    plan = Plan(svd.dense)
    for name, layer in svd.layers.items():
        choice = min(costed_options(layer, truncated[name], cost), key=lambda choice: choice.cost)
        plan[name] = chosen_entry(layer, truncated[name], choice)
    return Selection(in_order(svd, plan), None, svd.notes, truncated)


def _least_threshold(
    svd: SVDNetwork, truncated: Truncations, cost: Cost, budget: float, latency: NetworkLatency | None
) -> Selection:
    """The plan of the smallest threshold within ``budget``. Raises UsageError as :func:`within`.

    Cost can also rise with the threshold, because the scheme with the fewest MACs, or the fastest, may have more parameters
    than the scheme before. So the cost of every step is computed, layer by layer.
    """
    steps = steps_of(truncation for schemes in truncated.values() for truncation in schemes.values())
    costs = np.full(len(steps), plan_cost(svd, Plan(svd.dense), cost))
    for name, layer in svd.layers.items():
        own, times = steps_of(truncated[name].values()), latency.layers[name] if latency else None
        prices = [planned_cost(layer_at_threshold(layer, truncated[name], float(step), times), cost) for step in own]
        costs += np.array(prices)[np.searchsorted(own, steps, side="right") - 1]
    within = np.flatnonzero(costs <= budget)
    if not len(within):
        raise _out_of_reach(svd, cost, budget, float(costs.min()))
    return at_threshold(svd, truncated, float(steps[within[0]]), latency)


def _out_of_reach(svd: SVDNetwork, cost: Cost, budget: float, least: float) -> UsageError:
    whole, name = whole_cost(svd, cost), cost_name(cost)
    hint = f"The smallest plan, rank 1 in every layer, has {format_percent(least / whole)} of {format_count(whole)}."
    place, layer = max(svd.dense.items(), key=lambda item: dense_cost(item[1], cost), default=("", None))
    if layer is not None and (own := dense_cost(layer, cost)):
        hint += f" The largest layer that stays dense is {place}, with {format_count(own)}: {layer.reason}."
    return UsageError(f"{format_percent(budget / whole)} of the {name} is out of reach", hint)
