"""Inputs to compare an exported graph with torch on: random, real and extreme ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lrexport.signature import InputSpec, Signature
from lrexport.torch_tools.batch import Batch, draw_input
from lrexport.torch_tools.tracing import example_input, like_weights

# Number of real inputs to compare; also the largest batch of random inputs that is drawn a second time.
_REAL, _FEW = 8, 4


def comparison_inputs(
    network: nn.Module, signature: Signature, batch: int | None, samples: Batch | None, others: Sequence[Signature] = ()
) -> dict[str, Batch]:
    """Random and real inputs with the fixed batch, or with several sizes of a dynamic one; and random ones of ``others``."""
    generator, like = torch.Generator().manual_seed(0), like_weights(network)
    sizes = (1, 2, 5) if batch is None else (batch,) * (3 if batch <= _FEW else 2)
    inputs: dict[str, Batch] = {}
    for number, size in enumerate(sizes):
        again = f", draw {number + 1}" if number and batch is not None else ""
        drawn = tuple(draw_input(spec, size, like, generator) for spec in signature)
        inputs[f"random input, batch {size}{again}"] = Batch(drawn, signature.names)
    if samples is not None and len(samples):
        size = batch or min(_REAL, len(samples))
        for start in range(0, min(len(samples), max(_REAL, size)), size):
            real = Batch(samples[start : start + size].filled(size).tensors, signature.names).to(torch.device("cpu"))
            inputs[f"real input, batch {size}" + (f", from sample {start + 1}" if start else "")] = real
    for other in others:
        drawn = tuple(draw_input(spec, batch or 2, like, generator) for spec in other)
        inputs[f"random input of {other}, batch {batch or 2}"] = Batch(drawn, other.names)
    return inputs


def extreme_inputs(network: nn.Module, signature: Signature, batch: int | None) -> dict[str, Batch]:
    """Extreme inputs: all zeros, and values far outside those of a normalised image."""
    size, generator, like = batch or 2, torch.Generator().manual_seed(1), like_weights(network)
    large = tuple(_large(spec, size, like, generator) for spec in signature)
    extremes = {f"an input of zeros, batch {size}": example_input(network, signature, size)}
    return extremes | {f"large random input, batch {size}": Batch(large, signature.names)}


def _large(spec: InputSpec, size: int, like: Tensor, generator: torch.Generator) -> Tensor:
    drawn = draw_input(spec, size, like, generator)
    if spec.low is None and spec.is_float:
        return 10 * drawn
    return drawn if spec.high is None else torch.full_like(drawn, spec.high)
