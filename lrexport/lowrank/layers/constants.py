"""Layers that work on constants alone: an exported graph holds their result, so they cost nothing there.

Swin v2 computes its position bias so: by two Linear layers from a table of coordinates.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lrexport.torch_tools.modes import eval_mode
from lrexport.torch_tools.tracing import example_input, noise, run_once, watching_inputs


def constant_layers(network: nn.Module, layers: Collection[nn.Module], input_shape: tuple[int, ...]) -> set[nn.Module]:
    """Those of ``layers`` that are called, but given nothing that depends on the network's input.

    Raises InputError where the network does not take an input of ``input_shape``, without the batch.
    """
    suspects = set(layers) - _reached_by_gradients(network, layers, input_shape)
    return _given_the_same(network, suspects, input_shape) if suspects else set()


def _reached_by_gradients(network: nn.Module, layers: Collection[nn.Module], input_shape: tuple[int, ...]) -> set[nn.Module]:
    """Layers whose input autograd connects with the network's, also through functions of other libraries."""
    reached: set[nn.Module] = set()

    def note(module: nn.Module, given: Tensor) -> None:
        if given.requires_grad:
            reached.add(module)

    images = example_input(network, input_shape)
    try:
        with watching_inputs(layers, note), _frozen(network), torch.enable_grad():
            network(images.requires_grad_().clone())
    except Exception:  # what runs without gradients need not run with them (`out=`, `.numpy()`)
        return set()
    return reached


def _given_the_same(network: nn.Module, layers: Collection[nn.Module], input_shape: tuple[int, ...]) -> set[nn.Module]:
    """Layers that are given the same for another input, too: a network may detach what depends on its input."""
    given: dict[nn.Module, list[Tensor]] = {}
    with watching_inputs(layers, lambda module, tensor: given.setdefault(module, []).append(tensor.detach().clone())):
        for seed in (0, 1):  # not of one value, which can be standardised away
            run_once(network, input_shape, noise(network, input_shape, seed))
    return {module for module, tensors in given.items() if _halves_are_equal(tensors)}


def _halves_are_equal(tensors: list[Tensor]) -> bool:
    half = len(tensors) // 2
    return all(torch.equal(one, other) for one, other in zip(tensors[:half], tensors[-half:], strict=True))


@contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """Eval mode, and no parameter with gradients."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        with eval_mode(network):
            yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
