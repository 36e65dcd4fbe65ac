"""Quantisation to 8 bits, and back from any integers."""

from __future__ import annotations

import torch
from torch import Tensor

from lrexport.onnx_network.operators.facts import (
    Forms,
    NodeFacts,
    NotCoveredError,
    Operator,
    Values,
    at,
    axis_of,
    needed,
    only,
    type_of,
)

_BYTES = (torch.uint8, torch.int8)
_QUANTISED = (*_BYTES, torch.int16, torch.int32)


def _along(parameter: Tensor, value: Tensor, axis: int) -> Tensor:
    """A scale or zero point, one number or one for each place on the axis, as it broadcasts with the value."""
    if parameter.numel() == 1:
        return parameter.reshape(())
    if parameter.ndim != 1:
        raise NotCoveredError("quantisation by blocks")
    return parameter.reshape([-1 if each == axis_of(axis, value.ndim) else 1 for each in range(value.ndim)])


def _quantize(facts: NodeFacts) -> Operator | None:
    axis, kind = int(facts.get("axis", 1)), type_of(int(facts.get("output_dtype", 0) or 2))
    if kind not in _BYTES:
        return None

    def run(values: Values) -> tuple[Tensor, ...]:
        value, scale, zero = needed(values[0]), needed(values[1]), at(values, 2)
        dtype = kind if zero is None else zero.dtype
        if dtype not in _BYTES or not value.is_floating_point():
            raise NotCoveredError("quantisation to another type than 8 bits")
        assert dtype is not None
        limits = torch.iinfo(dtype)
        scaled = torch.round(value / _along(scale, value, axis))
        if zero is not None:
            scaled = scaled + _along(zero, value, axis).to(scaled.dtype)
        return (scaled.clamp(limits.min, limits.max).to(dtype),)

    return run


def _dequantize(facts: NodeFacts) -> Operator | None:
    axis = int(facts.get("axis", 1))

    def run(values: Values) -> tuple[Tensor, ...]:
        value, scale, zero = needed(values[0]), needed(values[1]), at(values, 2)
        if value.dtype not in _QUANTISED:
            raise NotCoveredError("quantised values of more than 32 bits, or of floating point")
        # The difference is of integers, exact; torch knows none of mixed types without overflow.
        wide = value.to(torch.int64)
        if zero is not None:
            wide = wide - _along(zero, value, axis).to(torch.int64)
        return (wide.to(scale.dtype) * _along(scale, value, axis),)

    return run


def _dynamic(values: Values) -> tuple[Tensor, ...]:
    value = needed(values[0])
    least, most = value.amin().clamp_max(0), value.amax().clamp_min(0)
    scale = (most - least) / 255
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero = torch.round((0 - least / scale).clamp(0, 255))
    made = (torch.round(value / scale) + zero).clamp(0, 255)
    return made.to(torch.uint8), scale, zero.to(torch.uint8)


FORMS: Forms = {
    "DequantizeLinear": only(_dequantize, "axis"),
    "DynamicQuantizeLinear": only(lambda facts: _dynamic),
    "QuantizeLinear": only(_quantize, "axis", "saturate", "output_dtype"),
}
