"""Operators of ONNX Runtime's domain com.microsoft that its optimiser puts into graphs of networks.

Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lrexport.onnx_network.operators import convolutions
from lrexport.onnx_network.operators.facts import Forms, NodeFacts, Operator, Values, at, needed, only, plain, unary
from lrexport.onnx_network.operators.normalisation import normal


def _bias_gelu(values: Values) -> tuple[Tensor, ...]:
    return (F.gelu(needed(values[0]) + needed(values[1])),)


def _fast_gelu(values: Values) -> tuple[Tensor, ...]:
    bias = at(values, 1)
    value = needed(values[0])
    return (F.gelu(value if bias is None else value + bias, approximate="tanh"),)


def _quick_gelu(facts: NodeFacts) -> Operator | None:
    alpha = float(facts.get("alpha", 1.702))

    def run(values: Values) -> tuple[Tensor, ...]:
        value = needed(values[0])
        return (value * torch.sigmoid(alpha * value),)

    return run


def _fused_mat_mul(facts: NodeFacts) -> Operator | None:
    alpha = float(facts.get("alpha", 1.0))
    turn_one, turn_other = bool(facts.get("transA", 0)), bool(facts.get("transB", 0))
    if facts.get("transBatchA", 0) or facts.get("transBatchB", 0):
        return None

    def run(values: Values) -> tuple[Tensor, ...]:
        one, other = needed(values[0]), needed(values[1])
        one = one.mT if turn_one and one.ndim > 1 else one
        other = other.mT if turn_other and other.ndim > 1 else other
        product = one @ other
        return (product if alpha == 1.0 else alpha * product,)

    return run


def _activation(facts: NodeFacts) -> Callable[[Tensor], Tensor] | None:
    """The activation that is part of a convolution."""
    numbers = [float(number) for number in facts.get("activation_params") or ()]
    name = facts.text("activation", "")
    if name in ("Relu", "Sigmoid", "Tanh") and not numbers:
        return {"Relu": torch.relu, "Sigmoid": torch.sigmoid, "Tanh": torch.tanh}[name]
    if name == "LeakyRelu" and len(numbers) == 1:
        return lambda value: torch.where(value < 0, value * numbers[0], value)
    if name == "Clip" and len(numbers) == 2:
        return lambda value: value.clamp(*numbers)
    if name == "HardSigmoid" and len(numbers) == 2:
        return lambda value: (numbers[0] * value + numbers[1]).clamp(0, 1)
    return None if name else lambda value: value


def _fused_conv(facts: NodeFacts) -> Operator | None:
    # ``Conv`` looks at the attributes that are left.
    kept = {name: value for name, value in facts.attributes.items() if name not in ("activation", "activation_params")}
    conv = convolutions.FORMS["Conv"](NodeFacts("Conv", facts.opset, kept, "", min(facts.inputs, 3), 1))
    activation = _activation(facts)
    if conv is None or activation is None:
        return None

    def run(values: Values) -> tuple[Tensor, ...]:
        (made,) = conv(values[:3])
        added = at(values, 3)
        return (activation(made if added is None else made + added),)

    return run


def _skip_layer_norm(facts: NodeFacts) -> Operator | None:
    if facts.outputs > 1:
        return None
    epsilon = float(facts.get("epsilon", 1e-12))

    def run(values: Values) -> tuple[Tensor, ...]:
        value, skip, scale = (needed(each) for each in values[:3])
        shift, bias = at(values, 3), at(values, 4)
        value = value + skip if bias is None else value + skip + bias
        made = normal(value, (-1,), epsilon)[0] * scale
        return (made if shift is None else made + shift,)

    return run


FORMS: Forms = {
    "BiasGelu": plain(_bias_gelu),
    "FastGelu": plain(_fast_gelu),
    "FusedConv": _fused_conv,
    "FusedMatMul": only(_fused_mat_mul, "alpha", "transA", "transB", "transBatchA", "transBatchB"),
    "Gelu": unary(F.gelu),
    "QuickGelu": only(_quick_gelu, "alpha"),
    "SkipLayerNormalization": only(_skip_layer_norm, "epsilon"),
}
