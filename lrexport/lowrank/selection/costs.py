"""The costs of a plan: MACs and parameters of the folded network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from lrexport.lowrank.eligibility.factorisable import Factorisable, SchemeFacts
from lrexport.lowrank.factors.decompose import SVDNetwork
from lrexport.plan import Dense, DenseKind, Pair, Plan, Scheme
from lrexport.units import format_count

Cost = Literal["macs", "params"]


@dataclass(frozen=True)
class _Counted:
    """One kind of cost: its name in messages, and the costs of layers, of pairs and of the rest of a network."""

    name: str
    dense: Callable[[Factorisable | Dense], int]
    pair: Callable[[Pair], int]
    at_rank: Callable[[Factorisable, SchemeFacts, int], int]
    other: Callable[[SVDNetwork], int]


_COSTS: Mapping[Cost, _Counted] = {
    "macs": _Counted(
        "MACs",
        dense=lambda layer: layer.dense_macs,
        pair=lambda pair: pair.macs,
        at_rank=lambda _, facts, rank: rank * facts.macs_per_rank,
        other=lambda svd: svd.other_macs,
    ),
    "params": _Counted(
        "parameters",
        dense=lambda layer: layer.dense_params,
        pair=lambda pair: pair.params,
        at_rank=lambda layer, facts, rank: rank * facts.params_per_rank + layer.bias_params,
        other=lambda svd: svd.other_params,
    ),
}


def cost_name(cost: Cost) -> str:
    """The name of a cost in messages."""
    return _COSTS[cost].name


def pair_cost(layer: Factorisable, scheme: Scheme, rank: int, cost: Cost) -> int:
    """Cost of a layer's pair at one rank; the bias counts as a parameter."""
    return _COSTS[cost].at_rank(layer, layer.schemes[scheme], rank)


def dense_cost(layer: Factorisable | Dense, cost: Cost) -> int:
    """Cost of the dense layer."""
    return _COSTS[cost].dense(layer)


def plan_macs(svd: SVDNetwork, plan: Plan) -> int:
    """MACs of the folded network for one input."""
    return plan_cost(svd, plan, "macs")


def plan_cost(svd: SVDNetwork, plan: Plan, cost: Cost) -> int:
    """Cost of the whole folded network, for one input."""
    return other_cost(svd, cost) + sum(planned_cost(layer, cost) for layer in plan.values())


def planned_cost(layer: Pair | Dense, cost: Cost) -> int:
    """Cost of one layer by its entry in a plan."""
    return dense_cost(layer, cost) if isinstance(layer, Dense) else _COSTS[cost].pair(layer)


def whole_cost(svd: SVDNetwork, cost: Cost) -> int:
    """Cost of the whole dense network."""
    factorised = sum(dense_cost(layer, cost) for layer in svd.layers.values())
    return other_cost(svd, cost) + factorised + sum(dense_cost(layer, cost) for layer in svd.dense.values())


def other_cost(svd: SVDNetwork, cost: Cost) -> int:
    """Cost of everything outside of the layers, which no plan changes: attention's products, BatchNorm's parameters."""
    return _COSTS[cost].other(svd)


def plan_layer(
    layer: Factorisable, rank: int, energy_kept: float, scheme: Scheme | None = None, even_if_costly: bool = False
) -> Pair | Dense:
    """The entry for one layer at one rank; dense if the pair costs at least as many MACs as the layer."""
    scheme = scheme or layer.scheme
    macs = pair_cost(layer, scheme, rank, "macs")
    if macs >= layer.dense_macs and not even_if_costly:
        pair = f"{'an' if scheme[0] == 'i' else 'a'} {scheme} pair of rank {rank} costs {format_count(macs)} MACs"
        return dense_layer(layer, "costly", f"{pair}, the layer {format_count(layer.dense_macs)}")
    return Pair(
        scheme=scheme,
        rank=rank,
        full_rank=layer.schemes[scheme].full_rank,
        energy_kept=energy_kept,
        dense_macs=layer.dense_macs,
        macs=macs,
        dense_params=layer.dense_params,
        params=pair_cost(layer, scheme, rank, "params"),
        shape=layer.shape,
    )


def dense_layer(layer: Factorisable, kind: DenseKind, reason: str) -> Dense:
    """The entry for a layer that could be factorised but stays dense."""
    macs, params = layer.dense_macs, layer.dense_params
    return Dense(kind=kind, reason=reason, dense_macs=macs, dense_params=params, shape=layer.shape)


def in_order(svd: SVDNetwork, plan: Plan) -> Plan:
    """The plan with its layers in the order of the network."""
    names = [name for name, _ in svd.network.named_modules(remove_duplicate=False) if name in plan]
    return Plan({name: plan[name] for name in names})
