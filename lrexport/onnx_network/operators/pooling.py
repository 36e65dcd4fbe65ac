"""Pooling. Averages and maxima over windows are taken from patches padded as ONNX defines them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lrexport.onnx_network.operators.convolutions import AUTOMATIC, pad_zeros, pads_of
from lrexport.onnx_network.operators.facts import Forms, NodeFacts, Operator, Values, needed, only, plain

_MAX = (F.max_pool1d, F.max_pool2d, F.max_pool3d)


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


def _covered(facts: NodeFacts) -> bool:
    return facts.text("auto_pad", "NOTSET") in AUTOMATIC and 1 <= len(facts.get("kernel_shape", ())) <= 3


def _max_pool(facts: NodeFacts) -> Operator | None:
    if facts.outputs > 1 or facts.get("storage_order", 0) or not _covered(facts):
        return None
    kernel, strides, dilations = _window(facts)

    def run(values: Values) -> tuple[Tensor, ...]:
        value = needed(values[0])
        floating = value if value.is_floating_point() else value.to(torch.float32)  # exact for 8 bits
        sides, more = _sides(facts, value.shape[2:], kernel, strides, dilations)
        added = [(before, after + last) for (before, after), (_, last) in zip(sides, more, strict=True)]
        floating = pad_zeros(floating, added, float("-inf"))
        return (_MAX[len(kernel) - 1](floating, kernel, strides, 0, dilations).to(value.dtype),)

    return run


def _average_pool(facts: NodeFacts) -> Operator | None:
    if not _covered(facts):
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


def _lp_pool(facts: NodeFacts) -> Operator | None:
    power = int(facts.get("p", 2))
    if not _covered(facts) or power not in (1, 2):
        return None
    kernel, strides, dilations = _window(facts)

    def run(values: Values) -> tuple[Tensor, ...]:
        value = needed(values[0])
        sides, more = _sides(facts, value.shape[2:], kernel, strides, dilations)
        value = pad_zeros(pad_zeros(value, sides), more)
        if power == 1:
            return (_summed(value.abs(), kernel, strides, dilations),)
        return (_summed(value.square(), kernel, strides, dilations).sqrt(),)

    return run


def _summed(value: Tensor, kernel: list[int], strides: list[int], dilations: list[int]) -> Tensor:
    """Sums over windows, channel by channel: axis by axis, as views of the tensor."""
    for place, (length, stride, dilation) in enumerate(zip(kernel, strides, dilations, strict=True)):
        windows = value.unfold(2 + place, dilation * (length - 1) + 1, stride)
        value = windows[..., ::dilation].sum(-1)
    return value


def _global(reduce: Callable[[Tensor, tuple[int, ...]], Tensor]) -> Operator:
    return lambda values: (reduce(needed(values[0]), tuple(range(2, needed(values[0]).ndim))),)


def _global_lp(facts: NodeFacts) -> Operator | None:
    power = int(facts.get("p", 2))
    if power not in (1, 2):
        return None
    return _global(lambda value, axes: torch.linalg.vector_norm(value, power, axes, keepdim=True))


_ATTRIBUTES = ("auto_pad", "ceil_mode", "dilations", "kernel_shape", "pads", "strides")
FORMS: Forms = {
    "AveragePool": only(_average_pool, *_ATTRIBUTES, "count_include_pad"),
    "GlobalAveragePool": plain(_global(lambda value, axes: value.mean(axes, keepdim=True))),
    "GlobalLpPool": only(_global_lp, "p"),
    "GlobalMaxPool": plain(_global(lambda value, axes: value.amax(axes, keepdim=True))),
    "LpPool": only(_lp_pool, *_ATTRIBUTES, "p"),
    "MaxPool": only(_max_pool, *_ATTRIBUTES, "storage_order"),
}
