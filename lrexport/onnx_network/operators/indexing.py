"""Operators that choose values by their places, and that find places."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lrexport.onnx_network.operators.facts import Forms, NodeFacts, Operator, Values, at, axis_of, needed


def _wrapped(places: Tensor, size: int) -> Tensor:
    """Places counted from the front."""
    return torch.where(places < 0, places + size, places).to(torch.int64)


def _gather(facts: NodeFacts) -> Operator | None:
    axis = int(facts.get("axis", 0))

    def run(values: Values) -> tuple[Tensor, ...]:
        value, places = needed(values[0]), needed(values[1])
        at_axis = axis_of(axis, value.ndim)
        chosen = value.index_select(at_axis, _wrapped(places, value.shape[at_axis]).reshape(-1))
        shape = (*value.shape[:at_axis], *places.shape, *value.shape[at_axis + 1 :])
        return (chosen.reshape(shape),)

    return run


def _gather_elements(facts: NodeFacts) -> Operator | None:
    axis = int(facts.get("axis", 0))

    def run(values: Values) -> tuple[Tensor, ...]:
        value, places = needed(values[0]), needed(values[1])
        return (value.gather(axis, _wrapped(places, value.shape[axis])),)

    return run


def _gather_nd(facts: NodeFacts) -> Operator | None:
    if facts.get("batch_dims", 0):
        return None

    def run(values: Values) -> tuple[Tensor, ...]:
        value, places = needed(values[0]), needed(values[1])
        depth = places.shape[-1]
        index = tuple(_wrapped(places[..., axis], value.shape[axis]) for axis in range(depth))
        return (value[index],)

    return run


_REDUCE = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _scatter_elements(facts: NodeFacts) -> Operator | None:
    axis, how = int(facts.get("axis", 0)), facts.text("reduction", "none")
    if how != "none" and how not in _REDUCE:
        return None

    def run(values: Values) -> tuple[Tensor, ...]:
        value, places, updates = needed(values[0]), needed(values[1]), needed(values[2])
        places = _wrapped(places, value.shape[axis])
        if how == "none":
            return (value.scatter(axis, places, updates),)
        return (value.scatter_reduce(axis, places, updates, _REDUCE[how], include_self=True),)

    return run


def _scatter_nd(facts: NodeFacts) -> Operator | None:
    how = facts.text("reduction", "none")
    if how not in ("none", "add"):
        return None

    def run(values: Values) -> tuple[Tensor, ...]:
        value, places, updates = needed(values[0]), needed(values[1]), needed(values[2])
        index = tuple(_wrapped(places[..., axis], value.shape[axis]) for axis in range(places.shape[-1]))
        return (value.index_put(index, updates, accumulate=how == "add"),)

    return run


def _arg(largest: bool) -> Any:
    def form(facts: NodeFacts) -> Operator | None:
        axis, keep, last = int(facts.get("axis", 0)), bool(facts.get("keepdims", 1)), bool(facts.get("select_last_index", 0))
        if last:
            return None

        def run(values: Values) -> tuple[Tensor, ...]:
            value = needed(values[0])
            return ((value.argmax if largest else value.argmin)(dim=axis, keepdim=keep),)

        return run

    return form


def _top_k(facts: NodeFacts) -> Operator | None:
    if facts.opset < 10:
        return None
    axis, largest = int(facts.get("axis", -1)), bool(facts.get("largest", 1))
    if not facts.get("sorted", 1):
        return None

    def run(values: Values) -> tuple[Tensor, ...]:
        value, count = needed(values[0]), int(needed(values[1]).reshape(()))
        # Stable, because of equal values ONNX takes the one with the lower place.
        ordered, places = value.sort(dim=axis, descending=largest, stable=True)
        return ordered.narrow(axis, 0, count), places.narrow(axis, 0, count)

    return run


def _one_hot(facts: NodeFacts) -> Operator | None:
    axis = int(facts.get("axis", -1))

    def run(values: Values) -> tuple[Tensor, ...]:
        places, depth, pair = needed(values[0]), int(needed(values[1]).reshape(())), needed(values[2])
        place = axis + places.ndim + 1 if axis < 0 else axis
        steps = torch.arange(depth, device=places.device)
        wrapped = _wrapped(places, depth).unsqueeze(place)
        shape = [1] * wrapped.ndim
        shape[place] = depth
        return (torch.where(wrapped == steps.reshape(shape), pair[1], pair[0]),)

    return run


def _non_zero(values: Values) -> tuple[Tensor, ...]:
    value = needed(values[0])
    return (value.nonzero().T.contiguous(),)


def _compress(facts: NodeFacts) -> Operator | None:
    axis = facts.get("axis")

    def run(values: Values) -> tuple[Tensor, ...]:
        value, chosen = needed(values[0]), needed(values[1]).nonzero().reshape(-1)
        if axis is None:
            return (value.reshape(-1).index_select(0, chosen),)
        return (value.index_select(axis, chosen),)

    return run


def _cum_sum(facts: NodeFacts) -> Operator | None:
    exclusive, backwards = bool(facts.get("exclusive", 0)), bool(facts.get("reverse", 0))

    def run(values: Values) -> tuple[Tensor, ...]:
        value, axis = needed(values[0]), int(needed(values[1]).reshape(()))
        turned = value.flip(axis) if backwards else value
        total = turned.cumsum(axis, dtype=value.dtype)
        total = total - turned if exclusive else total
        return (total.flip(axis) if backwards else total,)

    return run


def _trilu(facts: NodeFacts) -> Operator | None:
    upper = bool(facts.get("upper", 1))

    def run(values: Values) -> tuple[Tensor, ...]:
        value, shift = needed(values[0]), at(values, 1)
        diagonal = 0 if shift is None else int(shift.reshape(()))
        return ((torch.triu if upper else torch.tril)(value, diagonal),)

    return run


FORMS: Forms = {
    "ArgMax": _arg(True),
    "ArgMin": _arg(False),
    "Compress": _compress,
    "CumSum": _cum_sum,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "NonZero": lambda facts: _non_zero if not facts.attributes else None,
    "OneHot": _one_hot,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
    "TopK": _top_k,
    "Trilu": _trilu,
}
