"""Equation 4: one threshold e of dropped energy for all layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from lrexport.lowrank.eligibility.factorisable import Factorisable
from lrexport.lowrank.factors.decompose import SVDNetwork
from lrexport.lowrank.factors.truncation import Selection, Truncation, Truncations
from lrexport.lowrank.selection.costs import dense_layer, in_order, pair_cost, plan_layer
from lrexport.lowrank.selection.least_loss import SLOW
from lrexport.lowrank.selection.predicted_latency import LayerLatency, NetworkLatency
from lrexport.plan import Dense, Pair, Plan, Scheme


def at_threshold(
    svd: SVDNetwork, truncated: Truncations, threshold: float, latency: NetworkLatency | None = None
) -> Selection:
    """Equation 4: in each layer the smallest rank ≥ 1 that drops at most ``threshold`` of the energy.

    Of several schemes the one with the fewest MACs is taken; with ``latency`` the fastest, with its rank rounded up to the
    target's grain. A layer whose pair is not cheaper, in MACs or on the target, stays dense.
    """
    plan = Plan(svd.dense)
    for name, layer in svd.layers.items():
        plan[name] = layer_at_threshold(layer, truncated[name], threshold, latency.layers[name] if latency else None)
    return Selection(in_order(svd, plan), threshold, (*svd.notes, *_warnings(plan, threshold)), truncated)


def layer_at_threshold(
    layer: Factorisable, truncated: Mapping[Scheme, Truncation], threshold: float, latency: LayerLatency | None
) -> Pair | Dense:
    """One layer's entry by :func:`at_threshold`."""
    ranks = {scheme: _rank_for(truncation, threshold) for scheme, truncation in truncated.items()}
    if latency is None:
        scheme = min(ranks, key=lambda scheme: pair_cost(layer, scheme, ranks[scheme], "macs"))
    else:
        rounded = {scheme: latency.round_up(scheme, rank) for scheme, rank in ranks.items()}
        ranks = {scheme: rank for scheme, rank in rounded.items() if rank is not None}
        if not ranks:
            return dense_layer(layer, "slow", SLOW)
        scheme = min(ranks, key=lambda scheme: latency.gaining[scheme][ranks[scheme]])
    dropped = float(truncated[scheme].energy_dropped[ranks[scheme]])
    return plan_layer(layer, ranks[scheme], 1 - dropped, scheme)


def _rank_for(truncation: Truncation, threshold: float) -> int:
    return max(1, int((truncation.energy_dropped > threshold).sum()))


def steps_of(truncated: Iterable[Truncation]) -> NDArray[np.float64]:
    """The thresholds at which a rank changes, rising from 0."""
    steps: NDArray[np.float64] = np.unique(np.concatenate([[0.0], *(each.energy_dropped.numpy() for each in truncated)]))
    return steps


def first_true(last: int, holds: Callable[[int], bool]) -> int:
    """The smallest of 0 … ``last`` for which the monotonic ``holds`` is true; ``last`` if it never is."""
    low, high = 0, last
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


def _warnings(plan: Plan, threshold: float) -> tuple[str, ...]:
    if threshold < 1:
        return ()
    count = sum(isinstance(layer, Pair) for layer in plan.values())
    return (f"the threshold would prune everything, so rank 1 was kept in {count} layers",)
