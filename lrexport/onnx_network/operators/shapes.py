"""Operators that move values: shapes, axes, padding, casts, constants."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lrexport.onnx_network.operators.facts import (
    FLOATS,
    Forms,
    NodeFacts,
    NotCoveredError,
    Operator,
    Values,
    at,
    axis_of,
    check_size,
    from_array,
    integers,
    listed,
    needed,
    type_of,
)


def _reshape(facts: NodeFacts) -> Operator | None:
    if facts.opset < 5:
        return None
    keep_zeros = bool(facts.get("allowzero", 0))

    def run(values: Values) -> tuple[Tensor, ...]:
        value, sizes = needed(values[0]), listed(needed(values[1]))
        if not keep_zeros:
            sizes = [value.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
        if -1 in sizes and 0 in sizes:
            known = 1
            for size in sizes:
                known *= size if size not in (-1, 0) else 1
            sizes = [0 if size == -1 else size for size in sizes]
        return (value.reshape(sizes),)

    return run


def _transpose(facts: NodeFacts) -> Operator | None:
    order = facts.get("perm")

    def run(values: Values) -> tuple[Tensor, ...]:
        value = needed(values[0])
        return (value.permute(*order) if order is not None else value.permute(*reversed(range(value.ndim))),)

    return run


def _axes(facts: NodeFacts, values: Values, since: int, place: int = 1) -> list[int] | None:
    """Axes that became an input in opset ``since``."""
    return integers(at(values, place)) if facts.opset >= since else facts.get("axes")


def _squeeze(facts: NodeFacts) -> Operator | None:
    def run(values: Values) -> tuple[Tensor, ...]:
        value, axes = needed(values[0]), _axes(facts, values, 13)
        if axes is None:
            return (value.squeeze(),)
        chosen = {axis_of(axis, value.ndim) for axis in axes}
        if any(value.shape[axis] != 1 for axis in chosen):
            raise ValueError(f"Squeeze of axes {sorted(chosen)} of shape {tuple(value.shape)}")
        return (value.reshape([size for axis, size in enumerate(value.shape) if axis not in chosen]),)

    return run


def _unsqueeze(facts: NodeFacts) -> Operator | None:
    def run(values: Values) -> tuple[Tensor, ...]:
        value, axes = needed(values[0]), _axes(facts, values, 13)
        if axes is None:
            raise ValueError("Unsqueeze without axes")
        rank = value.ndim + len(axes)
        for axis in sorted(axis_of(axis, rank) for axis in axes):
            value = value.unsqueeze(axis)
        return (value,)

    return run


def _flatten(facts: NodeFacts) -> Operator | None:
    axis = int(facts.get("axis", 1))

    def run(values: Values) -> tuple[Tensor, ...]:
        value = needed(values[0])
        first = axis + value.ndim if axis < 0 else axis
        rows = 1
        for size in value.shape[:first]:
            rows *= size
        return (
            value.reshape(rows, -1) if value.numel() else value.reshape(rows, value[(0,) * first].numel() if rows else 0),
        )

    return run


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


def _sliced(value: Tensor, start: int, end: int, axis: int, step: int) -> Tensor:
    size = value.shape[axis]
    start, end = (start + size if start < 0 else start), (end + size if end < 0 else end)
    if step > 0:
        start, end = min(max(start, 0), size), min(max(end, 0), size)
        chosen = [slice(None)] * axis + [slice(start, max(start, end), step)]
        return value[tuple(chosen)]
    start, end = min(max(start, 0), size - 1), min(max(end, -1), size - 1)
    return value.index_select(axis, torch.arange(start, end, step, device=value.device))


def _expand(facts: NodeFacts) -> Operator | None:
    def run(values: Values) -> tuple[Tensor, ...]:
        value, sizes = needed(values[0]), listed(needed(values[1]))
        shape = torch.broadcast_shapes(value.shape, tuple(sizes))
        return (value.expand(check_size(shape)),)

    return run


def _tile(facts: NodeFacts) -> Operator | None:
    if facts.opset < 6:
        return None

    def run(values: Values) -> tuple[Tensor, ...]:
        value, times = needed(values[0]), listed(needed(values[1]))
        check_size([size * count for size, count in zip(value.shape, times, strict=True)])
        return (value.repeat(times),)

    return run


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
            fill = 0 if given is None or not given.numel() else given.reshape(()).item()
        axes = list(range(value.ndim)) if axes is None else [axis_of(axis, value.ndim) for axis in axes]
        sides = {axis: (pads[place], pads[place + len(axes)]) for place, axis in enumerate(axes)}
        return (_padded(value, sides, mode, fill),)

    return run


def _padded(value: Tensor, sides: dict[int, tuple[int, int]], mode: str, fill: Any) -> Tensor:
    check_size([size + sum(map(abs, sides.get(axis, (0, 0)))) for axis, size in enumerate(value.shape)])
    if mode == "constant":
        flat = [side for axis in reversed(range(value.ndim)) for side in sides.get(axis, (0, 0))]
        return F.pad(value, flat, value=fill)
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


def _shape(facts: NodeFacts) -> Operator | None:
    start, end = facts.get("start", 0), facts.get("end")

    def run(values: Values) -> tuple[Tensor, ...]:
        value = needed(values[0])
        return (torch.tensor(list(value.shape)[start:end], dtype=torch.int64, device=value.device),)

    return run


def _size(values: Values) -> tuple[Tensor, ...]:
    value = needed(values[0])
    return (torch.tensor(value.numel(), dtype=torch.int64, device=value.device),)


def _constant_of_shape(facts: NodeFacts) -> Operator | None:
    array = facts.get("value")
    fill = torch.zeros(1) if array is None else from_array(array)
    if fill is None:
        return None

    def run(values: Values) -> tuple[Tensor, ...]:
        shape = needed(values[0])
        assert fill is not None
        return (fill.to(shape.device).reshape(()).expand(check_size(listed(shape))).clone(),)

    return run


def _constant(facts: NodeFacts) -> Operator | None:
    made = constant_value(facts)
    return None if made is None else lambda values: (made,)


def constant_value(facts: NodeFacts) -> Tensor | None:
    """The value of a Constant node; None for text and sparse tensors."""
    if not facts.has_only("value", "value_float", "value_floats", "value_int", "value_ints"):
        return None
    if "value" in facts.attributes:
        return from_array(facts.attributes["value"])
    ((name, value),) = facts.attributes.items()
    return torch.tensor(value, dtype=torch.float32 if "float" in name else torch.int64)


def _range(values: Values) -> tuple[Tensor, ...]:
    start, end, step = (needed(value) for value in values)
    if not start.is_floating_point():
        first, last, by = (int(value) for value in (start, end, step))
        check_size([max(0, -(-(last - first) // by))])
        return (torch.arange(first, last, by, dtype=start.dtype, device=start.device),)
    count = max(0, int(torch.ceil((end - start) / step)))
    check_size([count])
    return (start + torch.arange(count, dtype=start.dtype, device=start.device) * step,)


def _cast(facts: NodeFacts) -> Operator | None:
    code = facts.get("to")
    if type_of(code) is None:
        return None

    def run(values: Values) -> tuple[Tensor, ...]:
        value = needed(values[0])
        if code in FLOATS:
            # A network computes in one precision, that of its weights.
            return (value if value.is_floating_point() else value.to(torch.float32),)
        if code == 9:
            return (value != 0,)
        return (value.to(type_of(code)),)

    return run


def _cast_like(values: Values) -> tuple[Tensor, ...]:
    value, like = needed(values[0]), needed(values[1])
    if like.is_floating_point() and value.is_floating_point():
        return (value,)
    return (value != 0 if like.dtype == torch.bool else value.to(like.dtype),)


def _depth_to_space(facts: NodeFacts) -> Operator | None:
    block, mode = int(facts.get("blocksize", 1)), facts.text("mode", "DCR")

    def run(values: Values) -> tuple[Tensor, ...]:
        value = needed(values[0])
        batch, channels, height, width = value.shape
        if mode == "CRD":
            return (F.pixel_shuffle(value, block),)
        split = value.reshape(batch, block, block, channels // block**2, height, width)
        moved = split.permute(0, 3, 4, 1, 5, 2)
        return (moved.reshape(batch, channels // block**2, height * block, width * block),)

    return run if mode in ("DCR", "CRD") else None


def _space_to_depth(facts: NodeFacts) -> Operator | None:
    if not facts.has_only("blocksize"):
        return None
    block = int(facts.get("blocksize", 1))

    def run(values: Values) -> tuple[Tensor, ...]:
        value = needed(values[0])
        batch, channels, height, width = value.shape
        split = value.reshape(batch, channels, height // block, block, width // block, block)
        moved = split.permute(0, 3, 5, 1, 2, 4)
        return (moved.reshape(batch, channels * block**2, height // block, width // block),)

    return run


def _dropout(facts: NodeFacts) -> Operator | None:
    if facts.opset < 7 or facts.outputs > 1:
        return None

    def run(values: Values) -> tuple[Tensor, ...]:
        training = at(values, 2)
        if training is not None and bool(training):
            raise NotCoveredError("Dropout in training mode draws random numbers")
        return (needed(values[0]),)

    return run


def _eye_like(facts: NodeFacts) -> Operator | None:
    kind, shift = facts.get("dtype"), int(facts.get("k", 0))

    def run(values: Values) -> tuple[Tensor, ...]:
        value = needed(values[0])
        dtype = value.dtype if kind is None else type_of(kind)
        ones = torch.ones(value.shape, dtype=dtype, device=value.device)
        return (torch.triu(torch.tril(ones, shift), shift),)

    return run if kind is None or type_of(kind) is not None else None


def _always(run: Operator) -> Any:
    return lambda facts: run if not facts.attributes else None


FORMS: Forms = {
    "Cast": _cast,
    "CastLike": lambda facts: _cast_like if facts.has_only("saturate", "round_mode") else None,
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "DepthToSpace": _depth_to_space,
    "Dropout": _dropout,
    "Expand": _expand,
    "EyeLike": _eye_like,
    "Flatten": _flatten,
    "Pad": _pad,
    "Range": _always(_range),
    "Reshape": _reshape,
    "Shape": _shape,
    "Size": _always(_size),
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
