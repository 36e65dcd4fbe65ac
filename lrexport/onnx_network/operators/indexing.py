"""Operators that choose values by their places, and that find places."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from lrexport.onnx_network.operators.facts import (
    Form,
    Forms,
    NodeFacts,
    NotCoveredError,
    Operator,
    Values,
    at,
    axis_of,
    needed,
    numbers_of,
    only,
    plain,
)


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
    batch = int(facts.get("batch_dims", 0))

    def run(values: Values) -> tuple[Tensor, ...]:
        value, places = needed(values[0]), needed(values[1])
        depth = places.shape[-1]
        index = [_wrapped(places[..., axis], value.shape[batch + axis]) for axis in range(depth)]
        # The axes that both have in common are indexed by their own places.
        own = []
        for axis in range(batch):
            shape = [-1 if each == axis else 1 for each in range(places.ndim - 1)]
            own.append(torch.arange(value.shape[axis], device=value.device).reshape(shape))
        return (value[tuple(own + index)] if depth or own else value.expand(*places.shape[:-1], *value.shape),)

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
    if how != "none" and how not in _REDUCE:
        return None

    def run(values: Values) -> tuple[Tensor, ...]:
        value, places, updates = needed(values[0]), needed(values[1]), needed(values[2])
        depth = places.shape[-1]
        first = torch.zeros(places.shape[:-1], dtype=torch.int64, device=value.device)
        for axis in range(depth):
            wrapped = _wrapped(places[..., axis], value.shape[axis])
            if bool(((wrapped < 0) | (wrapped >= value.shape[axis])).any()):
                raise ValueError(f"ScatterND to a place outside of axis {axis} of size {value.shape[axis]}")
            first = first * value.shape[axis] + wrapped
        # One row for each place that the indices can name.
        rows = value.reshape(prod(value.shape[:depth]), -1)
        first, updates = first.reshape(-1), updates.reshape(first.numel(), -1)
        if how == "none":
            made = rows.index_copy(0, first, updates)
        else:
            made = rows.scatter_reduce(0, first.unsqueeze(1).expand_as(updates), updates, _REDUCE[how], include_self=True)
        return (made.reshape(value.shape),)

    return run


def _arg(largest: bool) -> Form:
    def form(facts: NodeFacts) -> Operator | None:
        axis, keep, last = int(facts.get("axis", 0)), bool(facts.get("keepdims", 1)), bool(facts.get("select_last_index", 0))

        def run(values: Values) -> tuple[Tensor, ...]:
            value = needed(values[0])
            turned = value.flip(axis) if last else value
            place = (turned.argmax if largest else turned.argmin)(dim=axis, keepdim=keep)
            return (value.shape[axis] - 1 - place if last else place,)

        return run

    return only(form, "axis", "keepdims", "select_last_index")


def _top_k(facts: NodeFacts) -> Operator | None:
    attribute = facts.get("k") if facts.opset < 10 else None
    axis, largest = int(facts.get("axis", -1)), bool(facts.get("largest", 1))
    if not facts.get("sorted", 1):
        return None

    def run(values: Values) -> tuple[Tensor, ...]:
        value = needed(values[0])
        count = int(attribute if attribute is not None else numbers_of(needed(values[1]))[0])
        # Stable, because of equal values ONNX takes the one with the lower place.
        ordered, places = value.sort(dim=axis, descending=largest, stable=True)
        return ordered.narrow(axis, 0, count), places.narrow(axis, 0, count)

    return run


def _one_hot(facts: NodeFacts) -> Operator | None:
    axis = int(facts.get("axis", -1))

    def run(values: Values) -> tuple[Tensor, ...]:
        places, depth, pair = needed(values[0]), int(numbers_of(needed(values[1]))[0]), needed(values[2])
        place = axis + places.ndim + 1 if axis < 0 else axis
        steps = torch.arange(depth, device=places.device)
        wrapped = _wrapped(places, depth).unsqueeze(place)
        shape = [1] * wrapped.ndim
        shape[place] = depth
        return (torch.where(wrapped == steps.reshape(shape), pair[1], pair[0]),)

    return run


def _non_zero(values: Values) -> tuple[Tensor, ...]:
    value = needed(values[0])
    if not value.ndim:
        raise NotCoveredError("NonZero of one number, which has no axes")
    return (value.nonzero().T.contiguous(),)


def _compress(facts: NodeFacts) -> Operator | None:
    axis = facts.get("axis")

    def run(values: Values) -> tuple[Tensor, ...]:
        value, chosen = needed(values[0]), needed(values[1]).nonzero().reshape(-1)
        if axis is None:
            return (value.reshape(-1).index_select(0, chosen),)
        return (value.index_select(axis, chosen),)

    return run


def _cumulative(product: bool) -> Form:
    def form(facts: NodeFacts) -> Operator | None:
        exclusive, backwards = bool(facts.get("exclusive", 0)), bool(facts.get("reverse", 0))

        def run(values: Values) -> tuple[Tensor, ...]:
            value, axis = needed(values[0]), int(numbers_of(needed(values[1]))[0])
            value = value.flip(axis) if backwards else value
            if exclusive:  # each place has what is before it
                first = torch.full_like(value.narrow(axis, 0, 1), 1 if product else 0)
                value = torch.cat([first, value.narrow(axis, 0, value.shape[axis] - 1)], axis)
            total = (value.cumprod if product else value.cumsum)(axis, dtype=value.dtype)
            return (total.flip(axis) if backwards else total,)

        return run

    return only(form, "exclusive", "reverse")


def _trilu(facts: NodeFacts) -> Operator | None:
    upper = bool(facts.get("upper", 1))

    def run(values: Values) -> tuple[Tensor, ...]:
        value, shift = needed(values[0]), at(values, 1)
        diagonal = 0 if shift is None else int(numbers_of(shift)[0])
        return ((torch.triu if upper else torch.tril)(value, diagonal),)

    return run


FORMS: Forms = {
    "ArgMax": _arg(True),
    "ArgMin": _arg(False),
    "Compress": only(_compress, "axis"),
    "CumProd": _cumulative(True),
    "CumSum": _cumulative(False),
    "Gather": only(_gather, "axis"),
    "GatherElements": only(_gather_elements, "axis"),
    "GatherND": only(_gather_nd, "batch_dims"),
    "NonZero": plain(_non_zero),
    "OneHot": only(_one_hot, "axis"),
    "Scatter": only(_scatter_elements, "axis"),
    "ScatterElements": only(_scatter_elements, "axis", "reduction"),
    "ScatterND": only(_scatter_nd, "reduction"),
    "TopK": only(_top_k, "axis", "largest", "sorted", "k"),
    "Trilu": only(_trilu, "upper"),
}
