"""Resize and Upsample: by nearest values or linear interpolation, axis by axis, exactly by the operator's coordinates."""

from __future__ import annotations

import math

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
    needed,
)

_COORDINATES = ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric")
_NEAREST = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


def _resize(facts: NodeFacts) -> Operator | None:
    mode = facts.text("mode", "nearest")
    coordinates = facts.text("coordinate_transformation_mode", "half_pixel")
    nearest = facts.text("nearest_mode", "round_prefer_floor")
    if facts.opset < 10 or mode not in ("nearest", "linear") or facts.get("antialias", 0):
        return None
    if facts.opset == 10:  # as Upsample
        coordinates, nearest = "asymmetric", "floor"
    if coordinates not in _COORDINATES or nearest not in _NEAREST:
        return None
    if facts.text("keep_aspect_ratio_policy", "stretch") != "stretch":
        return None
    chosen = facts.get("axes")

    def run(values: Values) -> tuple[Tensor, ...]:
        value = needed(values[0])
        by, to = at(values, 2 if facts.opset > 10 else 1), integers(at(values, 3))
        scales = [] if by is None else [float(scale) for scale in by.reshape(-1).tolist()]
        axes = [axis_of(axis, value.ndim) for axis in chosen] if chosen is not None else list(range(value.ndim))
        if to:
            sizes = to
            scales = [size / value.shape[axis] for size, axis in zip(sizes, axes, strict=True)]
        else:
            sizes = [math.floor(value.shape[axis] * scale) for scale, axis in zip(scales, axes, strict=True)]
        return (_resized(value, axes, sizes, scales, mode, coordinates, nearest),)

    return run


def _upsample(facts: NodeFacts) -> Operator | None:
    mode = facts.text("mode", "nearest")
    if mode not in ("nearest", "linear") or facts.opset < 7:
        return None
    attribute = facts.get("scales")

    def run(values: Values) -> tuple[Tensor, ...]:
        value = needed(values[0])
        scales = attribute if attribute is not None else needed(values[1]).reshape(-1).tolist()
        sizes = [math.floor(size * scale) for size, scale in zip(value.shape, scales, strict=True)]
        return (_resized(value, list(range(value.ndim)), sizes, list(scales), mode, "asymmetric", "floor"),)

    return run


def _resized(
    value: Tensor, axes: list[int], sizes: list[int], scales: list[float], mode: str, coordinates: str, nearest: str
) -> Tensor:
    shape = list(value.shape)
    for axis, size, scale in zip(axes, sizes, scales, strict=True):
        if size == shape[axis] and scale == 1.0:
            continue
        shape[axis] = size
        check_size(shape)
        places = _places(size, value.shape[axis], scale, coordinates).to(value.device)
        last = value.shape[axis] - 1
        if mode == "nearest":
            value = value.index_select(axis, _rounded(places, nearest).clamp(0, last))
            continue
        low = places.floor()
        share = (places - low).to(value.dtype)
        share = share.reshape([-1 if each == axis else 1 for each in range(value.ndim)])
        before = value.index_select(axis, low.to(torch.int64).clamp(0, last))
        after = value.index_select(axis, (low.to(torch.int64) + 1).clamp(0, last))
        value = before * (1 - share) + after * share
    return value


def _places(size: int, before: int, scale: float, coordinates: str) -> Tensor:
    """Where each of ``size`` output values lies among ``before`` input values, in float32 as ONNX Runtime computes."""
    place = torch.arange(size, dtype=torch.float32)
    if coordinates == "asymmetric":
        return place / scale
    if coordinates == "align_corners":
        return place * ((before - 1) / (size - 1)) if size > 1 else torch.zeros(size)
    if coordinates == "pytorch_half_pixel":
        return (place + 0.5) / scale - 0.5 if size > 1 else torch.zeros(size)
    if coordinates == "half_pixel_symmetric":
        adjusted = size / (scale * before)
        return before / 2 * (1 - adjusted) + (place + 0.5) / scale - 0.5
    return (place + 0.5) / scale - 0.5


def _rounded(places: Tensor, nearest: str) -> Tensor:
    if nearest == "floor":
        rounded = places.floor()
    elif nearest == "ceil":
        rounded = places.ceil()
    elif nearest == "round_prefer_floor":
        rounded = (places - 0.5).ceil()
    else:
        rounded = (places + 0.5).floor()
    return rounded.to(torch.int64)


FORMS: Forms = {"Resize": _resize, "Upsample": _upsample}
