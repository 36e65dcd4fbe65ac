"""Convolutions, whose weights may be computed by the graph, and the padding that they and pools share."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from lrexport.onnx_network.operators.facts import Forms, NodeFacts, Operator, Values, at, needed

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


def _conv(facts: NodeFacts) -> Operator | None:
    if facts.text("auto_pad", "NOTSET") not in AUTOMATIC:
        return None
    group = int(facts.get("group", 1))

    def run(values: Values) -> tuple[Tensor, ...]:
        value, weight, bias = needed(values[0]), needed(values[1]), at(values, 2)
        axes = weight.ndim - 2
        strides, dilations = list(facts.get("strides") or [1] * axes), list(facts.get("dilations") or [1] * axes)
        sides = pads_of(facts, value.shape[2:], weight.shape[2:], strides, dilations)
        even = all(before == after for before, after in sides)
        padding = [before for before, _ in sides] if even else [0] * axes
        value = value if even else pad_zeros(value, sides)
        return (_CONVOLUTIONS[axes - 1](value, weight, bias, strides, padding, dilations, group),)

    return run


def _conv_transpose(facts: NodeFacts) -> Operator | None:
    if facts.text("auto_pad", "NOTSET") != "NOTSET" or facts.get("output_shape") is not None:
        return None
    group = int(facts.get("group", 1))

    def run(values: Values) -> tuple[Tensor, ...]:
        value, weight, bias = needed(values[0]), needed(values[1]), at(values, 2)
        axes = weight.ndim - 2
        ones = [1] * axes
        strides, dilations = list(facts.get("strides") or ones), list(facts.get("dilations") or ones)
        more = list(facts.get("output_padding") or [0] * axes)
        pads = list(facts.get("pads") or [0] * (2 * axes))
        # What pads remove is cut off afterwards: torch removes as much on both sides.
        whole = _TRANSPOSED[axes - 1](value, weight, None, strides, [0] * axes, 0, group, dilations)
        for axis, added in enumerate(more):
            before, after = pads[axis], pads[axes + axis] - added
            size = whole.shape[2 + axis]
            if after < 0:
                whole = F.pad(whole, [0, 0] * (axes - 1 - axis) + [0, -after])
                after, size = 0, whole.shape[2 + axis]
            whole = whole.narrow(2 + axis, before, size - before - after)
        return (whole if bias is None else whole + bias.reshape(-1, *ones),)

    return run


FORMS: Forms = {"Conv": _conv, "ConvTranspose": _conv_transpose}
