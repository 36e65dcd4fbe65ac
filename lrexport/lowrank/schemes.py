"""How a kernel becomes a matrix, and how a truncated factorisation of that matrix becomes a pair of plain layers.

Kernels are (out, in, kH, kW) for Conv2d and (out, in) for Linear. A factorisation of rank r is matrix ≈ left @ right
with left (rows, r) and right (r, columns). Source: Yang et al. 2020 (arXiv 2004.09031), section 3.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lrexport.record import Scheme

Shape = torch.Size


@dataclass(frozen=True)
class LayerCall:
    """One use of a layer in a forward pass: shapes of input and output, (C, H, W) or (*, features), without the batch."""

    input: tuple[int, ...]
    output: tuple[int, ...]


class Factorisation(Protocol):
    """What every scheme knows. ``pair`` makes the layers with fresh weights, ``weights`` what to put into them."""

    def matrix(self, kernel: Tensor) -> Tensor: ...

    def kernel(self, matrix: Tensor, shape: Shape) -> Tensor: ...

    def pair(self, layer: Any, rank: int) -> tuple[nn.Module, nn.Module]: ...

    def weights(self, left: Tensor, right: Tensor, shape: Shape) -> tuple[Tensor, Tensor]: ...

    def macs_per_rank(self, layer: Any, call: LayerCall) -> int: ...


class Spatial:
    """out·kH × in·kW, folded to 1×kW then kH×1."""

    def matrix(self, kernel: Tensor) -> Tensor:
        out, into, height, width = kernel.shape
        return kernel.permute(0, 2, 1, 3).reshape(out * height, into * width)

    def kernel(self, matrix: Tensor, shape: Shape) -> Tensor:
        out, into, height, width = shape
        return matrix.view(out, height, into, width).permute(0, 2, 1, 3)

    def pair(self, layer: nn.Conv2d, rank: int) -> tuple[nn.Module, nn.Module]:
        # Every padding mode works on one axis at a time, so each half pads its own; without a bias in the first half
        # the rows that zero padding adds are zero after it too.
        first = _conv(layer, layer.in_channels, rank, bias=False, axes=(False, True))
        second = _conv(layer, rank, layer.out_channels, bias=layer.bias is not None, axes=(True, False))
        return first, second

    def weights(self, left: Tensor, right: Tensor, shape: Shape) -> tuple[Tensor, Tensor]:
        out, into, height, width = shape
        first = right.view(-1, into, 1, width)
        second = left.view(out, height, -1).permute(0, 2, 1).unsqueeze(3)
        return first, second

    def macs_per_rank(self, layer: nn.Conv2d, call: LayerCall) -> int:
        (_, in_height, _), (_, out_height, out_width) = call.input, call.output
        height, width = layer.kernel_size
        first = layer.in_channels * width * in_height * out_width
        return first + layer.out_channels * height * out_height * out_width


class Channel:
    """out × in·kH·kW, folded to kH×kW then 1×1."""

    def matrix(self, kernel: Tensor) -> Tensor:
        return kernel.reshape(kernel.shape[0], -1)

    def kernel(self, matrix: Tensor, shape: Shape) -> Tensor:
        return matrix.view(shape)

    def pair(self, layer: nn.Conv2d, rank: int) -> tuple[nn.Module, nn.Module]:
        first = _conv(layer, layer.in_channels, rank, bias=False, axes=(True, True))
        second = _conv(layer, rank, layer.out_channels, bias=layer.bias is not None, axes=(False, False))
        return first, second

    def weights(self, left: Tensor, right: Tensor, shape: Shape) -> tuple[Tensor, Tensor]:
        return right.view(-1, *shape[1:]), left[:, :, None, None]

    def macs_per_rank(self, layer: nn.Conv2d, call: LayerCall) -> int:
        pixels = call.output[1] * call.output[2]
        return (layer.in_channels * layer.kernel_size[0] * layer.kernel_size[1] + layer.out_channels) * pixels


class InputChannel:
    """in × out·kH·kW, folded to 1×1 then kH×kW."""

    def matrix(self, kernel: Tensor) -> Tensor:
        return kernel.transpose(0, 1).reshape(kernel.shape[1], -1)

    def kernel(self, matrix: Tensor, shape: Shape) -> Tensor:
        out, into, height, width = shape
        return matrix.view(into, out, height, width).transpose(0, 1)

    def pair(self, layer: nn.Conv2d, rank: int) -> tuple[nn.Module, nn.Module]:
        first = _conv(layer, layer.in_channels, rank, bias=False, axes=(False, False))
        second = _conv(layer, rank, layer.out_channels, bias=layer.bias is not None, axes=(True, True))
        return first, second

    def weights(self, left: Tensor, right: Tensor, shape: Shape) -> tuple[Tensor, Tensor]:
        out, _into, height, width = shape
        return left.T[:, :, None, None], right.view(-1, out, height, width).transpose(0, 1)

    def macs_per_rank(self, layer: nn.Conv2d, call: LayerCall) -> int:
        (_, in_height, in_width), (_, out_height, out_width) = call.input, call.output
        kernel = layer.kernel_size[0] * layer.kernel_size[1]
        return layer.in_channels * in_height * in_width + layer.out_channels * kernel * out_height * out_width


class FullyConnected:
    """out × in, folded to in → rank → out."""

    def matrix(self, kernel: Tensor) -> Tensor:
        return kernel

    def kernel(self, matrix: Tensor, shape: Shape) -> Tensor:
        return matrix

    def pair(self, layer: nn.Linear, rank: int) -> tuple[nn.Module, nn.Module]:
        options = {"device": layer.weight.device, "dtype": layer.weight.dtype}
        first = nn.Linear(layer.in_features, rank, bias=False, **options)
        return first, nn.Linear(rank, layer.out_features, bias=layer.bias is not None, **options)

    def weights(self, left: Tensor, right: Tensor, shape: Shape) -> tuple[Tensor, Tensor]:
        return right, left

    def macs_per_rank(self, layer: nn.Linear, call: LayerCall) -> int:
        rows = torch.Size(call.output[:-1]).numel()
        return rows * (layer.in_features + layer.out_features)


SCHEMES: dict[Scheme, Factorisation] = {
    "spatial": Spatial(),
    "channel": Channel(),
    "input-channel": InputChannel(),
    "linear": FullyConnected(),
}
CONV_SCHEMES: tuple[Scheme, ...] = ("spatial", "channel", "input-channel")


def scheme_for(layer: nn.Module, asked: Scheme) -> Scheme:
    """The scheme that a layer gets when ``asked`` is wanted for convolutions.

    A 1×1 kernel gives the same matrix in every scheme; `channel` then puts the stride first, where it saves most.
    """
    if isinstance(layer, nn.Linear):
        return "linear"
    return "channel" if layer.kernel_size == (1, 1) else asked


def dense_macs(layer: Any, call: LayerCall) -> int:
    """MACs of the layer as it is for one call; the bias is not counted (fvcore's convention)."""
    if isinstance(layer, nn.Linear):
        return torch.Size(call.output).numel() * layer.in_features
    positions = torch.Size(call.input[1:] if getattr(layer, "transposed", False) else call.output[1:]).numel()
    return positions * layer.weight.numel()


def _conv(layer: nn.Conv2d, into: int, out: int, bias: bool, axes: tuple[bool, bool]) -> nn.Conv2d:
    """A convolution with the layer's kernel, stride, padding and dilation on the chosen axes, pointwise on the others."""

    def on(values: tuple[int, ...], otherwise: int) -> tuple[int, int]:
        height, width = (value if chosen else otherwise for value, chosen in zip(values, axes, strict=True))
        return height, width

    padding = layer.padding if isinstance(layer.padding, str) else on(layer.padding, 0)
    return nn.Conv2d(
        into,
        out,
        on(layer.kernel_size, 1),
        stride=on(layer.stride, 1),
        padding=padding,
        dilation=on(layer.dilation, 1),
        bias=bias,
        # A half without padding of its own must not be given a mode that needs some.
        padding_mode=layer.padding_mode if any(axes) else "zeros",
        device=layer.weight.device,
        dtype=layer.weight.dtype,
    )
