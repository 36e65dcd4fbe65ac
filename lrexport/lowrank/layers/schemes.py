"""How a kernel becomes a matrix, and how a truncated factorisation of that matrix becomes a pair of plain layers.

The first half of a pair has the input channels and some kernel axes, the second half the output channels and the other
axes; the scheme decides which. So a row of the matrix is an output channel with a tap of the second half, and a column an
input channel with a tap of the first half. A factorisation of rank r is matrix ≈ left @ right with left (rows, r) and right
(r, columns). A layer of g > 1 groups has a matrix for each group, (g, rows, columns), and r channels for each group between
the halves.
Source: Yang et al. 2020 (arXiv 2004.09031), section 3.1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from lrexport.lowrank.layers.kernels import PLAIN, TRANSPOSED, KernelSpec, spec_of
from lrexport.plan import Scheme
from lrexport.torch_tools.tracing import LayerCall

# Weights below this become 0 in pairs. Channels that weight decay has switched off have weights of 1e-40: subnormal numbers,
# which some processors compute with a hundred times more slowly. One such layer of a text recogniser took half of its time.
_NOTHING = 1e-30


@dataclass(frozen=True)
class Factorisation:
    """A scheme: ``second_axes`` are the kernel axes of a pair's second half; the first half has the others."""

    second_axes: Callable[[KernelSpec], tuple[int, ...]]

    def matrix(self, kernel: Tensor, spec: KernelSpec) -> Tensor:
        """The matrix (rows, columns) of a weight; (g, rows, columns) for g > 1 groups."""
        layout = _layout(spec, self.second_axes(spec))
        return kernel.reshape(layout.split_kernel).permute(layout.to_matrix).reshape(layout.matrix)

    def kernel(self, matrix: Tensor, spec: KernelSpec) -> Tensor:
        """The weight with this matrix; a view of it, except for transposed layers with groups."""
        layout = _layout(spec, self.second_axes(spec))
        if layout.in_order:
            return matrix.reshape(spec.weight_shape)
        return matrix.reshape(layout.split_matrix).permute(layout.to_kernel).reshape(spec.weight_shape)

    def matrix_shape(self, spec: KernelSpec) -> tuple[int, int]:
        """Rows and columns of one group's matrix."""
        rows, columns = _layout(spec, self.second_axes(spec)).matrix[-2:]
        return rows, columns

    def full_rank(self, spec: KernelSpec) -> int:
        """min(rows, columns) of one group's matrix."""
        return min(self.matrix_shape(spec))

    def pair(self, layer: Any, rank: int) -> tuple[nn.Module, nn.Module]:
        """The two halves with new weights and ``rank`` channels per group between them; the second has the bias."""
        spec = spec_of(layer)
        first_axes, second_axes = self._axes(spec)
        # Every padding mode works axis by axis, so each half pads its own axes. The first half has no bias, so the rows
        # that zero padding adds are still zero after it.
        first = _half(layer, spec.in_channels, spec.groups * rank, False, first_axes)
        return first, _half(layer, spec.groups * rank, spec.out_channels, layer.bias is not None, second_axes)

    def weights(self, left: Tensor, right: Tensor, spec: KernelSpec) -> tuple[Tensor, Tensor]:
        """The weights of both halves from left (rows, r) and right (r, columns), or (g, …) of each.

        Values that only slow processors down are 0, see :data:`_NOTHING`.
        """
        groups, rank = spec.groups, left.shape[-1]
        out, into = spec.out_channels // groups, spec.in_channels // groups
        first_axes, second_axes = self._axes(spec)
        first = right.reshape(groups, rank, into, *_on(first_axes, spec.kernel_size, 1))
        second = left.reshape(groups, out, -1, rank).transpose(2, 3)
        second = second.reshape(groups, out, rank, *_on(second_axes, spec.kernel_size, 1))
        halves = ((first, first_axes), (second, second_axes))
        # Transposed halves have their input channels first.
        ordered = (half.transpose(1, 2) if spec.transposed and axes else half for half, axes in halves)
        made_first, made_second = (half.masked_fill(half.abs() < _NOTHING, 0).flatten(0, 1) for half in ordered)
        return made_first, made_second

    def macs_per_rank(self, spec: KernelSpec, call: LayerCall) -> int:
        """MACs of the pair per rank for one call, over all groups."""
        first_axes, second_axes = self._axes(spec)
        middle = [call.output[axis] if axis in first_axes else call.input[axis] for axis in spec.axes]
        # A transposed convolution multiplies at every input position, others at every output position.
        positions = (call.input, middle) if spec.transposed else (middle, call.output)
        first = spec.in_channels * _taps(spec, first_axes) * prod(positions[0])
        return call.samples * (first + spec.out_channels * _taps(spec, second_axes) * prod(positions[1]))

    def params_per_rank(self, spec: KernelSpec) -> int:
        """Weights of the pair per rank, over all groups."""
        first_axes, second_axes = self._axes(spec)
        return spec.in_channels * _taps(spec, first_axes) + spec.out_channels * _taps(spec, second_axes)

    def _axes(self, spec: KernelSpec) -> tuple[tuple[int, ...], tuple[int, ...]]:
        second = self.second_axes(spec)
        return tuple(axis for axis in spec.axes if axis not in second), second


SCHEMES: dict[Scheme, Factorisation] = {
    "spatial": Factorisation(lambda spec: (spec.split_axis,)),
    "channel": Factorisation(lambda spec: ()),
    "input-channel": Factorisation(lambda spec: spec.axes),
    "linear": Factorisation(lambda spec: ()),
}
CONV_SCHEMES: tuple[Scheme, ...] = ("spatial", "channel", "input-channel")


def blank(layer: Any) -> nn.Module:
    """A layer with the same settings on the meta device, without values, from which pairs are made at no cost."""
    spec = spec_of(layer)
    return _half(layer, spec.in_channels, spec.out_channels, layer.bias is not None, spec.axes, torch.device("meta"))


def schemes_of(spec: KernelSpec) -> tuple[Scheme, ...]:
    """The different schemes of a kernel.

    A 1×1 kernel has the same matrix in every scheme; `channel` applies the stride in the first half, which saves most. A
    kernel with one axis cannot be split between the halves.
    """
    if not spec.kernel_size:
        return ("linear",)
    longer = sum(length > 1 for length in spec.kernel_size)
    return (("channel",), ("channel", "input-channel"), CONV_SCHEMES)[min(longer, 2)]


def scheme_for(spec: KernelSpec, asked: Scheme) -> Scheme:
    """The scheme of a layer if ``asked`` is requested for convolutions."""
    admitted = schemes_of(spec)
    return asked if asked in admitted else admitted[0]


@dataclass(frozen=True)
class _Layout:
    """Reshapes and permutations between a weight and its matrix."""

    split_kernel: tuple[int, ...]  # (g, o, i, k…), for transposed layers (g, i, o, k…)
    to_matrix: tuple[int, ...]
    split_matrix: tuple[int, ...]  # (g, o, second k…, i, first k…)
    to_kernel: tuple[int, ...]
    matrix: tuple[int, ...]
    in_order: bool  # no permutation is needed, which saves two operations in each training step


@cache
def _layout(spec: KernelSpec, second_axes: tuple[int, ...]) -> _Layout:
    """The layout without a group axis if there is one group: one dimension less to permute in each training step."""
    outer, inner, *kernel = spec.weight_shape
    lead = (spec.groups,) if spec.groups > 1 else ()
    start = len(lead)
    split_kernel = (*lead, outer // spec.groups, inner, *kernel)
    out, into = (start + 1, start) if spec.transposed else (start, start + 1)
    rows = (out, *(start + 2 + axis for axis in second_axes))
    columns = (into, *(start + 2 + axis for axis in spec.axes if axis not in second_axes))
    to_matrix = (*range(start), *rows, *columns)
    return _Layout(
        split_kernel=split_kernel,
        to_matrix=to_matrix,
        split_matrix=tuple(split_kernel[dimension] for dimension in to_matrix),
        to_kernel=tuple(sorted(range(len(to_matrix)), key=to_matrix.__getitem__)),
        matrix=(*lead, prod(split_kernel[d] for d in rows), prod(split_kernel[d] for d in columns)),
        in_order=to_matrix == tuple(range(len(to_matrix))),
    )


def _taps(spec: KernelSpec, axes: tuple[int, ...]) -> int:
    return prod(spec.kernel_size[axis] for axis in axes)


def _on(axes: tuple[int, ...], values: tuple[int, ...], otherwise: int) -> tuple[int, ...]:
    """The values on the chosen kernel axes, ``otherwise`` on the others."""
    return tuple(value if axis in axes else otherwise for axis, value in enumerate(values))


def _half(
    layer: Any, into: int, out: int, bias: bool, axes: tuple[int, ...], device: torch.device | None = None
) -> nn.Module:
    """A layer with the kernel, stride, padding and dilation of ``layer`` on ``axes``, pointwise on the others."""
    options: dict[str, Any] = {"bias": bias, "device": device or layer.weight.device, "dtype": layer.weight.dtype}
    if isinstance(layer, nn.Linear):
        return nn.Linear(into, out, **options)
    kernel, stride, dilation = (_on(axes, values, 1) for values in (layer.kernel_size, layer.stride, layer.dilation))
    options |= {"kernel_size": kernel, "stride": stride, "dilation": dilation, "groups": layer.groups}
    if axes:  # a pointwise half has no padding, and some padding modes require it
        text = isinstance(layer.padding, str)
        options |= {"padding": layer.padding if text else _on(axes, layer.padding, 0), "padding_mode": layer.padding_mode}
    kinds: tuple[type[nn.Module], ...] = PLAIN
    if isinstance(layer, TRANSPOSED) and axes:
        kinds = TRANSPOSED
        options |= {"output_padding": _on(axes, layer.output_padding, 0)}
    return kinds[len(kernel) - 1](into, out, **options)
