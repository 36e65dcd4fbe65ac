"""Random inputs that resemble recordings: neighbours are alike, at every scale, as in pictures and sounds."""

from __future__ import annotations

import torch
from torch import Tensor

from lrexport.signature import InputSpec, Signature
from lrexport.torch_tools.batch import Batch, draw_input

# Shorter axes are channels; more than the last three long ones are none of space and time.
_LEAST_LENGTH, _MOST_AXES = 8, 3
# Channels of a picture have most in common.
_OWN_SHARE = 0.3


def smooth_noise(signature: Signature, samples: int, like: Tensor, seed: int = 0) -> Batch:
    """Random inputs, always the same for one seed: noise of all scales along long axes, of deviation 1 or in its range.

    Integers, and inputs without long axes, are drawn independently. They are on the device of ``like`` and in its precision.
    """
    generator = torch.Generator().manual_seed(seed)
    return Batch(tuple(_drawn(spec, samples, like, generator) for spec in signature), signature.names)


def _drawn(spec: InputSpec, samples: int, like: Tensor, generator: torch.Generator) -> Tensor:
    axes = [axis for axis, length in enumerate(spec.shape) if length >= _LEAST_LENGTH][-_MOST_AXES:]
    if not spec.is_float or not axes:
        return draw_input(spec, samples, like, generator)
    others = [length for axis, length in enumerate(spec.shape) if axis not in axes]
    total = torch.zeros(samples, *others, *(spec.shape[axis] for axis in axes))
    length, longest = 1, max(spec.shape[axis] for axis in axes)
    while True:
        coarse = [min(length, spec.shape[axis]) for axis in axes]
        common = torch.randn(samples, *(1 for _ in others), *coarse, generator=generator)
        drawn = common + _OWN_SHARE * torch.randn(samples, *others, *coarse, generator=generator)
        total += _enlarged(drawn, total.shape, len(axes))
        if length >= longest:
            break
        length *= 2
    total /= total.std().clamp_min(torch.finfo(total.dtype).tiny)
    if spec.low is not None and spec.high is not None:
        total = spec.low + (spec.high - spec.low) * torch.special.ndtr(total)
    order = [axis for axis in range(len(spec.shape)) if axis not in axes] + axes
    back = [1 + order.index(axis) for axis in range(len(spec.shape))]
    dtype = like.dtype if spec.dtype is None else getattr(torch, spec.dtype)
    return total.permute(0, *back).contiguous().to(device=like.device, dtype=dtype)


def _enlarged(drawn: Tensor, shape: torch.Size, axes: int) -> Tensor:
    """Values between those along the last axes."""
    mode = ("linear", "bilinear", "trilinear")[axes - 1]
    grid = drawn.reshape(-1, 1, *drawn.shape[-axes:])
    return torch.nn.functional.interpolate(grid, shape[-axes:], mode=mode).reshape(shape)
