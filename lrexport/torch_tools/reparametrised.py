"""Weights that are computed from others in every forward pass: folded into the plain weights that they come to."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

_MASKED = "prune"


@torch.no_grad()
def fold_reparametrised(network: nn.Module) -> list[str]:
    """Make plain weights of weight_norm, spectral_norm, prune masks and constant parametrisations, in place.

    In eval mode all of these are constant, so the network computes what it did. The names of its weights become those that
    it would have without them. Weights that two layers share stay shared. Returns what was done, for people; what is not
    constant in eval mode is left as it is.
    """
    folded: Counter[str] = Counter()
    tied: dict[tuple[object, ...], Any] = {}
    for module in network.modules():
        before = dict(folded)
        parts = [module, *_parametrisations(module)]
        modes = [(part, part.training) for part in parts]
        for part in parts:
            part.training = False  # else spectral_norm goes on with its power iteration
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
    """Take a module back to its ordinary class, in place, without the weights that were computed: the caller registers them.

    Not torch's remove_parametrizations: it deletes the property from the class, which deep copies of the module share, and
    their weights with it.
    """
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module.parametrizations


def _parametrisations(module: nn.Module) -> list[nn.Module]:
    held = module._modules.get("parametrizations") if parametrize.is_parametrized(module) else None
    return list(held.modules()) if held is not None else []


def _note(kind: str, count: int) -> str:
    weights = f"{count} weight{'s' if count > 1 else ''}"
    if kind == _MASKED:
        return f"the prune masks of {weights} were applied for good; training can move the zeros"
    return f"{kind} of {weights} was folded into plain ones"


def _fold_hooks(module: nn.Module, folded: Counter[str], tied: dict[tuple[object, ...], Any]) -> None:
    """What torch.nn.utils did with hooks before there were parametrisations."""
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
    for name, held in lists.items():
        value = values[name].contiguous()
        made = nn.Parameter(value) if any(True for _ in held.parameters(recurse=False)) else value
        made = tied.setdefault((id(held),), made)
        if isinstance(made, nn.Parameter):
            setattr(module, name, made)
        else:
            module.register_buffer(name, made)
        folded[_kind(held)] += 1


def _kind(held: Any) -> str:
    names = [type(each).__name__ for each in held]
    known = {"_WeightNorm": "weight_norm", "_SpectralNorm": "spectral_norm", "_Orthogonal": "orthogonal"}
    return " and ".join(known.get(name, name) for name in names)
