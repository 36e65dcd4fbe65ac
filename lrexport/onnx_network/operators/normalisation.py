"""Normalisation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lrexport.onnx_network.operators.facts import (
    Forms,
    NodeFacts,
    Operator,
    Values,
    at,
    axis_of,
    needed,
    only,
)


def _batch(facts: NodeFacts) -> Operator | None:
    if facts.outputs > 1 or facts.get("training_mode", 0) or not facts.get("spatial", 1):
        return None
    epsilon = float(facts.get("epsilon", 1e-5))

    def run(values: Values) -> tuple[Tensor, ...]:
        value, scale, bias, mean, variance = (needed(each) for each in values)
        # Not torch's own, which has no gradient of the statistics: a graph may compute them.
        factor = scale * (variance + epsilon).rsqrt()
        shift = bias - mean * factor
        return (value * _by_channel(factor, value.ndim) + _by_channel(shift, value.ndim),)

    return run


def normal(value: Tensor, axes: tuple[int, ...], epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """The values with mean 0 and variance 1 over the axes; their mean, and one over their deviation."""
    mean = value.mean(axes, keepdim=True)
    centred = value - mean
    inverse = (centred.square().mean(axes, keepdim=True) + epsilon).rsqrt()
    return centred * inverse, mean, inverse


def _by_channel(value: Tensor, rank: int) -> Tensor:
    """(C,) as (C, 1, …), to multiply a tensor of this rank channel by channel."""
    return value.reshape(-1, *[1] * (rank - 2))


def _instance(facts: NodeFacts) -> Operator | None:
    epsilon = float(facts.get("epsilon", 1e-5))

    def run(values: Values) -> tuple[Tensor, ...]:
        value, scale, bias = (needed(each) for each in values)
        made, _, _ = normal(value, tuple(range(2, value.ndim)), epsilon)
        return (made * _by_channel(scale, value.ndim) + _by_channel(bias, value.ndim),)

    return run


def _layer(facts: NodeFacts) -> Operator | None:
    if facts.get("stash_type", 1) != 1:
        return None
    axis, epsilon = int(facts.get("axis", -1)), float(facts.get("epsilon", 1e-5))

    def run(values: Values) -> tuple[Tensor, ...]:
        value, scale, bias = needed(values[0]), needed(values[1]), at(values, 2)
        made, mean, inverse = normal(value, tuple(range(axis_of(axis, value.ndim), value.ndim)), epsilon)
        made = made * scale
        return (made if bias is None else made + bias, mean, inverse)

    return run


def root_mean_square(value: Tensor, axes: tuple[int, ...], epsilon: float) -> Tensor:
    """The values divided by the root of their mean square over the axes."""
    return value * (value.square().mean(axes, keepdim=True) + epsilon).rsqrt()


def _rms(facts: NodeFacts) -> Operator | None:
    if facts.get("stash_type", 1) != 1:
        return None
    axis, epsilon = int(facts.get("axis", -1)), float(facts.get("epsilon", 1e-5))

    def run(values: Values) -> tuple[Tensor, ...]:
        value, scale = needed(values[0]), needed(values[1])
        axes = tuple(range(axis_of(axis, value.ndim), value.ndim))
        return (root_mean_square(value, axes, epsilon) * scale,)

    return run


def _group(facts: NodeFacts) -> Operator | None:
    epsilon, groups = float(facts.get("epsilon", 1e-5)), int(facts.get("num_groups", 1))
    if facts.get("stash_type", 1) != 1:
        return None

    def run(values: Values) -> tuple[Tensor, ...]:
        value, scale, bias = (needed(each) for each in values)
        if facts.opset < 21:  # then scale and bias have one value a group, since then one a channel
            scale, bias = (each.repeat_interleave(value.shape[1] // groups) for each in (scale, bias))
        made, _, _ = normal(value.reshape(value.shape[0], groups, -1), (2,), epsilon)
        made = made.reshape(value.shape)
        return (made * _by_channel(scale, value.ndim) + _by_channel(bias, value.ndim),)

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
        norm = torch.linalg.vector_norm(value, power, axis, keepdim=True)
        return (torch.where(norm == 0, torch.zeros_like(value), value / torch.where(norm == 0, 1.0, norm)),)

    return run


def _mean_variance(facts: NodeFacts) -> Operator | None:
    axes = tuple(facts.get("axes") or (0, 2, 3))

    def run(values: Values) -> tuple[Tensor, ...]:
        value = needed(values[0])
        mean = value.mean(axes, keepdim=True)
        deviation = (value.square().mean(axes, keepdim=True) - mean.square()).clamp_min(0).sqrt()
        return ((value - mean) / (deviation + 1e-9),)

    return run


FORMS: Forms = {
    "BatchNormalization": only(_batch, "epsilon", "momentum", "training_mode", "spatial"),
    "GroupNormalization": only(_group, "epsilon", "num_groups", "stash_type"),
    "InstanceNormalization": only(_instance, "epsilon"),
    "LRN": only(_lrn, "alpha", "beta", "bias", "size"),
    "LayerNormalization": only(_layer, "axis", "epsilon", "stash_type"),
    "LpNormalization": only(_lp, "axis", "p"),
    "MeanVarianceNormalization": only(_mean_variance, "axes"),
    "RMSNormalization": only(_rms, "axis", "epsilon", "stash_type"),
}
