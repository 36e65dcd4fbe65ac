"""Fold: replace layers in SVD form by plain pairs, with sqrt(|s|) in both halves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lrexport.errors import InputError
from lrexport.lowrank.factors import svd_form
from lrexport.lowrank.factors.arguments import check_svd
from lrexport.lowrank.factors.decompose import SVDNetwork
from lrexport.lowrank.factors.truncation import Selection, plan_of
from lrexport.lowrank.layers.kernels import WEIGHTED, spec_of
from lrexport.lowrank.layers.pairs import put_pairs, untrained_pair
from lrexport.lowrank.layers.schemes import SCHEMES, schemes_of
from lrexport.plan import Entry, Pair, PairChoice, Plan, Scheme
from lrexport.torch_tools.copying import copy_network


@parametrize.cached()  # every access to a layer's weight composes it, which is a large product
def fold(svd: SVDNetwork, plan: Selection | Plan) -> nn.Module:
    """A new network of plain torch.nn layers: pairs for layers with a rank in the plan, composed weights for the others.

    With the Selection that select returned, pairs get the factors it was based on, which lose least on the data if there
    was any. With only a plan, ``selection.plan`` or one from a file, each pair keeps the largest |s| of its layer, which is
    optimal only without data. The network in ``svd`` is not changed. Stride, padding in every mode, dilation, groups and
    bias carry over exactly; layers that share a weight become pairs that share theirs. Raises UsageError for anything but
    a plan and a network in SVD form.
    """
    check_svd(svd)
    layers, truncations = plan_of(plan), plan.truncations if isinstance(plan, Selection) else {}
    network = copy_network(svd.network, [(each, each) for each in _left_out(svd, layers)])
    for name, facts in svd.layers.items():
        planned = layers.get(name)
        if isinstance(planned, Pair):
            layer = network.get_submodule(name)
            truncation = truncations.get(name, {}).get(planned.scheme)
            if truncation is None:
                pair = fold_layer(layer, planned.scheme, planned.rank)
            else:
                pair = build_pair(layer, planned.scheme, *truncation.factors(planned.rank))
            put_pairs(network, facts.names, planned, pair)
        else:
            layer, *tied = facts.modules(network)
            svd_form.detach(layer, tied)
    return network


def _left_out(svd: SVDNetwork, plan: Plan) -> list[Tensor]:
    """The parameters of layers that become pairs, which are not copied; without those that other modules have too."""
    pairs = [facts for name, facts in svd.layers.items() if isinstance(plan.get(name), Pair)]
    replaced = [layer for facts in pairs for layer in facts.modules(svd.network)]
    inside = {id(module) for layer in replaced for module in layer.modules()}
    others = (module for module in svd.network.modules() if id(module) not in inside)
    kept = {id(parameter) for module in others for parameter in module.parameters(recurse=False)}
    return [source for layer in replaced for source in svd_form.sources_of(layer) if id(source) not in kept]


def fold_structure(network: nn.Module, plan: Mapping[str, Entry]) -> nn.Module:
    """Put untrained pairs into the places for which the plan has ranks: the structure to load a run's weights into.

    Raises InputError if the plan does not fit the network.
    """
    modules = dict(network.named_modules(remove_duplicate=False))
    for name, planned in plan.items():
        if name not in modules:
            raise InputError(f"the plan has a layer {name!r}, which the network does not have")
        if not isinstance(planned, Pair | PairChoice):
            continue
        layer: Any = modules[name]
        _check_admitted(name, layer, planned)
        places = [place for place, other in modules.items() if isinstance(other, WEIGHTED) and other.weight is layer.weight]
        put_pairs(network, places, planned, untrained_pair(layer, planned.scheme, planned.rank))
    return network


@torch.no_grad()
def fold_layer(layer: Any, scheme: Scheme, rank: int) -> nn.Sequential:
    """The plain pair of one layer with its ``rank`` largest |s|, in every group; the layer is not changed.

    If the layer has no SVD form, or one of another scheme, its weight is decomposed by ``scheme``.
    """
    left, singular, right = svd_form.factors_by(layer, scheme)
    kept = singular.abs().topk(rank, dim=-1).indices
    scale = singular.abs().gather(-1, kept).sqrt().unsqueeze(-2)
    left, right = (side.take_along_dim(kept.unsqueeze(-2), dim=-1) * scale for side in (left, right))
    return build_pair(layer, scheme, left, right.mT)


@torch.no_grad()
def build_pair(layer: Any, scheme: Scheme, left: Tensor, right: Tensor) -> nn.Sequential:
    """The plain pair ``first``, ``second`` of a layer whose matrix is left (rows, r) @ right (r, columns).

    With g > 1 groups left is (g, rows, r) and right (g, r, columns). The factors already include the singular values. The
    pair takes stride, padding, dilation, groups, bias and mode from the layer, but not the values of its weight.
    """
    pair = untrained_pair(layer, scheme, left.shape[-1])
    weights = SCHEMES[scheme].weights(left.to(layer.weight), right.to(layer.weight), spec_of(layer))
    for half, weight in zip(pair, weights, strict=True):
        # A contiguous copy also has the default strides on axes of length 1, by which runtimes choose their kernels.
        half.weight = nn.Parameter(weight.clone(memory_format=torch.contiguous_format))
    return pair


def _check_admitted(name: str, layer: nn.Module, planned: Pair | PairChoice) -> None:
    """Raise InputError if a layer cannot have its planned pair; plans can be written by hand."""
    if not isinstance(layer, WEIGHTED):
        raise InputError(f"the plan factorises {name!r}, which is a {type(layer).__name__}")
    spec = spec_of(layer)
    if planned.scheme not in schemes_of(spec):
        known = f"It can be: {', '.join(schemes_of(spec))}."
        raise InputError(f"the plan factorises {name!r} by {planned.scheme}, which its kernel does not allow", known)
    full_rank = SCHEMES[planned.scheme].full_rank(spec)
    if planned.rank > full_rank:
        raise InputError(f"the plan gives {name!r} rank {planned.rank}; its full rank by {planned.scheme} is {full_rank}")
