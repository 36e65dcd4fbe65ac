"""Padding that subclasses of convolutions do themselves, as a module before a plain convolution."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Attributes of a convolution that networks use.
_ATTRIBUTES = ("in_channels", "out_channels", "kernel_size", "stride", "dilation", "groups")


@dataclass(frozen=True)
class Padded:
    """An input of a layer and what it convolves: sizes (H, W) before, and zeros (front, back) added along each axis."""

    sizes: tuple[int, ...]
    added: tuple[tuple[int, int], ...]


class SamePadding(nn.Module):
    """Zeros around an input, by which a convolution of stride s has size / s outputs, rounded up; the odd one at the end.

    TensorFlow's 'SAME' padding, which depends on the size of the input.
    """

    def __init__(self, kernel_size: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.dilation = tuple(kernel_size), tuple(stride), tuple(dilation)

    def added(self, sizes: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """The zeros (front, back) along each axis of an input of ``sizes``."""
        axes = zip(sizes, self.kernel_size, self.stride, self.dilation, strict=True)
        return tuple(_same(*axis) for axis in axes)

    def forward(self, x: Tensor) -> Tensor:
        # torch.jit.trace, by which MACs are counted, has tensors as sizes; an export for any size has symbols.
        sizes = [size if isinstance(size, torch.SymInt) else int(size) for size in x.shape[-len(self.kernel_size) :]]
        pads = self.added(sizes)
        return F.pad(x, [each for pair in reversed(pads) for each in pair])

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, dilation={self.dilation}"


def _same(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    # sym_max, because max would fix the size in an export.
    total: int = torch.sym_max(((size + stride - 1) // stride - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


def seen(given: Tensor, inner: Tensor, axes: int) -> Padded | None:
    """How ``inner`` (B, C, …) is ``given`` with zeros around it along its last ``axes``; None if it is something else."""
    sizes = tuple(given.shape[-axes:])
    spare = [inner.shape[axis - axes] - size for axis, size in enumerate(sizes)]
    if inner.ndim != given.ndim or any(each < 0 for each in spare):
        return None
    fronts: list[int] = []
    for axis, size in enumerate(sizes):
        # Only the right place has the norm of every slice: given is noise.
        others = [other for other in range(given.ndim) if other != given.ndim - axes + axis]
        mine, theirs = given.double().square().sum(others), inner.double().square().sum(others)
        front = next((at for at in range(spare[axis] + 1) if torch.allclose(theirs[at : at + size], mine)), None)
        if front is None:
            return None
        fronts.append(front)
    added = tuple((front, more - front) for front, more in zip(fronts, spare, strict=True))
    pads = [each for pair in reversed(added) for each in pair]
    return Padded(sizes, added) if torch.equal(F.pad(given, pads), inner) else None


def padding_like(padded: Sequence[Padded], convolution: Any) -> nn.Module | None:
    """A module that pads as was seen for inputs of several sizes, before ``convolution``; None if none does."""
    if len({each.added for each in padded}) == 1:
        pads = tuple(each for pair in reversed(padded[0].added) for each in pair)
        kinds: tuple[Any, ...] = (nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d)
        made: nn.Module = kinds[len(padded[0].added) - 1](pads, 0.0)
        return made
    same = SamePadding(convolution.kernel_size, convolution.stride, convolution.dilation)
    return same if all(same.added(each.sizes) == each.added for each in padded) else None


def with_padding(padding: nn.Module, convolution: nn.Module) -> nn.Sequential:
    """``convolution`` after ``padding``, with the attributes of a convolution."""
    both = nn.Sequential(OrderedDict(padding=padding, convolution=convolution))
    for name in _ATTRIBUTES:
        setattr(both, name, getattr(convolution, name))
    return both
