"""Normalisation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lrexport.onnx_network.operators.facts import Forms, NodeFacts, Operator, Values, at, axis_of, needed


def _batch(facts: NodeFacts) -> Operator | None:
    if facts.opset < 7 or facts.outputs > 1 or facts.get("training_mode", 0) or not facts.get("spatial", 1):
        return None
    epsilon = float(facts.get("epsilon", 1e-5))

    def run(values: Values) -> tuple[Tensor, ...]:
        value, scale, bias, mean, variance = (needed(each) for each in values)
        return (F.batch_norm(value, mean, variance, scale, bias, False, 0.0, epsilon),)

    return run


def _instance(facts: NodeFacts) -> Operator | None:
    epsilon = float(facts.get("epsilon", 1e-5))

    def run(values: Values) -> tuple[Tensor, ...]:
        value, scale, bias = (needed(each) for each in values)
        return (F.instance_norm(value, None, None, scale, bias, True, 0.0, epsilon),)

    return run


def _layer(facts: NodeFacts) -> Operator | None:
    if facts.outputs > 1:
        return None
    axis, epsilon = int(facts.get("axis", -1)), float(facts.get("epsilon", 1e-5))

    def run(values: Values) -> tuple[Tensor, ...]:
        value, scale, bias = needed(values[0]), needed(values[1]), at(values, 2)
        axes = tuple(range(axis_of(axis, value.ndim), value.ndim))
        centred = value - value.mean(axes, keepdim=True)
        normal = centred / (centred.square().mean(axes, keepdim=True) + epsilon).sqrt() * scale
        return (normal if bias is None else normal + bias,)

    return run


def _rms(facts: NodeFacts) -> Operator | None:
    axis, epsilon = int(facts.get("axis", -1)), float(facts.get("epsilon", 1e-5))

    def run(values: Values) -> tuple[Tensor, ...]:
        value, scale = needed(values[0]), needed(values[1])
        axes = tuple(range(axis_of(axis, value.ndim), value.ndim))
        return (value / (value.square().mean(axes, keepdim=True) + epsilon).sqrt() * scale,)

    return run


def _group(facts: NodeFacts) -> Operator | None:
    # Scale and bias were for each group in opset 18, and are for each channel since opset 21.
    epsilon, groups = float(facts.get("epsilon", 1e-5)), int(facts.get("num_groups", 1))
    if facts.opset < 21:
        return None

    def run(values: Values) -> tuple[Tensor, ...]:
        value, scale, bias = (needed(each) for each in values)
        return (F.group_norm(value, groups, scale, bias, epsilon),)

    return run


def _lrn(facts: NodeFacts) -> Operator | None:
    alpha, beta = float(facts.get("alpha", 1e-4)), float(facts.get("beta", 0.75))
    bias, size = float(facts.get("bias", 1.0)), int(facts.get("size", 1))

    def run(values: Values) -> tuple[Tensor, ...]:
        value = needed(values[0])
        squares = value.square().movedim(1, -1)
        padded = F.pad(squares, [(size - 1) // 2, size // 2])
        summed = padded.unfold(-1, size, 1).sum(-1).movedim(-1, 1)
        return (value / (bias + alpha / size * summed) ** beta,)

    return run


def _lp(facts: NodeFacts) -> Operator | None:
    axis, power = int(facts.get("axis", -1)), int(facts.get("p", 2))
    if power not in (1, 2):
        return None

    def run(values: Values) -> tuple[Tensor, ...]:
        value = needed(values[0])
        norm = value.norm(p=power, dim=axis, keepdim=True)
        return (torch.where(norm == 0, torch.zeros_like(value), value / torch.where(norm == 0, 1.0, norm)),)

    return run


FORMS: Forms = {
    "BatchNormalization": _batch,
    "GroupNormalization": _group,
    "InstanceNormalization": _instance,
    "LRN": _lrn,
    "LayerNormalization": _layer,
    "LpNormalization": _lp,
    "RMSNormalization": _rms,
}
