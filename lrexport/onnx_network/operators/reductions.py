"""Reductions over axes."""

from __future__ import annotations

from collections.abc import Callable

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
    integers,
    needed,
)

_Reduce = Callable[[Tensor, tuple[int, ...], bool], Tensor]


def _reduction(function: _Reduce, axes_since: int) -> Form:
    """Axes are an attribute before opset ``axes_since``, then an input."""

    def form(facts: NodeFacts) -> Operator | None:
        keep, none = bool(facts.get("keepdims", 1)), bool(facts.get("noop_with_empty_axes", 0))

        def run(values: Values) -> tuple[Tensor, ...]:
            value = needed(values[0])
            axes = integers(at(values, 1)) if facts.opset >= axes_since else facts.get("axes")
            if not axes:
                if none:  # the value is still squared, say: versions of the specification disagree
                    raise NotCoveredError("a reduction over no axes")
                axes = list(range(value.ndim))
            if not value.ndim:
                return (function(value.reshape(1), (0,), False),)
            return (function(value, tuple(axes), keep),)

        return run

    return form


def _prod(value: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    for axis in sorted((axis % value.ndim for axis in axes), reverse=True):
        value = value.prod(axis, keepdim=keep, dtype=value.dtype)
    return value


def _mean(value: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    if value.is_floating_point():
        return value.mean(axes, keep)
    count = 1
    for axis in axes:
        count *= value.shape[axis]
    return torch.div(value.sum(axes, keep, dtype=value.dtype), count, rounding_mode="trunc")


def _extreme(largest: bool) -> _Reduce:
    def function(value: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
        if value.dtype == torch.bool:
            return _extreme(largest)(value.to(torch.uint8), axes, keep).to(torch.bool)
        return (value.amax if largest else value.amin)(axes, keep)

    return function


FORMS: Forms = {
    "ReduceSum": _reduction(lambda value, axes, keep: value.sum(axes, keep, dtype=value.dtype), 13),
    "ReduceMean": _reduction(_mean, 18),
    "ReduceMax": _reduction(_extreme(True), 18),
    "ReduceMin": _reduction(_extreme(False), 18),
    "ReduceProd": _reduction(_prod, 18),
    "ReduceL1": _reduction(lambda value, axes, keep: value.abs().sum(axes, keep, dtype=value.dtype), 18),
    "ReduceL2": _reduction(lambda value, axes, keep: value.square().sum(axes, keep, dtype=value.dtype).sqrt(), 18),
    "ReduceSumSquare": _reduction(lambda value, axes, keep: value.square().sum(axes, keep, dtype=value.dtype), 18),
    "ReduceLogSum": _reduction(lambda value, axes, keep: value.sum(axes, keep).log(), 18),
    "ReduceLogSumExp": _reduction(lambda value, axes, keep: value.logsumexp(axes, keep), 18),
}
