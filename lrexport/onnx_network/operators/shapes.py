"""Operators that change shapes and types without touching values, that tell shapes, and that make constants."""

from __future__ import annotations

from math import ceil, prod

import torch
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
    only,
    plain,
    type_of,
    unary,
    with_numbers,
)


def _reshape(facts: NodeFacts) -> Operator | None:
    keep_zeros = bool(facts.get("allowzero", 0))

    def run(values: Values) -> tuple[Tensor, ...]:
        value, sizes = needed(values[0]), listed(needed(values[1]))
        if not keep_zeros:
            sizes = [value.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
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
        return (value.reshape(prod(value.shape[:first]), prod(value.shape[first:])),)

    return run


def _expand(values: Values) -> tuple[Tensor, ...]:
    value, sizes = needed(values[0]), listed(needed(values[1]))
    shape = torch.broadcast_shapes(value.shape, tuple(sizes))
    return (value.expand(check_size(shape)),)


def _shape(facts: NodeFacts) -> Operator | None:
    start, end = facts.get("start", 0), facts.get("end")

    def run(values: Values) -> tuple[Tensor, ...]:
        value = needed(values[0])
        sizes = list(value.shape)[start:end]
        return (with_numbers(torch.tensor(sizes, dtype=torch.int64, device=value.device), sizes),)

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
        count = max(0, -(-(last - first) // by))
        check_size([count])
        return (torch.arange(first, first + count * by, by, dtype=start.dtype, device=start.device),)
    count = max(0, ceil((float(end) - float(start)) / float(step)))  # in double precision, as ONNX Runtime
    check_size([count])
    return (start + torch.arange(count, dtype=start.dtype, device=start.device) * step,)


def _cast(facts: NodeFacts) -> Operator | None:
    code = facts.get("to")
    if type_of(code) is None:
        return None

    def run(values: Values) -> tuple[Tensor, ...]:
        value = needed(values[0])
        if code in FLOATS:
            # A network computes in one precision, that of its weights: it does not round to another one in between.
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


def _dropout(facts: NodeFacts) -> Operator | None:
    if facts.outputs > 1 and facts.opset < 12:  # the mask was not what it is now
        return None

    def run(values: Values) -> tuple[Tensor, ...]:
        training = at(values, 2)
        if training is not None and bool(training):
            raise NotCoveredError("Dropout in training mode draws random numbers")
        value = needed(values[0])
        return (value, torch.ones_like(value, dtype=torch.bool))

    return run


def _eye_like(facts: NodeFacts) -> Operator | None:
    kind, shift = facts.get("dtype"), int(facts.get("k", 0))

    def run(values: Values) -> tuple[Tensor, ...]:
        value = needed(values[0])
        dtype = value.dtype if kind is None else type_of(kind)
        ones = torch.ones(value.shape, dtype=dtype, device=value.device)
        return (torch.triu(torch.tril(ones, shift), shift),)

    return run if kind is None or type_of(kind) is not None else None


FORMS: Forms = {
    "Cast": only(_cast, "to", "saturate", "round_mode"),
    "CastLike": only(lambda facts: _cast_like, "saturate", "round_mode"),
    "Constant": _constant,
    "ConstantOfShape": only(_constant_of_shape, "value"),
    "Dropout": only(_dropout, "ratio", "seed"),
    "Expand": plain(_expand),
    "EyeLike": only(_eye_like, "dtype", "k"),
    "Flatten": only(_flatten, "axis"),
    "Identity": unary(lambda value: value),
    "Range": plain(_range),
    "Reshape": only(_reshape, "allowzero"),
    "Shape": only(_shape, "start", "end"),
    "Size": plain(_size),
    "Squeeze": only(_squeeze, "axes"),
    "Transpose": only(_transpose, "perm"),
    "Unsqueeze": only(_unsqueeze, "axes"),
}
