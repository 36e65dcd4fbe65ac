"""Arithmetic, comparisons and logic, value by value, with broadcasting."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import torch
from torch import Tensor

from lrexport.onnx_network.operators.facts import (
    Form,
    Forms,
    NodeFacts,
    NotCoveredError,
    Operator,
    Values,
    needed,
    only,
    plain,
    unary,
)


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Form:
    def run(values: Values) -> tuple[Tensor, ...]:
        return (function(needed(values[0]), needed(values[1])),)

    return plain(run)


def _many(function: Callable[[Tensor, Tensor], Tensor], mean: bool = False) -> Form:
    def run(values: Values) -> tuple[Tensor, ...]:
        total = reduce(function, map(needed, values))
        return (total / len(values) if mean else total,)

    return plain(run)


def _divide(one: Tensor, other: Tensor) -> Tensor:
    if one.is_floating_point():
        return one / other
    return torch.div(one, other, rounding_mode="trunc")  # C's division, as in ONNX Runtime


def _power(one: Tensor, other: Tensor) -> Tensor:
    if one.is_floating_point():
        return torch.pow(one, other.to(one.dtype))
    if other.is_floating_point():
        return torch.pow(one.double(), other.double()).to(one.dtype)
    return torch.pow(one, other).to(one.dtype)


def _mod(facts: NodeFacts) -> Operator | None:
    c_like = bool(facts.get("fmod", 0))

    def run(values: Values) -> tuple[Tensor, ...]:
        one, other = needed(values[0]), needed(values[1])
        return (torch.fmod(one, other) if c_like else torch.remainder(one, other),)

    return run


def _where(values: Values) -> tuple[Tensor, ...]:
    return (torch.where(needed(values[0]), needed(values[1]), needed(values[2])),)


def _is_inf(facts: NodeFacts) -> Operator | None:
    low, high = bool(facts.get("detect_negative", 1)), bool(facts.get("detect_positive", 1))

    def run(values: Values) -> tuple[Tensor, ...]:
        value = needed(values[0])
        return (torch.isinf(value) & ((value < 0) & low | (value > 0) & high),)

    return run


def _bitwise_not(value: Tensor) -> Tensor:
    if value.dtype == torch.int64:
        raise NotCoveredError("int64, which also holds unsigned integers")
    return torch.bitwise_not(value)


FORMS: Forms = {
    "Abs": unary(torch.abs),
    "Acos": unary(torch.acos),
    "Acosh": unary(torch.acosh),
    "Add": _binary(torch.add),
    "And": _binary(torch.logical_and),
    "Asin": unary(torch.asin),
    "Asinh": unary(torch.asinh),
    "Atan": unary(torch.atan),
    "Atanh": unary(torch.atanh),
    "BitwiseAnd": _binary(torch.bitwise_and),
    "BitwiseNot": unary(_bitwise_not),
    "BitwiseOr": _binary(torch.bitwise_or),
    "BitwiseXor": _binary(torch.bitwise_xor),
    "Ceil": unary(torch.ceil),
    "Cos": unary(torch.cos),
    "Cosh": unary(torch.cosh),
    "Div": _binary(_divide),
    "Equal": _binary(torch.eq),
    "Erf": unary(torch.erf),
    "Exp": unary(torch.exp),
    "Floor": unary(torch.floor),
    "Greater": _binary(torch.gt),
    "GreaterOrEqual": _binary(torch.ge),
    "IsInf": only(_is_inf, "detect_negative", "detect_positive"),
    "IsNaN": unary(torch.isnan),
    "Less": _binary(torch.lt),
    "LessOrEqual": _binary(torch.le),
    "Log": unary(torch.log),
    "Max": _many(torch.maximum),
    "Mean": _many(torch.add, mean=True),
    "Min": _many(torch.minimum),
    "Mod": only(_mod, "fmod"),
    "Mul": _binary(torch.mul),
    "Neg": unary(torch.neg),
    "Not": unary(torch.logical_not),
    "Or": _binary(torch.logical_or),
    "Pow": _binary(_power),
    "Reciprocal": unary(torch.reciprocal),
    "Round": unary(torch.round),
    "Sign": unary(torch.sign),
    "Sin": unary(torch.sin),
    "Sinh": unary(torch.sinh),
    "Sqrt": unary(torch.sqrt),
    "Sub": _binary(torch.sub),
    "Sum": _many(torch.add),
    "Tan": unary(torch.tan),
    "Where": plain(_where),
    "Xor": _binary(torch.logical_xor),
}
