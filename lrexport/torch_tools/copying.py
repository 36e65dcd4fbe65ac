"""Copy networks, even if their modules have attributes that Python cannot copy."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from types import MethodType
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from lrexport.torch_tools.modules import WITHOUT_PARTS

M = TypeVar("M", bound=nn.Module)

_DEEPEST = 20


def copy_network(network: M, instead: Iterable[tuple[Tensor, Tensor]] = ()) -> M:
    """A copy that shares no parameters, buffers or attributes; ``instead`` are tensors with those to have in their places.

    Stored results of a forward pass, such as a loss, lose their autograd history. Objects that Python cannot copy (locks,
    open files, generators, compiled functions) are shared.
    """
    memo: dict[int, Any] = {id(tensor): other for tensor, other in instead}
    # deepcopy replaces objects by their entry in memo; the list keeps them alive, because memo has only their ids.
    kept: list[object] = []
    seen: set[int] = set()
    for module in network.modules():
        _prepare(module, memo, kept, seen, 0)
    return copy.deepcopy(network, memo)


def with_same_weights(network: M) -> M:
    """A copy whose parameters are others with the same values in memory: neither network may be trained afterwards."""
    plain = [parameter for parameter in network.parameters() if type(parameter) is nn.Parameter]
    return copy_network(network, [(each, nn.Parameter(each.detach(), each.requires_grad)) for each in plain])


def _prepare(value: object, memo: dict[int, Any], kept: list[object], seen: set[int], depth: int) -> None:
    """Put replacements for those parts of ``value`` that cannot be copied into ``memo``."""
    if isinstance(value, (*WITHOUT_PARTS, torch.jit.ScriptModule)) or id(value) in seen or depth > _DEEPEST:
        return
    seen.add(id(value))
    kept.append(value)
    if isinstance(value, Tensor):
        if not value.is_leaf:
            memo[id(value)] = value.detach().clone()
        return
    parts = _parts(value)
    if parts is None:
        memo[id(value)] = value
        return
    for part in parts:
        _prepare(part, memo, kept, seen, depth + 1)


def _parts(value: object) -> list[object] | None:
    """The parts of ``value`` that deepcopy would copy; None if it cannot."""
    if isinstance(value, nn.Module):
        return list(vars(value).values())
    if isinstance(value, MethodType):
        return [value.__self__]
    if type(value) is dict:
        return [*value.keys(), *value.values()]
    if type(value) in (list, tuple, set, frozenset):
        return list(cast(Iterable[object], value))
    if hasattr(value, "__deepcopy__"):
        return []
    try:
        reduced = value.__reduce_ex__(4)
    except Exception:  # objects refuse with errors of many types
        return None
    if not isinstance(reduced, tuple):
        return []
    # Arguments of its constructor, its state, and its items as a list or a dictionary.
    items = [list(each) if isinstance(each, Iterator) else each for each in reduced[1:5]]
    return [item for item in items if item is not None]
