"""What truncating a layer does to the network's outputs: a share of energy matters more in some layers than in others.

A detector's head decides all of its outputs, while a layer late in a residual network may lose half of its energy and
change little. Each layer is truncated alone, once, and the outputs are compared with the dense network's. That says how
layers compare where little is lost; where much is lost it may mislead, so the plan that energies alone give is compared
with the one that effects give, both repaired.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol, TypeGuard

import torch
from torch import nn

from lrexport.lowrank.factors.decompose import SVDNetwork
from lrexport.lowrank.factors.fold import fold
from lrexport.lowrank.factors.truncation import Selection, Truncation, Truncations
from lrexport.lowrank.layers.schemes import SCHEMES
from lrexport.plan import Plan, Scheme

_SHARE = 0.05  # of a layer's energy: clearly more than rounding, and far from all


class Outputs(Protocol):
    """The dense network's outputs for inputs without labels."""

    def error_of(self, network: nn.Module) -> float | None:
        """The error of a network's outputs relative to their variance; None or not finite if it is unknown."""
        ...

    def error_after_repair(self, selection: Selection) -> float | None:
        """The same for the network that is folded by a selection and repaired."""
        ...


def with_effects(svd: SVDNetwork, truncated: Truncations, outputs: Outputs) -> Truncations:
    """The truncations with the effect of each layer: the error of the network's outputs ÷ the share of energy dropped.

    Layers whose effect is unknown have the geometric mean of the others'; if none is known, the truncations are returned as
    they are.
    """
    network = fold(svd, Plan()).eval()
    effects: dict[str, float] = {}
    for name, schemes in truncated.items():
        scheme, rank = _closest(schemes)
        error = _error_with(network, name, schemes[scheme], rank, outputs) if rank else None
        if _is_known(error) and error > 0:
            effects[name] = error / float(schemes[scheme].energy_dropped[rank])
    if not effects:
        return truncated
    mean = math.exp(sum(map(math.log, effects.values())) / len(effects))
    return {
        name: {scheme: replace(each, effect=effects.get(name, mean)) for scheme, each in schemes.items()}
        for name, schemes in truncated.items()
    }


def closer(first: Selection, second: Selection, outputs: Outputs) -> Selection:
    """The selection whose repaired network follows the dense one more closely; the first if that is unknown or equal."""
    if first.plan == second.plan:
        return first
    errors = [outputs.error_after_repair(each) for each in (first, second)]
    one, other = (error if _is_known(error) else math.inf for error in errors)
    return second if other < one else first


def _is_known(error: float | None) -> TypeGuard[float]:
    return error is not None and math.isfinite(error)


@torch.no_grad()
def _error_with(network: nn.Module, name: str, truncation: Truncation, rank: int, outputs: Outputs) -> float | None:
    """The error if only layer ``name`` of the plain ``network`` is truncated; its weight is put back."""
    weight = network.get_submodule(name).weight
    assert isinstance(weight, nn.Parameter)
    before = weight.detach().clone()
    left, right = truncation.factors(rank)
    weight.copy_(SCHEMES[truncation.scheme].kernel(left @ right, truncation.spec))
    try:
        return outputs.error_of(network)
    finally:
        weight.copy_(before)


def _closest(schemes: Mapping[Scheme, Truncation]) -> tuple[Scheme, int]:
    """The scheme and rank at which the share of energy dropped is closest to 5 %; rank 0 if none drops anything."""
    best, distance = (next(iter(schemes)), 0), math.inf
    for scheme, truncation in schemes.items():
        for rank, share in enumerate(truncation.energy_dropped.tolist()):
            if rank and share > 0 and abs(math.log(share / _SHARE)) < distance:
                best, distance = (scheme, rank), abs(math.log(share / _SHARE))
    return best
