"""What a plan from a file makes of a network: its choices checked against the layers, its figures worked out."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import torch

from lrexport.errors import InputError
from lrexport.lowrank.decompose import Factorisable, SVDNetwork
from lrexport.lowrank.kernels import spec_of
from lrexport.lowrank.schemes import SCHEMES
from lrexport.lowrank.selection import Selection
from lrexport.lowrank.svd_form import factors, form_of, redecompose
from lrexport.plans import Choice, Pair
from lrexport.record import DenseLayer, FactorisedLayer, Plan, Scheme
from lrexport.units import format_count


def plan_from_choices(svd: SVDNetwork, choices: Mapping[str, Choice], source: str = "the plan") -> Selection:
    """The plan that has exactly these choices; layers that they do not name stay dense.

    A pair that costs more than its layer is allowed, with a warning. U, s, V are replaced by the exact SVD of the composed
    kernels where the plan keeps the scheme of the SVD form. Raises InputError as :func:`check_choices` does.
    """
    wanted = _by_layer(svd, choices, source)
    plan: Plan = {}
    warnings = []
    for name, layer in svd.layers.items():
        choice = wanted.get(name)
        if isinstance(choice, Pair):
            plan[name] = pair = _pair(svd, name, choice)
            if pair.macs >= layer.dense_macs:
                costs = f"costs {format_count(pair.macs)} MACs, the layer {format_count(layer.dense_macs)}"
                warnings.append(f"layer {name!r}: a {pair.scheme} pair of rank {pair.rank} {costs}")
        else:
            plan[name] = _dense(layer, "dense in the plan" if choice else "not in the plan")
    threshold = max((1 - layer.energy_kept for layer in plan.values() if isinstance(layer, FactorisedLayer)), default=0.0)
    plan |= svd.dense
    in_order = {name: plan[name] for name, _ in svd.network.named_modules() if name in plan}
    return Selection(in_order, threshold=threshold, warnings=(*svd.notes, *warnings))


def check_choices(svd: SVDNetwork, choices: Mapping[str, Choice], source: str = "the plan") -> None:
    """Raise InputError, naming ``source`` and the layer, for a choice that the network does not have.

    That is a layer it does not have, one that cannot be factorised, a scheme that the layer cannot have, or a rank above
    its full rank.
    """
    _by_layer(svd, choices, source)


def _by_layer(svd: SVDNetwork, choices: Mapping[str, Choice], source: str) -> dict[str, Choice]:
    """The choices for layers in SVD form, by the first of their names."""
    first_names = {place: name for name, layer in svd.layers.items() for place in layer.names}
    found: dict[str, Choice] = {}
    for given, choice in choices.items():
        where = f"{source}: layer {given!r}"
        if given in first_names:
            name = first_names[given]
            if isinstance(choice, Pair):
                _check_pair(where, svd.layers[name], choice)
            if found.setdefault(name, choice) != choice:
                raise InputError(f"{where} has the same weight as {name!r}, for which the plan wants something else")
        elif given not in svd.dense:
            close = difflib.get_close_matches(given, [*first_names, *svd.dense], 3)
            raise InputError(
                f"{source}: the network has no layer {given!r}", f"Close: {', '.join(close)}." if close else None
            )
        elif isinstance(choice, Pair):
            layer = svd.dense[given]
            hint = "By another --scheme its pair may pay." if layer.kind == "costly" else 'Write "dense", or leave it out.'
            raise InputError(f"{where} cannot be factorised: {layer.reason}", hint)
    return found


def _check_pair(where: str, layer: Factorisable, pair: Pair) -> None:
    if pair.scheme not in layer.schemes:
        known = ", ".join(f"{scheme} (full rank {facts.full_rank})" for scheme, facts in layer.schemes.items())
        kernel = "×".join(map(str, layer.shape))
        raise InputError(
            f"{where} cannot be {pair.scheme}: its weight is {kernel}",
            f"Schemes it can have: {known}. Others give the same matrix, or cost more at rank 1 already.",
        )
    full_rank = layer.schemes[pair.scheme].full_rank
    if pair.rank > full_rank:
        raise InputError(f"{where}: rank is {pair.rank}, at most its full rank by {pair.scheme}, {full_rank}, was wanted")


def _pair(svd: SVDNetwork, name: str, pair: Pair) -> FactorisedLayer:
    layer = svd.layers[name]
    facts = layer.schemes[pair.scheme]
    return FactorisedLayer(
        scheme=pair.scheme,
        rank=pair.rank,
        full_rank=facts.full_rank,
        energy_kept=_energy_kept(svd, name, pair.scheme, pair.rank),
        dense_macs=layer.dense_macs,
        macs=pair.rank * facts.macs_per_rank,
        dense_params=layer.dense_params,
        params=pair.rank * facts.params_per_rank + layer.bias_params,
        shape=layer.shape,
    )


def _dense(layer: Factorisable, reason: str) -> DenseLayer:
    macs, params = layer.dense_macs, layer.dense_params
    return DenseLayer(kind="kept", reason=reason, dense_macs=macs, dense_params=params, shape=layer.shape)


@torch.no_grad()
def _energy_kept(svd: SVDNetwork, name: str, scheme: Scheme, rank: int) -> float:
    """Σ kept s² ÷ Σ s² of the composed kernel's matrix by ``scheme``, over all groups; 1 for a kernel of zeros."""
    module = svd.network.get_submodule(name)
    if form_of(module).scheme == scheme:
        redecompose(module)
        singular = factors(module)[1].detach().double().cpu()
    else:
        weight: Any = module.weight
        singular = torch.linalg.svdvals(SCHEMES[scheme].matrix(weight, spec_of(module)).double().cpu())
    energy = singular.square()
    total = float(energy.sum())
    return float(energy[..., :rank].sum()) / total if total else 1.0
