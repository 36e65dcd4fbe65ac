"""Resize and Upsample, axis by axis, at exactly the coordinates that ONNX Runtime computes, in float32 as it does.

Source: https://onnx.ai/onnx/operators/onnx__Resize.html. torch's own ``interpolate`` has other coordinates for most modes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
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
    numbers_of,
    only,
)

_COORDINATES = ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric")
_NEAREST = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
_POLICIES = ("stretch", "not_larger", "not_smaller")


@dataclass(frozen=True)
class _Settings:
    """How values between others are found. ``nearest`` may be "simple": up for fewer values, else down."""

    mode: str
    coordinates: str = "asymmetric"
    nearest: str = "simple"
    cubic: float = -0.75
    excluding: bool = False


def _settings(facts: NodeFacts) -> _Settings | None:
    mode = facts.text("mode", "nearest")
    if facts.opset == 10:  # as Upsample before
        return _Settings(mode) if mode in ("nearest", "linear") else None
    coordinates = facts.text("coordinate_transformation_mode", "half_pixel")
    nearest = facts.text("nearest_mode", "round_prefer_floor")
    known = mode in ("nearest", "linear", "cubic") and coordinates in _COORDINATES and nearest in _NEAREST
    if not known or facts.get("antialias", 0):
        return None
    excluding = bool(facts.get("exclude_outside", 0))
    if excluding and mode != "cubic":
        return None
    # Ties between two values, which ONNX Runtime decides in ways of its rounding that are not known.
    ties = {("half_pixel_symmetric", "floor"), ("half_pixel_symmetric", "ceil"), ("asymmetric", "round_prefer_ceil")}
    if mode == "nearest" and (coordinates, nearest) in ties:
        return None
    return _Settings(mode, coordinates, nearest, float(facts.get("cubic_coeff_a", -0.75)), excluding)


def _resize(facts: NodeFacts) -> Operator | None:
    settings, policy = _settings(facts), facts.text("keep_aspect_ratio_policy", "stretch")
    if settings is None or facts.opset < 10 or policy not in _POLICIES:
        return None
    chosen = facts.get("axes")

    def run(values: Values) -> tuple[Tensor, ...]:
        value = needed(values[0])
        by, to = at(values, 2 if facts.opset > 10 else 1), integers(at(values, 3))
        axes = [axis_of(axis, value.ndim) for axis in chosen] if chosen is not None else list(range(value.ndim))
        before = [value.shape[axis] for axis in axes]
        if to:
            sizes, scales = _kept(before, to, policy)
        else:
            scales = [np.float32(scale) for scale in numbers_of(needed(by))]
            sizes = _scaled(before, scales)
        return (_resized(value, axes, sizes, scales, settings),)

    return run


def _kept(before: list[int], sizes: list[int], policy: str) -> tuple[list[int], list[np.float32]]:
    """Sizes and scales that keep the ratio of the sizes, if the policy says so."""
    scales = [np.float32(size) / np.float32(length) for size, length in zip(sizes, before, strict=True)]
    if policy == "stretch":
        return sizes, scales
    scale = min(scales) if policy == "not_larger" else max(scales)
    return [int(np.float32(length) * scale + np.float32(0.5)) for length in before], [scale] * len(before)


def _scaled(before: list[int], scales: list[np.float32]) -> list[int]:
    return [int(np.float32(length) * scale) for length, scale in zip(before, scales, strict=True)]


def _upsample(facts: NodeFacts) -> Operator | None:
    mode, attribute = facts.text("mode", "nearest"), facts.get("scales")
    if mode not in ("nearest", "linear") or facts.opset >= 10 or (facts.opset < 9 and attribute is None):
        return None

    def run(values: Values) -> tuple[Tensor, ...]:
        value = needed(values[0])
        given = attribute if attribute is not None else numbers_of(needed(values[1]))
        scales = [np.float32(scale) for scale in given]
        sizes = _scaled(list(value.shape), scales)
        return (_resized(value, list(range(value.ndim)), sizes, scales, _Settings(mode)),)

    return run


def _resized(value: Tensor, axes: list[int], sizes: list[int], scales: list[np.float32], settings: _Settings) -> Tensor:
    shape = list(value.shape)
    if sizes == [shape[axis] for axis in axes]:
        return value  # whatever the scales are
    for axis, size, scale in zip(axes, sizes, scales, strict=True):
        if size == shape[axis] and scale == 1.0:
            continue
        shape[axis] = size
        check_size(shape)
        places = _places(size, value.shape[axis], scale, settings.coordinates)
        value = _along(value, axis, places, bool(scale < 1), settings)
    return value


def _along(value: Tensor, axis: int, places: Tensor, fewer: bool, settings: _Settings) -> Tensor:
    """The values at places of an axis: the nearest ones, or weighted sums of their neighbours."""
    last = value.shape[axis] - 1
    if settings.mode == "nearest":
        nearest = ("ceil" if fewer else "floor") if settings.nearest == "simple" else settings.nearest
        return value.index_select(axis, _rounded(places, nearest).clamp(0, last).to(value.device))
    low = places.floor()
    share = places - low
    offsets = [0, 1] if settings.mode == "linear" else [-1, 0, 1, 2]
    weights = [1 - share, share] if settings.mode == "linear" else _cubic(share, settings.cubic)
    taps = [low.to(torch.int64) + offset for offset in offsets]
    if settings.excluding:
        weights = [weight * ((tap >= 0) & (tap <= last)) for weight, tap in zip(weights, taps, strict=True)]
        total = torch.stack(weights).sum(0)
        weights = [weight / total for weight in weights]
    column = [-1 if each == axis else 1 for each in range(value.ndim)]
    parts = [
        value.index_select(axis, tap.clamp(0, last).to(value.device)) * weight.to(value).reshape(column)
        for tap, weight in zip(taps, weights, strict=True)
    ]
    return torch.stack(parts).sum(0) if len(parts) > 2 else parts[0] + parts[1]


def _cubic(share: Tensor, factor: float) -> list[Tensor]:
    """Weights of the four neighbours. Source: Keys, "Cubic convolution interpolation", 1981."""

    def near(distance: Tensor) -> Tensor:
        return ((factor + 2) * distance - (factor + 3)) * distance * distance + 1

    def far(distance: Tensor) -> Tensor:
        return ((factor * distance - 5 * factor) * distance + 8 * factor) * distance - 4 * factor

    return [far(share + 1), near(share), near(1 - share), far(2 - share)]


def _places(size: int, before: int, scale: np.float32, coordinates: str) -> Tensor:
    """Where each of ``size`` output values lies among ``before`` input values, float32."""
    place, half = np.arange(size, dtype=np.float32), np.float32(0.5)
    if coordinates == "align_corners":
        made = place * np.float32(before - 1) / np.float32(size - 1) if size > 1 else place
    elif coordinates == "asymmetric":
        made = place / scale
    elif coordinates == "pytorch_half_pixel" and size == 1:
        made = place
    elif coordinates == "half_pixel_symmetric":
        adjustment = np.float32(size) / (scale * np.float32(before))
        offset = np.float32(before) / np.float32(2) * (np.float32(1) - adjustment)
        made = offset + (place + half) / scale - half
    else:
        made = (place + half) / scale - half
    return torch.from_numpy(made.astype(np.float32))


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


FORMS: Forms = {
    "Resize": only(
        _resize,
        *("antialias", "axes", "coordinate_transformation_mode", "cubic_coeff_a", "exclude_outside", "extrapolation_value"),
        *("keep_aspect_ratio_policy", "mode", "nearest_mode"),
    ),
    "Upsample": only(_upsample, "mode", "scales"),
}
