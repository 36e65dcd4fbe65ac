"""Fold weights that are computed from others in every forward pass into plain weights."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from lrexport.text import number_of

_MASKED = "prune"


@torch.no_grad()
def fold_reparametrised(network: nn.Module) -> list[str]:
    """Fold weight_norm, spectral_norm, pruning masks and constant parametrisations into plain weights, in place.

    They are constant in eval mode, so the network computes the same. Weights get the names that they would have without
    them; shared weights stay shared. Parametrisations that vary in eval mode are kept. Returns notes for the user.
    """
    folded: Counter[str] = Counter()
    tied: dict[tuple[object, ...], Any] = {}
    for module in network.modules():
        before = dict(folded)
        parts = [module, *_parametrisations(module)]
        modes = [(part, part.training) for part in parts]
        for part in parts:
            part.training = False  # stops the power iteration of spectral_norm
        try:
            _fold_hooks(module, folded, tied)
            if parametrize.is_parametrized(module):
                _fold_parametrisations(module, folded, tied)
        finally:
            for part, mode in modes:
                part.training = mode
        if dict(folded) != before and isinstance(module, nn.RNNBase):
            module.flatten_parameters()
    return [_note(kind, count) for kind, count in folded.items()]


def drop_parametrisations(module: Any) -> None:
    """Restore a module's ordinary class, in place, without the computed weights, which the caller has to register.

    torch's remove_parametrizations deletes the property from the class, and so the weights of all deep copies of the
    module, which share the class.
    """
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module.parametrizations


def _parametrisations(module: nn.Module) -> list[nn.Module]:
    lists = module._modules.get("parametrizations") if parametrize.is_parametrized(module) else None
    return list(lists.modules()) if lists is not None else []


def _note(kind: str, count: int) -> str:
    weights = number_of(count, "weight")
    if kind == _MASKED:
        return f"applied the pruning masks of {weights} permanently; training can change the zeros"
    return f"folded {kind} of {weights} into plain ones"


def _fold_hooks(module: nn.Module, folded: Counter[str], tied: dict[tuple[object, ...], Any]) -> None:
    """Fold weights that torch.nn.utils computes by hooks, its older mechanism."""
    for hook in list(module._forward_pre_hooks.values()):
        name: str
        if isinstance(hook, WeightNorm | SpectralNorm):
            name = hook.name
        elif isinstance(hook, prune.BasePruningMethod):
            name = str(hook._tensor_name)
        else:
            continue
        made_of = tuple(sorted(id(value) for key, value in _own(module).items() if key.startswith(f"{name}_")))
        if isinstance(hook, WeightNorm):
            kind = "weight_norm"
            remove_weight_norm(module, name)
        elif isinstance(hook, SpectralNorm):
            kind = "spectral_norm"
            remove_spectral_norm(module, name)
        else:
            kind = _MASKED
            prune.remove(module, name)
        folded[kind] += 1
        setattr(module, name, tied.setdefault(made_of, getattr(module, name)))


def _own(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}


def _fold_parametrisations(module: Any, folded: Counter[str], tied: dict[tuple[object, ...], Any]) -> None:
    lists: dict[str, Any] = dict(module.parametrizations.items())
    values = {name: getattr(module, name).detach().clone() for name in lists}
    if not all(torch.equal(values[name], getattr(module, name)) for name in lists):
        return
    drop_parametrisations(module)
    for name, parametrisations in lists.items():
        value = values[name].contiguous()
        plain = nn.Parameter(value) if any(True for _ in parametrisations.parameters(recurse=False)) else value
        plain = tied.setdefault((id(parametrisations),), plain)
        if isinstance(plain, nn.Parameter):
            setattr(module, name, plain)
        else:
            module.register_buffer(name, plain)
        folded[_kind(parametrisations)] += 1


def _kind(parametrisations: Any) -> str:
    names = [type(each).__name__ for each in parametrisations]
    known = {"_WeightNorm": "weight_norm", "_SpectralNorm": "spectral_norm", "_Orthogonal": "orthogonal"}
    return " and ".join(known.get(name, name) for name in names)
