"""A layer's kernel as schemes need it, from the layer's attributes, and the layer's MACs.

Weights are (out, in ÷ groups, k…) for convolutions, (in, out ÷ groups, k…) for transposed ones and (out, in) for Linear,
which is treated as a convolution without kernel axes.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from torch import nn

from lrexport.torch_tools.tracing import LayerCall
from lrexport.torch_tools.weight_layers import PLAIN as PLAIN
from lrexport.torch_tools.weight_layers import TRANSPOSED as TRANSPOSED
from lrexport.torch_tools.weight_layers import WEIGHTED as WEIGHTED


@dataclass(frozen=True)
class KernelSpec:
    """A layer's kernel. ``split_axis`` is the axis of ``kernel_size`` that `spatial` gives to the second half."""

    out_channels: int
    in_channels: int
    kernel_size: tuple[int, ...] = ()
    groups: int = 1
    transposed: bool = False
    split_axis: int = 0

    @property
    def axes(self) -> tuple[int, ...]:
        """Every kernel axis: () for Linear, (0, 1) for height and width."""
        return tuple(range(len(self.kernel_size)))

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """The shape of the layer's weight."""
        outer, inner = (self.out_channels, self.in_channels)[:: -1 if self.transposed else 1]
        return (outer, inner // self.groups, *self.kernel_size)

    @property
    def is_depthwise(self) -> bool:
        """Whether every input channel is a group."""
        return 1 < self.groups == self.in_channels


def spec_of(layer: Any) -> KernelSpec:
    """The spec of a Linear, convolution or transposed convolution, with an ordinary weight or in SVD form.

    `spatial` splits off the axis longer than 1 whose pair costs least at full rank, by kernel, stride and channels; the
    first if several do, so a square kernel becomes 1×kW then kH×1 (Yang et al. 2020, section 3.1).
    """
    if isinstance(layer, nn.Linear):
        return KernelSpec(layer.out_features, layer.in_features)
    return KernelSpec(
        layer.out_channels,
        layer.in_channels,
        layer.kernel_size,
        layer.groups,
        isinstance(layer, TRANSPOSED),
        _split_axis(layer),
    )


def dense_macs(spec: KernelSpec, call: LayerCall) -> int:
    """MACs of the dense layer for one call; the bias is not counted (fvcore's convention)."""
    return call.samples * prod(call.input if spec.transposed else call.output) * prod(spec.weight_shape)


def _split_axis(layer: Any) -> int:
    kernel, stride = layer.kernel_size, layer.stride
    into, out = layer.in_channels // layer.groups, layer.out_channels // layer.groups

    def cost(axis: int) -> int:
        """MACs of the full-rank pair per output position; per input position if the layer is transposed."""
        first, second = into * prod(kernel) // kernel[axis], out * kernel[axis]
        full_rank = min(first, second)
        if isinstance(layer, TRANSPOSED):
            return full_rank * (first + second * prod(stride) // stride[axis])
        return full_rank * (first * stride[axis] + second)

    longer = [axis for axis, length in enumerate(kernel) if length > 1]
    return min(longer or [0], key=cost)
