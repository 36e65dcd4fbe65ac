"""Arithmetic, comparisons, logic, and activations: each value by itself, with broadcasting."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lrexport.onnx_network.operators.facts import Form, Forms, NodeFacts, Operator, Values, at, axis_of, needed, unary


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Form:
    def run(values: Values) -> tuple[Tensor, ...]:
        return (function(needed(values[0]), needed(values[1])),)

    # Before opset 7 broadcasting was an attribute.
    return lambda facts: run if not facts.attributes and facts.opset >= 7 else None


def _many(function: Callable[[Tensor, Tensor], Tensor], mean: bool = False) -> Form:
    def run(values: Values) -> tuple[Tensor, ...]:
        total = reduce(function, map(needed, values))
        return (total / len(values) if mean else total,)

    return lambda facts: run if not facts.attributes and facts.opset >= 8 else None


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
    if not facts.has_only("fmod"):
        return None
    c_like = bool(facts.get("fmod", 0))

    def run(values: Values) -> tuple[Tensor, ...]:
        one, other = needed(values[0]), needed(values[1])
        return (torch.fmod(one, other) if c_like else torch.remainder(one, other),)

    return run


def _with(function: Callable[..., Tensor], **defaults: float) -> Form:
    """An activation whose attributes are numbers."""

    def form(facts: NodeFacts) -> Operator | None:
        if not facts.has_only(*defaults):
            return None
        chosen = {name: float(facts.get(name, default)) for name, default in defaults.items()}
        return lambda values: (function(needed(values[0]), **chosen),)

    return form


def _clip(facts: NodeFacts) -> Operator | None:
    if facts.opset < 11:
        if not facts.has_only("min", "max"):
            return None
        low, high = facts.get("min"), facts.get("max")
        if low is None and high is None:
            return lambda values: (needed(values[0]),)
        return lambda values: (needed(values[0]).clamp(low, high),)

    def run(values: Values) -> tuple[Tensor, ...]:
        value, least, most = needed(values[0]), at(values, 1), at(values, 2)
        if least is not None:
            value = torch.maximum(value, least.to(value.dtype))
        return (value if most is None else torch.minimum(value, most.to(value.dtype)),)

    return run if not facts.attributes else None


def _gelu(facts: NodeFacts) -> Operator | None:
    kind = facts.text("approximate", "none")
    if kind not in ("none", "tanh"):
        return None
    return lambda values: (F.gelu(needed(values[0]), approximate=kind),)


def _prelu(values: Values) -> tuple[Tensor, ...]:
    value, slope = needed(values[0]), needed(values[1])
    return (torch.where(value < 0, value * slope, value),)


def _softmax(function: Callable[..., Tensor]) -> Form:
    def form(facts: NodeFacts) -> Operator | None:
        axis = int(facts.get("axis", -1 if facts.opset >= 13 else 1))

        def run(values: Values) -> tuple[Tensor, ...]:
            value = needed(values[0])
            if facts.opset >= 13:
                return (function(value, dim=axis),)
            # Before opset 13 the axes from ``axis`` on are one.
            flat = value.reshape(*value.shape[: axis_of(axis, value.ndim)], -1)
            return (function(flat, dim=-1).reshape(value.shape),)

        return run

    return form


def _where(values: Values) -> tuple[Tensor, ...]:
    return (torch.where(needed(values[0]), needed(values[1]), needed(values[2])),)


def _plain(run: Operator) -> Form:
    return lambda facts: run if not facts.attributes else None


def _is_inf(facts: NodeFacts) -> Operator | None:
    low, high = bool(facts.get("detect_negative", 1)), bool(facts.get("detect_positive", 1))

    def run(values: Values) -> tuple[Tensor, ...]:
        value = needed(values[0])
        return (torch.isinf(value) & ((value < 0) & low | (value > 0) & high),)

    return run


def _hard_sigmoid(value: Tensor, alpha: float, beta: float) -> Tensor:
    return (alpha * value + beta).clamp(0, 1)


def _elu(value: Tensor, alpha: float) -> Tensor:
    return torch.where(value < 0, alpha * torch.expm1(value.clamp_max(0)), value)


def _selu(value: Tensor, alpha: float, gamma: float) -> Tensor:
    return gamma * _elu(value, alpha)


def _celu(value: Tensor, alpha: float) -> Tensor:
    return value.clamp_min(0) + (alpha * torch.expm1(value / alpha)).clamp_max(0)


def _shrink(value: Tensor, lambd: float, bias: float) -> Tensor:
    shrunk = torch.where(value < -lambd, value + bias, torch.zeros_like(value))
    return torch.where(value > lambd, value - bias, shrunk)


def _sum_of(one: Tensor, other: Tensor) -> Tensor:
    return one + other


def _as_bool(function: Callable[[Tensor, Tensor], Any]) -> Form:
    return _binary(lambda one, other: function(one, other))


FORMS: Forms = {
    "Abs": unary(torch.abs),
    "Acos": unary(torch.acos),
    "Acosh": unary(torch.acosh),
    "Asin": unary(torch.asin),
    "Asinh": unary(torch.asinh),
    "Atan": unary(torch.atan),
    "Atanh": unary(torch.atanh),
    "Ceil": unary(torch.ceil),
    "Cos": unary(torch.cos),
    "Cosh": unary(torch.cosh),
    "Erf": unary(torch.erf),
    "Exp": unary(torch.exp),
    "Floor": unary(torch.floor),
    "Identity": unary(lambda value: value),
    "IsInf": _is_inf,
    "IsNaN": unary(torch.isnan),
    "Log": unary(torch.log),
    "Neg": unary(torch.neg),
    "Not": unary(torch.logical_not),
    "Reciprocal": unary(torch.reciprocal),
    "Relu": unary(torch.relu),
    "Round": unary(torch.round),
    "Sigmoid": unary(torch.sigmoid),
    "Sign": unary(torch.sign),
    "Sin": unary(torch.sin),
    "Sinh": unary(torch.sinh),
    "Sqrt": unary(torch.sqrt),
    "Tan": unary(torch.tan),
    "Tanh": unary(torch.tanh),
    "Softplus": unary(lambda value: torch.logaddexp(value, value.new_zeros(()))),
    "Softsign": unary(F.softsign),
    "Mish": unary(F.mish),
    "HardSwish": unary(lambda value: value * _hard_sigmoid(value, 1 / 6, 0.5)),
    "Add": _binary(torch.add),
    "Sub": _binary(torch.sub),
    "Mul": _binary(torch.mul),
    "Div": _binary(_divide),
    "Pow": _binary(_power),
    "Mod": _mod,
    "And": _as_bool(torch.logical_and),
    "Or": _as_bool(torch.logical_or),
    "Xor": _as_bool(torch.logical_xor),
    "Equal": _as_bool(torch.eq),
    "Greater": _as_bool(torch.gt),
    "GreaterOrEqual": _as_bool(torch.ge),
    "Less": _as_bool(torch.lt),
    "LessOrEqual": _as_bool(torch.le),
    "BitwiseAnd": _binary(torch.bitwise_and),
    "BitwiseOr": _binary(torch.bitwise_or),
    "BitwiseXor": _binary(torch.bitwise_xor),
    "Max": _many(torch.maximum),
    "Min": _many(torch.minimum),
    "Sum": _many(_sum_of),
    "Mean": _many(_sum_of, mean=True),
    "Clip": _clip,
    "Gelu": _gelu,
    "PRelu": _plain(_prelu),
    "Where": _plain(_where),
    "Softmax": _softmax(torch.softmax),
    "LogSoftmax": _softmax(torch.log_softmax),
    "LeakyRelu": _with(lambda value, alpha: torch.where(value < 0, value * alpha, value), alpha=0.01),
    "HardSigmoid": _with(_hard_sigmoid, alpha=0.2, beta=0.5),
    "Elu": _with(_elu, alpha=1.0),
    "Selu": _with(_selu, alpha=1.67326319217681884765625, gamma=1.05070102214813232421875),
    "Celu": _with(_celu, alpha=1.0),
    "ThresholdedRelu": _with(lambda value, alpha: torch.where(value > alpha, value, 0), alpha=1.0),
    "Swish": _with(lambda value, alpha: value * torch.sigmoid(alpha * value), alpha=1.0),
    "Shrink": _with(_shrink, lambd=0.5, bias=0.0),
}
