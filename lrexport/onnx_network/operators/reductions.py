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
    only,
)

_Reduce = Callable[[Tensor, tuple[int, ...], bool], Tensor]


def _reduction(function: _Reduce, axes_since: int, same_alone: bool = True) -> Form:
    """Axes are an attribute before opset ``axes_since``, then an input.

    ``same_alone``: a number reduced by itself is itself, so that a reduction over no axes does nothing. For others the
    versions of the specification disagree.
    """

    def form(facts: NodeFacts) -> Operator | None:
        keep, none = bool(facts.get("keepdims", 1)), bool(facts.get("noop_with_empty_axes", 0))

        def run(values: Values) -> tuple[Tensor, ...]:
            value = needed(values[0])
            axes = integers(at(values, 1)) if facts.opset >= axes_since else facts.get("axes")
            if not axes:
                if none and not same_alone:
                    raise NotCoveredError("a reduction over no axes")
                if none:
                    return (value,)
                axes = list(range(value.ndim))
            if not value.ndim:
                return (function(value.reshape(1), (0,), False),)
            return (function(value, tuple(axes), keep),)

        return run

    return only(form, "axes", "keepdims", "noop_with_empty_axes")


def _floating(function: _Reduce) -> _Reduce:
    """For functions that ONNX Runtime rounds in several ways for integers."""

    def reduce(value: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
        if not value.is_floating_point():
            raise NotCoveredError("a reduction of integers by roots or logarithms")
        return function(value, axes, keep)

    return reduce


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
        if not value.numel():
            raise NotCoveredError("the extreme of nothing")
        return (value.amax if largest else value.amin)(axes, keep)

    return function


def _sum(value: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return value.sum(axes, keep, dtype=value.dtype)


FORMS: Forms = {
    "ReduceL1": _reduction(lambda value, axes, keep: _sum(value.abs(), axes, keep), 18, False),
    # Not the root of a sum, whose gradient is infinite at 0.
    "ReduceL2": _reduction(_floating(lambda value, axes, keep: torch.linalg.vector_norm(value, 2, axes, keep)), 18, False),
    "ReduceLogSum": _reduction(_floating(lambda value, axes, keep: value.sum(axes, keep).log()), 18, False),
    "ReduceLogSumExp": _reduction(_floating(lambda value, axes, keep: value.logsumexp(axes, keep)), 18),
    "ReduceMax": _reduction(_extreme(True), 18),
    "ReduceMean": _reduction(_mean, 18),
    "ReduceMin": _reduction(_extreme(False), 18),
    "ReduceProd": _reduction(_prod, 18),
    "ReduceSum": _reduction(_sum, 13),
    "ReduceSumSquare": _reduction(lambda value, axes, keep: _sum(value.square(), axes, keep), 18, False),
}
