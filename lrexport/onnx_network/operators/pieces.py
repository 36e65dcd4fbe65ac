"""Operators that join, cut, repeat and pad tensors, and that move channels into space and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lrexport.onnx_network.operators.facts import (
    Forms,
    NodeFacts,
    Operator,
    Values,
    at,
    axis_of,
    check_size,
    integers,
    listed,
    needed,
    numbers_of,
    only,
    plain,
)


def _concat(facts: NodeFacts) -> Operator | None:
    axis = facts.get("axis")
    if axis is None:
        return None
    return lambda values: (torch.cat([needed(value) for value in values], dim=axis),)


def _split(facts: NodeFacts) -> Operator | None:
    axis, attribute, parts = int(facts.get("axis", 0)), facts.get("split"), facts.get("num_outputs")

    def run(values: Values) -> tuple[Tensor, ...]:
        value = needed(values[0])
        sizes = integers(at(values, 1)) if facts.opset >= 13 else attribute
        if sizes is None:
            size, count = value.shape[axis], parts or facts.outputs
            portion = -(-size // count)
            sizes = [min(portion, max(0, size - portion * number)) for number in range(count)]
        return tuple(value.split(sizes, dim=axis))

    return run


def _slice(facts: NodeFacts) -> Operator | None:
    def run(values: Values) -> tuple[Tensor, ...]:
        value = needed(values[0])
        if facts.opset < 10:
            starts, ends, axes, steps = facts.get("starts"), facts.get("ends"), facts.get("axes"), None
        else:
            starts, ends, axes, steps = (integers(at(values, place)) for place in range(1, 5))
        axes = list(range(len(starts))) if axes is None else axes
        for start, end, axis, step in zip(starts, ends, axes, steps or [1] * len(starts), strict=True):
            value = _sliced(value, start, end, axis_of(axis, value.ndim), step)
        return (value,)

    return run


# For ONNX Runtime the largest integers are the end in the direction of the step.
_LARGEST = (2**31 - 1, 2**63 - 1)


def _sliced(value: Tensor, start: int, end: int, axis: int, step: int) -> Tensor:
    size, beyond = value.shape[axis], end in _LARGEST
    start, end = (start + size if start < 0 else start), (end + size if end < 0 else end)
    if step > 0:
        start, end = min(max(start, 0), size), min(max(end, 0), size)
        chosen = [slice(None)] * axis + [slice(start, max(start, end), step)]
        return value[tuple(chosen)]
    start, end = min(max(start, 0), size - 1), min(max(end, -1), size - 1)
    end = -1 if beyond else end
    return value.index_select(axis, torch.arange(start, min(start, end), step, device=value.device))


def _tile(values: Values) -> tuple[Tensor, ...]:
    value, times = needed(values[0]), listed(needed(values[1]))
    check_size([size * count for size, count in zip(value.shape, times, strict=True)])
    return (value.repeat(times),)


_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}


def _pad(facts: NodeFacts) -> Operator | None:
    mode = _MODES.get(facts.text("mode", "constant"))
    if mode is None:
        return None

    def run(values: Values) -> tuple[Tensor, ...]:
        value = needed(values[0])
        if facts.opset < 11:
            pads, fill, axes = list(facts.get("pads")), float(facts.get("value", 0.0)), None
        else:
            pads, given, axes = listed(needed(values[1])), at(values, 2), integers(at(values, 3))
            fill = 0 if given is None or not given.numel() else numbers_of(given)[0]
        axes = list(range(value.ndim)) if axes is None else [axis_of(axis, value.ndim) for axis in axes]
        sides = {axis: (pads[place], pads[place + len(axes)]) for place, axis in enumerate(axes)}
        return (_padded(value, sides, mode, fill),)

    return run


def _padded(value: Tensor, sides: dict[int, tuple[int, int]], mode: str, fill: Any) -> Tensor:
    check_size([size + sum(map(abs, sides.get(axis, (0, 0)))) for axis, size in enumerate(value.shape)])
    if mode == "constant":
        flat = [side for axis in reversed(range(value.ndim)) for side in sides.get(axis, (0, 0))]
        return torch.constant_pad_nd(value, flat, fill)
    for axis, (before, after) in sides.items():
        size = value.shape[axis]
        places = torch.arange(-before, size + after, device=value.device)
        if mode == "replicate":
            places = places.clamp(0, size - 1)
        elif mode == "circular":
            places = places % size
        else:
            period = max(1, 2 * (size - 1))
            places = (places % period).abs()
            places = torch.where(places > size - 1, period - places, places)
        value = value.index_select(axis, places)
    return value


def _depth_to_space(facts: NodeFacts) -> Operator | None:
    block, mode = int(facts.get("blocksize", 1)), facts.text("mode", "DCR")

    def run(values: Values) -> tuple[Tensor, ...]:
        value = needed(values[0])
        batch, channels, height, width = value.shape
        left = channels // block**2
        if mode == "DCR":
            moved = value.reshape(batch, block, block, left, height, width).permute(0, 3, 4, 1, 5, 2)
        else:
            moved = value.reshape(batch, left, block, block, height, width).permute(0, 1, 4, 2, 5, 3)
        return (moved.reshape(batch, left, height * block, width * block),)

    return run if mode in ("DCR", "CRD") else None


def _space_to_depth(facts: NodeFacts) -> Operator | None:
    block, mode = int(facts.get("blocksize", 1)), facts.text("mode", "DCR")
    order = {"DCR": (0, 3, 5, 1, 2, 4), "CRD": (0, 1, 3, 5, 2, 4)}.get(mode)

    def run(values: Values) -> tuple[Tensor, ...]:
        value = needed(values[0])
        batch, channels, height, width = value.shape
        split = value.reshape(batch, channels, height // block, block, width // block, block)
        assert order is not None
        return (split.permute(order).reshape(batch, channels * block**2, height // block, width // block),)

    return run if order is not None else None


FORMS: Forms = {
    "Concat": only(_concat, "axis"),
    "DepthToSpace": only(_depth_to_space, "blocksize", "mode"),
    "Pad": only(_pad, "mode", "pads", "value"),
    "Slice": only(_slice, "starts", "ends", "axes"),
    "SpaceToDepth": only(_space_to_depth, "blocksize", "mode"),
    "Split": only(_split, "axis", "split", "num_outputs"),
    "Tile": plain(_tile),
}
