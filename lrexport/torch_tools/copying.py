"""Copies of networks, whatever their forward pass or their builder keeps on the modules."""

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


def copy_network(network: M) -> M:
    """A copy that shares no parameters, buffers or attributes.

    Tensors that a forward pass computed, such as a loss that is kept for later, lose their history. What Python cannot copy
    (locks, open files, generators, compiled functions) is shared between the network and its copy.
    """
    memo: dict[int, Any] = {}
    # deepcopy takes for an object what its memo has for it, and the list keeps alive what must not be freed meanwhile.
    kept: list[object] = []
    seen: set[int] = set()
    for module in network.modules():
        _prepare(module, memo, kept, seen, 0)
    return copy.deepcopy(network, memo)


def _prepare(value: object, memo: dict[int, Any], kept: list[object], seen: set[int], depth: int) -> None:
    """Put into ``memo`` what stands for the parts of ``value`` that cannot be copied."""
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
    """What deepcopy would copy of ``value``; None where it cannot."""
    if isinstance(value, nn.Module):
        return list(vars(value).values())
    if isinstance(value, MethodType):
        return [value.__self__]
    if type(value) is dict:
        return [*value.keys(), *value.values()]
    if type(value) in (list, tuple, set, frozenset):
        return list(cast(Iterable[object], value))
    if hasattr(value, "__deepcopy__"):  # it knows how itself
        return []
    try:
        reduced = value.__reduce_ex__(4)
    except Exception:  # each kind of object says no in its own way
        return None
    if not isinstance(reduced, tuple):
        return []
    # Arguments of what builds it, its state, and the items of a list or a dictionary that it derives from.
    items = [list(each) if isinstance(each, Iterator) else each for each in reduced[1:5]]
    return [item for item in items if item is not None]
