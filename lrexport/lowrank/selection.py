"""Rank selection: the paper's one threshold for all layers (equation 4), or the threshold that meets a MACs budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lrexport.errors import UsageError
from lrexport.lowrank.decompose import Factorisable, SVDNetwork
from lrexport.lowrank.svd_form import factors, redecompose
from lrexport.record import DenseLayer, FactorisedLayer, Plan
from lrexport.units import format_count, format_percent


@dataclass(frozen=True)
class Selection:
    """A plan, the energy threshold that led to it, and what the user should know about it."""

    plan: Plan
    threshold: float
    warnings: tuple[str, ...] = ()


def select(svd: SVDNetwork, *, energy: float | None = None, macs: float | None = None) -> Selection:
    """Choose a rank for every layer, by exactly one of two goals.

    ``energy`` is the largest share of Σ s² that may be dropped in a layer, in [0, 1]; ``macs`` the largest share of the
    dense network's MACs, in (0, 1]. U, s, V are replaced by the exact SVD of the composed kernels first. Raises
    UsageError for a goal out of range or out of reach.
    """
    if (energy is None) == (macs is None):
        raise UsageError("give one goal: energy or macs")
    spectra = {name: _spectrum(svd, name) for name in svd.layers}
    if macs is not None:
        if not 0 < macs <= 1:
            raise UsageError(f"macs is {macs}, a share of the dense network in (0, 1] was wanted")
        energy = _threshold_for_macs(svd, spectra, macs * svd.dense_macs)
    assert energy is not None
    if not 0 <= energy <= 1:
        raise UsageError(f"energy is {energy}, a share in [0, 1] was wanted")
    plan = plan_for_threshold(svd, spectra, energy)
    return Selection(plan, energy, (*svd.notes, *_warnings(plan, energy)))


def plan_macs(svd: SVDNetwork, plan: Plan) -> int:
    """MACs of the folded network for one input."""
    return svd.other_macs + sum(
        layer.macs if isinstance(layer, FactorisedLayer) else layer.dense_macs for layer in plan.values()
    )


def plan_for_threshold(svd: SVDNetwork, spectra: Mapping[str, Tensor], threshold: float) -> Plan:
    """Equation 4: in each layer the smallest rank that drops at most ``threshold`` of the energy, and at least 1.

    A layer whose pair would cost as much as the layer itself stays dense.
    """
    plan: Plan = dict(svd.dense)
    for name, layer in svd.layers.items():
        dropped = _dropped(spectra[name])
        rank = max(1, int((dropped > threshold).sum()))
        plan[name] = plan_layer(layer, rank, 1 - float(dropped[rank]))
    return plan


def plan_layer(layer: Factorisable, rank: int, energy_kept: float) -> FactorisedLayer | DenseLayer:
    """The entry for one layer at one rank."""
    macs = rank * layer.macs_per_rank
    if macs >= layer.dense_macs:
        pair = f"a {layer.scheme} pair of rank {rank} costs {format_count(macs)} MACs"
        reason = f"{pair}, the layer {format_count(layer.dense_macs)}"
        macs, params = layer.dense_macs, layer.dense_params
        return DenseLayer(kind="costly", reason=reason, dense_macs=macs, dense_params=params, shape=layer.shape)
    return FactorisedLayer(
        scheme=layer.scheme,
        rank=rank,
        full_rank=layer.full_rank,
        energy_kept=energy_kept,
        dense_macs=layer.dense_macs,
        macs=macs,
        dense_params=layer.dense_params,
        params=rank * layer.params_per_rank + layer.bias_params,
        shape=layer.shape,
    )


def _spectrum(svd: SVDNetwork, name: str) -> Tensor:
    """Singular values of the composed kernel, descending, float64 (full_rank,); with groups the root of Σ s² over them."""
    layer = svd.network.get_submodule(name)
    redecompose(layer)
    singular = factors(layer)[1].detach().double().cpu()
    return singular if singular.ndim == 1 else singular.square().sum(0).sqrt()


def _dropped(singular: Tensor) -> Tensor:
    """Share of the energy that is lost when the first k values are kept, for k = 0 … r: (r + 1,), descending to 0."""
    energy = singular.square()
    tail = torch.cat([energy.flip(0).cumsum(0).flip(0), energy.new_zeros(1)])
    return tail / tail[0] if tail[0] > 0 else torch.zeros_like(tail)


def _threshold_for_macs(svd: SVDNetwork, spectra: Mapping[str, Tensor], budget: float) -> float:
    """The smallest threshold whose plan is within ``budget`` MACs: MACs fall as it rises, and only at these steps."""
    steps = torch.cat([torch.zeros(1, dtype=torch.float64), *(_dropped(singular) for singular in spectra.values())])
    steps = steps.unique()
    low, high = 0, len(steps) - 1
    least = plan_macs(svd, plan_for_threshold(svd, spectra, float(steps[high])))
    if least > budget:
        raise UsageError(
            f"{format_percent(budget / svd.dense_macs)} of the MACs is out of reach",
            f"The smallest plan, rank 1 in every layer, has {format_percent(least / svd.dense_macs)} of "
            f"{format_count(svd.dense_macs)}.",
        )
    while low < high:
        middle = (low + high) // 2
        if plan_macs(svd, plan_for_threshold(svd, spectra, float(steps[middle]))) <= budget:
            high = middle
        else:
            low = middle + 1
    return float(steps[low])


def _warnings(plan: Plan, threshold: float) -> tuple[str, ...]:
    if threshold < 1:
        return ()
    count = sum(isinstance(layer, FactorisedLayer) for layer in plan.values())
    return (f"the threshold would prune everything; rank 1 was kept in {count} layers",)
