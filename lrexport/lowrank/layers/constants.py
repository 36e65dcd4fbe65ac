"""Layers with constant inputs: an exported graph contains their result, so they cost nothing there.

For example, Swin v2 computes its position bias by two Linear layers from a table of coordinates.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lrexport.torch_tools.modes import eval_mode
from lrexport.torch_tools.tracing import example_input, noise, run_once, watching_inputs


def constant_layers(network: nn.Module, layers: Collection[nn.Module], input_shape: tuple[int, ...]) -> set[nn.Module]:
    """Those of ``layers`` that are called, but whose inputs do not depend on the network's input.

    ``input_shape`` is without the batch. Raises InputError if the network does not accept an input of this shape.
    """
    suspects = set(layers) - _reached_by_gradients(network, layers, input_shape)
    return _given_the_same(network, suspects, input_shape) if suspects else set()


def _reached_by_gradients(network: nn.Module, layers: Collection[nn.Module], input_shape: tuple[int, ...]) -> set[nn.Module]:
    """Layers whose input depends on the network's according to autograd, even through functions of other libraries."""
    reached: set[nn.Module] = set()

    def note(module: nn.Module, given: Tensor) -> None:
        if given.requires_grad:
            reached.add(module)

    images = example_input(network, input_shape)
    try:
        with watching_inputs(layers, note), _frozen(network), torch.enable_grad():
            network(images.requires_grad_().clone())
    except Exception:  # some networks only run without gradients (`out=`, `.numpy()`)
        return set()
    return reached


def _given_the_same(network: nn.Module, layers: Collection[nn.Module], input_shape: tuple[int, ...]) -> set[nn.Module]:
    """Layers whose input is the same for two inputs of the network, because a network may detach tensors."""
    given: dict[nn.Module, list[Tensor]] = {}
    with watching_inputs(layers, lambda module, tensor: given.setdefault(module, []).append(tensor.detach().clone())):
        for seed in (0, 1):  # noise, because a normalisation can make all constant inputs equal
            run_once(network, input_shape, noise(network, input_shape, seed))
    return {module for module, tensors in given.items() if _halves_are_equal(tensors)}


def _halves_are_equal(tensors: list[Tensor]) -> bool:
    half = len(tensors) // 2
    return all(torch.equal(first, second) for first, second in zip(tensors[:half], tensors[-half:], strict=True))


@contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """Inside the block, the network is in eval mode and no parameter requires gradients."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        with eval_mode(network):
            yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
