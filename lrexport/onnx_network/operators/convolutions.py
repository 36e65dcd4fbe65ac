"""Convolutions, whose weights may be computed by the graph, and the padding that they and pools share."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from lrexport.onnx_network.operators.facts import Forms, NodeFacts, NotCoveredError, Operator, Values, at, needed, only

_CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)
_TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
AUTOMATIC = ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")


def pads_of(
    facts: NodeFacts, sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> list[tuple[int, int]]:
    """Zeros before and after each axis, from ``pads`` or ``auto_pad``, for inputs of these sizes."""
    mode = facts.text("auto_pad", "NOTSET")
    if mode == "NOTSET":
        pads = list(facts.get("pads") or [0] * (2 * len(kernel)))
        return list(zip(pads[: len(kernel)], pads[len(kernel) :], strict=True))
    if mode == "VALID":
        return [(0, 0)] * len(kernel)
    sides = []
    for size, length, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        total = max(0, (-(-size // stride) - 1) * stride + dilation * (length - 1) + 1 - size)
        less = total // 2
        sides.append((less, total - less) if mode == "SAME_UPPER" else (total - less, less))
    return sides


def pad_zeros(value: Tensor, sides: Sequence[tuple[int, int]], fill: float = 0.0) -> Tensor:
    """The tensor with its last axes padded; itself if there is nothing to pad."""
    if not any(before or after for before, after in sides):
        return value
    return F.pad(value, [side for pair in reversed(sides) for side in pair], value=fill)


def _spatial_axes(weight: Tensor) -> int:
    if not 3 <= weight.ndim <= 5:
        raise NotCoveredError(f"a convolution with a weight of rank {weight.ndim}")
    return weight.ndim - 2


def _conv(facts: NodeFacts) -> Operator | None:
    if facts.text("auto_pad", "NOTSET") not in AUTOMATIC:
        return None
    group = int(facts.get("group", 1))

    def run(values: Values) -> tuple[Tensor, ...]:
        value, weight, bias = needed(values[0]), needed(values[1]), at(values, 2)
        axes = _spatial_axes(weight)
        strides, dilations = list(facts.get("strides") or [1] * axes), list(facts.get("dilations") or [1] * axes)
        sides = pads_of(facts, value.shape[2:], weight.shape[2:], strides, dilations)
        even = all(before == after for before, after in sides)
        padding = [before for before, _ in sides] if even else [0] * axes
        value = value if even else pad_zeros(value, sides)
        return (_CONVOLUTIONS[axes - 1](value, weight, bias, strides, padding, dilations, group),)

    return run


def _conv_transpose(facts: NodeFacts) -> Operator | None:
    if facts.text("auto_pad", "NOTSET") not in AUTOMATIC:
        return None
    group = int(facts.get("group", 1))

    def run(values: Values) -> tuple[Tensor, ...]:
        value, weight, bias = needed(values[0]), needed(values[1]), at(values, 2)
        axes = _spatial_axes(weight)
        ones = [1] * axes
        strides, dilations = list(facts.get("strides") or ones), list(facts.get("dilations") or ones)
        # What pads remove is cut off afterwards: torch removes as much on both sides.
        whole = _TRANSPOSED[axes - 1](value, weight, None, strides, [0] * axes, 0, group, dilations)
        added = list(facts.get("output_padding") or [0] * axes)
        sides = _removed(facts, value.shape[2:], whole.shape[2:], strides, added)
        whole = pad_zeros(whole, [(-before, more - after) for (before, after), more in zip(sides, added, strict=True)])
        return (whole if bias is None else whole + bias.reshape(-1, *ones),)

    return run


def _removed(
    facts: NodeFacts, sizes: Sequence[int], whole: Sequence[int], strides: Sequence[int], added: Sequence[int]
) -> list[tuple[int, int]]:
    """What a transposed convolution removes before and after each axis of its result, which is ``whole`` before."""
    mode, given, axes = facts.text("auto_pad", "NOTSET"), facts.get("output_shape"), len(sizes)
    if given is None and mode in ("NOTSET", "VALID"):
        pads = list(facts.get("pads") or [0] * (2 * axes)) if mode == "NOTSET" else [0] * (2 * axes)
        return list(zip(pads[:axes], pads[axes:], strict=True))
    if given is None:
        most = [length + more for length, more in zip(whole, added, strict=True)]
        given = [min(size * stride, length) for size, stride, length in zip(sizes, strides, most, strict=True)]
    sides = []
    for length, more, size in zip(whole, added, list(given)[-axes:], strict=True):
        total = length + more - size
        if total < 0:  # zeros are added, after
            sides.append((0, total))
            continue
        less = total // 2
        sides.append((less, total - less) if mode == "SAME_UPPER" else (total - less, less))
    return sides


_ATTRIBUTES = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
FORMS: Forms = {
    "Conv": only(_conv, *_ATTRIBUTES),
    "ConvTranspose": only(_conv_transpose, *_ATTRIBUTES, "output_padding", "output_shape"),
}
