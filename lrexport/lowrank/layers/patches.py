"""Patches: the part of a layer's input that each of its outputs is computed from.

For every layer, plain or transposed, an output is the kernel times its patch, so statistics of patches work for all.
"""

from __future__ import annotations

from itertools import repeat
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lrexport.lowrank.layers.kernels import KernelSpec, spec_of


def positions(output: Tensor, layer: Any) -> int:
    """The number of a layer's outputs: samples times positions along the kernel's axes."""
    return output.numel() // spec_of(layer).out_channels


def draw(count: int, most: int, generator: torch.Generator) -> Tensor:
    """Indices of ``most`` of ``count`` outputs, drawn without replacement; of all if there are not more."""
    return torch.randperm(count, generator=generator)[:most] if count > most else torch.arange(count)


def sizes_of(output: Tensor, layer: Any) -> tuple[int, ...]:
    """Sizes of a layer's output along the kernel's axes; () for Linear."""
    return tuple(output.shape[output.ndim - len(spec_of(layer).axes) :])


def outputs_at(layer: Any, output: Tensor, numbers: Tensor) -> Tensor:
    """The outputs with indices ``numbers``, (n, out)."""
    return _rows(output, spec_of(layer))[numbers.to(output.device)]


def patches_at(layer: Any, given: Tensor, sizes: tuple[int, ...], numbers: Tensor) -> Tensor:
    """The patches of the outputs with indices ``numbers``: (n, in, k…), (n, in) for Linear; zero outside of the input.

    ``sizes`` are those of the output along the kernel's axes.
    """
    spec = spec_of(layer)
    numbers = numbers.to(given.device)
    if not spec.axes:
        return _rows(given, spec)[numbers]
    batched = given if given.ndim == len(spec.axes) + 2 else given.unsqueeze(0)
    sample = numbers // prod(sizes)
    coordinates = torch.unravel_index(numbers % prod(sizes), sizes)
    padded, lead = _padded(layer, batched)
    index: list[Tensor] = [sample.view(-1, *repeat(1, len(spec.axes)))]
    inside = torch.ones(1, dtype=torch.bool, device=given.device)
    for axis, at in enumerate(coordinates):
        place, valid = _places(layer, spec, axis, at, lead[axis], padded.shape[2 + axis])
        shape = [len(numbers), *(spec.kernel_size[axis] if other == axis else 1 for other in spec.axes)]
        index.append(place.view(shape))
        inside = inside & valid.view(shape)
    # With channels last, the gather reads contiguous memory.
    patches = padded.movedim(1, -1).contiguous()[tuple(index)]
    return (patches if inside.all() else patches.mul_(inside.unsqueeze(-1))).movedim(-1, 1)


def _rows(values: Tensor, spec: KernelSpec) -> Tensor:
    """(…, features) or (B, C, positions…) as rows of features or channels."""
    if not spec.axes:
        return values.flatten(0, -2) if values.ndim > 1 else values.unsqueeze(0)
    batched = values if values.ndim == len(spec.axes) + 2 else values.unsqueeze(0)
    return batched.movedim(1, -1).flatten(0, -2)


def _padded(layer: Any, given: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """The input padded as by the layer, unless with zeros, and how much each axis got in front."""
    if getattr(layer, "transposed", False) or layer.padding_mode == "zeros":
        return given, tuple(repeat(0, given.ndim - 2))
    # The layer's own attribute: (left, right) of every axis, last axis first; also for 'same' and 'valid'.
    around = layer._reversed_padding_repeated_twice
    return F.pad(given, around, mode=layer.padding_mode), tuple(reversed(around[::2]))


def _places(layer: Any, spec: KernelSpec, axis: int, at: Tensor, lead: int, size: int) -> tuple[Tensor, Tensor]:
    """Where the taps of outputs ``at`` (n,) read along one axis: places (n, k) inside ``size``, and whether they exist."""
    taps = torch.arange(spec.kernel_size[axis], device=at.device) * layer.dilation[axis]
    front = (
        layer.padding[axis] if not isinstance(layer.padding, str) else layer._reversed_padding_repeated_twice[-2 - 2 * axis]
    )
    stride = layer.stride[axis]
    if spec.transposed:
        reach = at.unsqueeze(1) + front - taps
        place, valid = reach // stride, reach % stride == 0
    else:
        place = at.unsqueeze(1) * stride + taps - front + lead
        valid = torch.ones_like(place, dtype=torch.bool)
    valid = valid & (place >= 0) & (place < size)
    return place.clamp(0, size - 1), valid
