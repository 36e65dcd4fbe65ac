"""Activations."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lrexport.onnx_network.operators.facts import (
    Form,
    Forms,
    NodeFacts,
    Operator,
    Values,
    at,
    axis_of,
    needed,
    only,
    plain,
    unary,
)


def _with(function: Callable[..., Tensor], **defaults: float) -> Form:
    """An activation whose attributes are numbers."""

    def form(facts: NodeFacts) -> Operator | None:
        chosen = {name: float(facts.get(name, default)) for name, default in defaults.items()}
        return lambda values: (function(needed(values[0]), **chosen),)

    return only(form, *defaults)


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

    return None if facts.attributes else run


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

    return only(form, "axis")


def _hard_sigmoid(value: Tensor, alpha: float, beta: float) -> Tensor:
    return (alpha * value + beta).clamp(0, 1)


def _elu(value: Tensor, alpha: float) -> Tensor:
    return torch.where(value < 0, alpha * torch.expm1(value.clamp_max(0)), value)


def _selu(value: Tensor, alpha: float, gamma: float) -> Tensor:
    return gamma * _elu(value, alpha)


def _celu(facts: NodeFacts) -> Operator | None:
    alpha = float(facts.get("alpha", 1.0))
    if alpha <= 0:
        return None

    def run(values: Values) -> tuple[Tensor, ...]:
        value = needed(values[0])
        # The exponent is taken of what is below zero only: elsewhere it may be infinite, and its gradient no number.
        return (value.clamp_min(0) + alpha * torch.expm1(value.clamp_max(0) / alpha),)

    return run


def _hard_max(value: Tensor, dim: int) -> Tensor:
    return torch.zeros_like(value).scatter(dim, value.argmax(dim, keepdim=True), 1)


def _shrink(value: Tensor, lambd: float, bias: float) -> Tensor:
    shrunk = torch.where(value < -lambd, value + bias, torch.zeros_like(value))
    return torch.where(value > lambd, value - bias, shrunk)


FORMS: Forms = {
    "Celu": only(_celu, "alpha"),
    "Clip": _clip,
    "Elu": _with(_elu, alpha=1.0),
    "Gelu": only(_gelu, "approximate"),
    "HardSigmoid": _with(_hard_sigmoid, alpha=0.2, beta=0.5),
    "HardSwish": unary(lambda value: value * _hard_sigmoid(value, 1 / 6, 0.5)),
    "Hardmax": _softmax(_hard_max),
    "LeakyRelu": _with(lambda value, alpha: torch.where(value < 0, value * alpha, value), alpha=0.01),
    "LogSoftmax": _softmax(torch.log_softmax),
    "Mish": unary(F.mish),
    "PRelu": plain(_prelu),
    "Relu": unary(torch.relu),
    "Selu": _with(_selu, alpha=1.67326319217681884765625, gamma=1.05070102214813232421875),
    "Shrink": _with(_shrink, lambd=0.5, bias=0.0),
    "Sigmoid": unary(torch.sigmoid),
    "Softmax": _softmax(torch.softmax),
    "Softplus": unary(lambda value: torch.logaddexp(value, value.new_zeros(()))),
    "Softsign": unary(F.softsign),
    "Swish": _with(lambda value, alpha: value * torch.sigmoid(alpha * value), alpha=1.0),
    "Tanh": unary(torch.tanh),
    "ThresholdedRelu": _with(lambda value, alpha: torch.where(value > alpha, value, 0), alpha=1.0),
}
