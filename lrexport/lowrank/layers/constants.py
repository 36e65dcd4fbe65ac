"""Layers with constant inputs: an exported graph contains their result, so they cost nothing there.

For example, Swin v2 computes its position bias by two Linear layers from a table of coordinates.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lrexport.signature import Signature
from lrexport.torch_tools.batch import call
from lrexport.torch_tools.modes import eval_mode
from lrexport.torch_tools.tracing import example_input, noise, run_once, watching_inputs


def constant_layers(network: nn.Module, layers: Collection[nn.Module], signature: Signature) -> set[nn.Module]:
    """Those of ``layers`` that are called, but whose inputs do not depend on the network's inputs.

    Raises InputError if the network does not accept inputs of ``signature``.
    """
    suspects = set(layers) - _reached_by_gradients(network, layers, signature)
    return _given_the_same(network, suspects, signature) if suspects else set()


def _reached_by_gradients(network: nn.Module, layers: Collection[nn.Module], signature: Signature) -> set[nn.Module]:
    """Layers whose input depends on the network's according to autograd, even through functions of other libraries."""
    reached: set[nn.Module] = set()

    def note(module: nn.Module, given: Tensor) -> None:
        if given.requires_grad:
            reached.add(module)

    inputs = example_input(network, signature).map(_with_gradient)
    try:
        with watching_inputs(layers, note), _frozen(network), torch.enable_grad():
            call(network, inputs.clone())
    except Exception:  # some networks only run without gradients (`out=`, `.numpy()`)
        return set()
    return reached


def _with_gradient(tensor: Tensor) -> Tensor:
    return tensor.requires_grad_() if tensor.is_floating_point() else tensor


def _given_the_same(network: nn.Module, layers: Collection[nn.Module], signature: Signature) -> set[nn.Module]:
    """Layers whose input is the same for two inputs of the network, because a network may detach tensors.

    A branch of a network may call a layer for one of them only.
    """
    one, other = (_inputs_for(network, layers, signature, seed) for seed in (0, 1))
    return {module for module, tensors in one.items() if _are_equal(tensors, other.get(module, []))}


def _inputs_for(
    network: nn.Module, layers: Collection[nn.Module], signature: Signature, seed: int
) -> dict[nn.Module, list[Tensor]]:
    """The inputs of layers for noise, because a normalisation can make all constant inputs equal."""
    given: dict[nn.Module, list[Tensor]] = {}
    with watching_inputs(layers, lambda module, tensor: given.setdefault(module, []).append(tensor.detach().clone())):
        run_once(network, signature, noise(network, signature, seed))
    return given


def _are_equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(first, second) for first, second in zip(one, other, strict=True))


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
