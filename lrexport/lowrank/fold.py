"""Fold: replace layers in SVD form by their plain pairs, with sqrt(|s|) on either side."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import torch
from torch import nn

from lrexport.errors import InputError
from lrexport.lowrank import svd_form
from lrexport.lowrank.decompose import SVDNetwork
from lrexport.lowrank.schemes import SCHEMES
from lrexport.record import FactorisedLayer, Plan, Scheme


def fold(svd: SVDNetwork, plan: Plan) -> nn.Module:
    """A new network of plain torch.nn layers only: pairs where the plan has ranks, the composed weight elsewhere.

    The network in ``svd`` is left as it is. Stride, padding in every mode, dilation and bias carry over exactly.
    """
    network = copy.deepcopy(svd.network)
    for name, facts in svd.layers.items():
        layer, planned = network.get_submodule(name), plan.get(name)
        if not isinstance(planned, FactorisedLayer):
            svd_form.detach(layer)
            continue
        pair = fold_layer(layer, planned.scheme, planned.rank)
        for place in facts.names:
            _put(network, place, pair)
    return network


def fold_structure(network: nn.Module, plan: Plan) -> nn.Module:
    """Put untrained pairs where the plan has ranks, in place: the network that a run's weights are loaded into.

    Raises InputError where plan and network do not belong together.
    """
    modules = dict(network.named_modules(remove_duplicate=False))
    for name, planned in plan.items():
        if name not in modules:
            raise InputError(f"the plan has a layer {name!r}, the network has none of that name")
        if not isinstance(planned, FactorisedLayer):
            continue
        layer = modules[name]
        if not isinstance(layer, nn.Conv2d | nn.Linear):
            raise InputError(f"the plan factorises {name!r}, which is a {type(layer).__name__}")
        pair = _sequential(*SCHEMES[planned.scheme].pair(layer, planned.rank))
        for place in (place for place, module in modules.items() if module is layer):
            _put(network, place, pair)
    return network


@torch.no_grad()
def fold_layer(layer: Any, scheme: Scheme, rank: int) -> nn.Sequential:
    """The plain pair of one layer in SVD form, with its ``rank`` largest |s|; the layer is left as it is."""
    left, singular, right = svd_form.factors(layer)
    kept = singular.abs().topk(rank).indices
    scale = singular.abs()[kept].sqrt()
    halves = SCHEMES[scheme].weights(left[:, kept] * scale, (right[:, kept] * scale).T, layer.weight.shape)
    first, second = SCHEMES[scheme].pair(layer, rank)
    for half, weight in zip((first, second), halves, strict=True):
        half.weight = nn.Parameter(weight.contiguous())
    if layer.bias is not None:
        second.bias = nn.Parameter(layer.bias.detach().clone())
    return _sequential(first, second).train(layer.training)


def _sequential(first: nn.Module, second: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(first=first, second=second))


def _put(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, module)
