"""Which layers of an ONNX file can be trained: those that gradients of its outputs reach."""

from __future__ import annotations

import torch

from lrexport.onnx_network.inputs import random_inputs
from lrexport.onnx_network.network import OnnxNetwork


def unreached(network: OnnxNetwork) -> tuple[str, ...]:
    """The layers that no gradient of the outputs for a random input reaches, in the order of the graph.

    They stand before operators that run in ONNX Runtime, before ones without a gradient, such as ArgMax, or do not run at
    all for such an input. The network's gradients are not changed.
    """
    weights = {layer.path: network.get_parameter(f"{layer.path}.weight") for layer in network.layers}
    given = random_inputs(network.inputs, next((each.detach() for each in weights.values()), torch.empty(0)))
    asked = {each: each.requires_grad for each in weights.values()}
    try:
        for each in asked:
            each.requires_grad_()
        with torch.enable_grad():
            outputs = network(*given)
            every = outputs.values() if isinstance(outputs, dict) else [outputs]
            sums = [output.double().sum() for output in every if output.requires_grad]
            if not sums:
                return tuple(weights)
            gradients = torch.autograd.grad(torch.stack(sums).sum(), list(weights.values()), allow_unused=True)
    finally:
        for each, before in asked.items():
            each.requires_grad_(before)
    return tuple(path for path, gradient in zip(weights, gradients, strict=True) if gradient is None)


def why_unreached(network: OnnxNetwork) -> str:
    """The reason in words, after a colon."""
    return network.untrainable or "its outputs, or what comes of these layers, have no gradient"
