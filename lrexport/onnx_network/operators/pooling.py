"""Pooling. Averages and maxima over windows are taken from patches padded as ONNX defines them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lrexport.onnx_network.operators.convolutions import AUTOMATIC, pad_zeros, pads_of
from lrexport.onnx_network.operators.facts import Forms, NodeFacts, Operator, Values, needed

_MAX = (F.max_pool1d, F.max_pool2d, F.max_pool3d)
_ONE = (F.conv1d, F.conv2d, F.conv3d)


def _window(facts: NodeFacts) -> tuple[list[int], list[int], list[int]]:
    kernel = list(facts.get("kernel_shape"))
    ones = [1] * len(kernel)
    return kernel, list(facts.get("strides") or ones), list(facts.get("dilations") or ones)


def _sides(
    facts: NodeFacts, sizes: Sequence[int], kernel: list[int], strides: list[int], dilations: list[int]
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Declared padding, and what ceil_mode adds after it so that the last window is whole."""
    sides = pads_of(facts, sizes, kernel, strides, dilations)
    if not facts.get("ceil_mode", 0):
        return sides, [(0, 0)] * len(kernel)
    more = []
    for size, (before, after), length, stride, dilation in zip(sizes, sides, kernel, strides, dilations, strict=True):
        reach = dilation * (length - 1) + 1
        padded = size + before + after
        outputs = -(-(padded - reach) // stride) + 1
        if (outputs - 1) * stride >= size + before:  # a window that begins in the padding after is left out
            outputs -= 1
        more.append((0, max(0, (outputs - 1) * stride + reach - padded)))
    return sides, more


def _max_pool(facts: NodeFacts) -> Operator | None:
    unknown = facts.outputs > 1 or facts.get("storage_order", 0) or facts.text("auto_pad", "NOTSET") not in AUTOMATIC
    if unknown or not 1 <= len(facts.get("kernel_shape", ())) <= 3:
        return None
    kernel, strides, dilations = _window(facts)

    def run(values: Values) -> tuple[Tensor, ...]:
        value = needed(values[0])
        sides, more = _sides(facts, value.shape[2:], kernel, strides, dilations)
        lowest = float("-inf") if value.is_floating_point() else torch.iinfo(value.dtype).min
        value = pad_zeros(pad_zeros(value, sides, lowest), more, lowest)
        return (_MAX[len(kernel) - 1](value, kernel, strides, 0, dilations),)

    return run


def _average_pool(facts: NodeFacts) -> Operator | None:
    if facts.text("auto_pad", "NOTSET") not in AUTOMATIC or not 1 <= len(facts.get("kernel_shape", ())) <= 3:
        return None
    kernel, strides, dilations = _window(facts)
    with_padding = bool(facts.get("count_include_pad", 0))

    def run(values: Values) -> tuple[Tensor, ...]:
        value = needed(values[0])
        sides, more = _sides(facts, value.shape[2:], kernel, strides, dilations)
        counted = torch.ones_like(value[:1, :1])
        counted = pad_zeros(pad_zeros(counted, sides, 1.0 if with_padding else 0.0), more)
        value = pad_zeros(pad_zeros(value, sides), more)
        return (_summed(value, kernel, strides, dilations) / _summed(counted, kernel, strides, dilations),)

    return run


def _summed(value: Tensor, kernel: list[int], strides: list[int], dilations: list[int]) -> Tensor:
    """Sums over windows, channel by channel."""
    channels = value.shape[1]
    flat = value.reshape(-1, 1, *value.shape[2:])
    ones = value.new_ones(1, 1, *kernel)
    made = _ONE[len(kernel) - 1](flat, ones, None, strides, 0, dilations)
    return made.reshape(value.shape[0], channels, *made.shape[2:])


def _global(maximum: bool) -> Operator:
    def run(values: Values) -> tuple[Tensor, ...]:
        value = needed(values[0])
        axes = tuple(range(2, value.ndim))
        return (value.amax(axes, keepdim=True) if maximum else value.mean(axes, keepdim=True),)

    return run


FORMS: Forms = {
    "AveragePool": _average_pool,
    "MaxPool": _max_pool,
    "GlobalAveragePool": lambda facts: _global(False),
    "GlobalMaxPool": lambda facts: _global(True),
}
