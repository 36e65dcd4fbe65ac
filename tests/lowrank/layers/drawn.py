"""Layers of every kind with inputs that they take, drawn by hypothesis."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from lrexport.lowrank.layers.kernels import PLAIN, TRANSPOSED

MODES = ("zeros", "reflect", "replicate", "circular")


@st.composite
def layers(draw: st.DrawFn, kinds: tuple[type[nn.Module], ...] = (*PLAIN, *TRANSPOSED)) -> tuple[Any, Tensor]:
    """A convolution of one of the ``kinds`` with any settings, and a batch of two inputs that it takes."""
    kind = draw(st.sampled_from(kinds))
    axes = (PLAIN if kind in PLAIN else TRANSPOSED).index(kind) + 1

    def on_each_axis(low: int, *high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high[min(axis, len(high) - 1)])) for axis in range(axes))

    groups = draw(st.sampled_from([1, 1, 2, 3]))
    into, out = (groups * draw(st.integers(1, 4)) for _ in range(2))
    kernel, stride, dilation = on_each_axis(1, 4), on_each_axis(1, 3), on_each_axis(1, 2)
    options: dict[str, Any] = {"stride": stride, "dilation": dilation, "groups": groups, "bias": draw(st.booleans())}
    padding: Any = on_each_axis(0, *(2 if length > 1 else 1 for length in kernel))
    if kind in TRANSPOSED:
        largest = (max(s, d) - 1 for s, d in zip(stride, dilation, strict=True))
        options["output_padding"] = on_each_axis(0, *largest)
    else:
        options["padding_mode"] = draw(st.sampled_from(MODES))
        padding = draw(st.sampled_from([padding, padding, "valid", "same"]))
        if padding == "same":
            options["stride"] = 1
    sizes = (max(4, (k - 1) * d + 1) + draw(st.integers(0, 3)) for k, d in zip(kernel, dilation, strict=True))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    layer = kind(into, out, kernel, padding=padding, **options)
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return layer, torch.randn(2, into, *sizes, generator=generator)
