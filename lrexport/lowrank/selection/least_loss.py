"""The global rule: scheme and rank of all layers are chosen jointly, for the least total loss within a budget."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lrexport.lowrank.eligibility.factorisable import Factorisable
from lrexport.lowrank.factors.decompose import SVDNetwork
from lrexport.lowrank.factors.truncation import Selection, Truncation, Truncations
from lrexport.lowrank.selection import knapsack
from lrexport.lowrank.selection.costs import Cost, dense_cost, dense_layer, in_order, pair_cost, plan_layer
from lrexport.lowrank.selection.multiples import is_multiple
from lrexport.lowrank.selection.predicted_latency import LayerLatency
from lrexport.plan import Dense, Pair, Plan, Scheme

# Without effects a layer's loss is its share of energy dropped to this power, between the energy (1) and its root (0.5).
# Chosen on held-out training images of two networks (benchmarks/training_free.py).
_LOSS_POWER = 0.75
_CHOSEN = "the budget is better spent on other layers"
SLOW = "no pair is faster on the target"


@dataclass(frozen=True)
class LayerOption:
    """An option of one layer; scheme None is dense."""

    scheme: Scheme | None
    rank: int
    loss: float
    cost: float


def layer_options(
    truncated: Mapping[Scheme, Truncation], dense: float, pairs: Mapping[Scheme, Mapping[int, float]]
) -> list[LayerOption]:
    """The options of a layer: dense at the price ``dense``, and ``pairs``, by scheme, rank and price."""
    made = [
        LayerOption(scheme, rank, _loss(truncated[scheme], rank), price)
        for scheme, prices in pairs.items()
        if scheme in truncated
        for rank, price in prices.items()
    ]
    return [LayerOption(None, 0, 0.0, dense), *made]


def _loss(truncation: Truncation, rank: int) -> float:
    """The loss of a layer at a rank: by energy alone, or by its effect, whose root misleads less where much is dropped."""
    share = float(truncation.energy_dropped[rank])
    return share**_LOSS_POWER if truncation.effect is None else share * math.sqrt(truncation.effect)


def costed_options(
    layer: Factorisable,
    truncated: Mapping[Scheme, Truncation],
    cost: Cost,
    latency: LayerLatency | None = None,
    multiple: int = 1,
) -> list[LayerOption]:
    """Dense, and every pair that costs less than the layer, also in MACs; with ``latency`` only pairs that are faster.

    Else ranks are multiples, as :func:`is_multiple` says.
    """
    dense, pairs = dense_cost(layer, cost), dict[Scheme, dict[int, float]]()
    for scheme, truncation in truncated.items():
        prices = pairs.setdefault(scheme, {})
        for rank in range(1, len(truncation.energy_dropped)) if latency is None else latency.gaining.get(scheme, ()):
            price = pair_cost(layer, scheme, rank, cost)
            if price >= dense or pair_cost(layer, scheme, rank, "macs") >= layer.dense_macs:
                break
            if latency is not None or is_multiple(rank, multiple):
                prices[rank] = price
    return layer_options(truncated, dense, pairs)


def chosen_entry(
    layer: Factorisable, truncated: Mapping[Scheme, Truncation], choice: LayerOption, slow: bool = False
) -> Pair | Dense:
    """The plan's entry for a choice; ``slow``: the layer had no option but to stay dense."""
    if choice.scheme is None:
        return dense_layer(layer, "slow", SLOW) if slow else dense_layer(layer, "chosen", _CHOSEN)
    return plan_layer(layer, choice.rank, 1 - float(truncated[choice.scheme].energy_dropped[choice.rank]), choice.scheme)


def least_loss(
    svd: SVDNetwork, truncated: Truncations, options: Mapping[str, list[LayerOption]], budget: float
) -> Selection:
    """The plan of least total loss whose factorisable layers cost at most ``budget``."""
    arrays = [
        knapsack.Options(np.array([choice.loss for choice in choices]), np.array([float(choice.cost) for choice in choices]))
        for choices in options.values()
    ]
    solution = knapsack.minimise(arrays, budget)
    plan = Plan(svd.dense)
    for (name, choices), index in zip(options.items(), solution.chosen, strict=True):
        plan[name] = chosen_entry(svd.layers[name], truncated[name], choices[index], len(choices) == 1)
    warnings = () if solution.optimal else ("the search was limited: a slightly better plan may exist",)
    return Selection(in_order(svd, plan), None, (*svd.notes, *warnings), truncated)
