"""Scale SGD steps of factors so that they change the kernel about as much as steps of the kernel itself.

If a kernel is a product L · R, a step dL changes it by dL · R, and the gradient of L contains R as well. So along each rank
plain SGD moves the kernel further by a factor of R's energy. Singular values of trained layers are 1 to 6, so with the
dense network's learning rate its factors diverge. Scaled gradient descent (Tong, Ma and Chi 2021, arXiv 2005.08898) divides
by that energy. Here the divisor is the energy plus its mean, and at least 1, so no step is longer than plain SGD's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lrexport.lowrank.factors.svd_form import factors, is_explicit
from lrexport.lowrank.layers.kernels import spec_of
from lrexport.lowrank.layers.pairs import is_pair


@torch.no_grad()
def scale_gradients(network: nn.Module) -> None:
    """Scale the gradients of U and V of layers in explicit SVD form, and of both halves of pairs, rank by rank, in place."""
    seen: set[int] = set()  # tied layers share their parameters
    for module in network.modules():
        if is_explicit(module):
            left, singular, right = factors(module)
            if id(left) not in seen:
                _scale_columns(left, singular, right)
            seen.add(id(left))
        elif isinstance(module, nn.Sequential) and is_pair(module):
            first, second = module
            if id(first.weight) not in seen:
                _scale_pair(first, second)
            seen.add(id(first.weight))


def _scale_columns(left: Tensor, singular: Tensor, right: Tensor) -> None:
    scale = _damped(singular.square()).unsqueeze(-2)
    for side in (left, right):
        if side.grad is not None:
            side.grad.mul_(scale)


def _scale_pair(first: nn.Module, second: nn.Module) -> None:
    of_first, of_second = _energies(first, True), _energies(second, False)
    for half, is_first, others in ((first, True, of_second), (second, False, of_first)):
        if isinstance(half.weight, Tensor) and half.weight.grad is not None:
            half.weight.grad.mul_(_spread(half, is_first, _damped(others)))


def _damped(energies: Tensor) -> Tensor:
    """The factors for gradients, from the energies of the other side, (…, r)."""
    return (energies + energies.mean(-1, keepdim=True)).clamp_min(1).reciprocal()


def _energies(half: nn.Module, is_first: bool) -> Tensor:
    """Sums of squares of a half's weight by rank, (groups, r): over output channels if ``is_first``, else input channels."""
    spec, weight = spec_of(half), half.weight
    assert isinstance(weight, Tensor)
    if is_first != spec.transposed:  # the ranks are on the weight's first axis
        return weight.square().flatten(1).sum(1).view(spec.groups, -1)
    grouped = weight.square().reshape(spec.groups, -1, *weight.shape[1:])
    return grouped.flatten(3).sum((1, 3)) if grouped.ndim > 3 else grouped.sum(1)


def _spread(half: nn.Module, is_first: bool, scale: Tensor) -> Tensor:
    """A scale for each rank, (groups, r), reshaped to multiply the half's weight."""
    spec, weight = spec_of(half), half.weight
    assert isinstance(weight, Tensor)
    ones = (1,) * (weight.ndim - 2)
    if is_first != spec.transposed:
        return scale.reshape(-1, 1, *ones)
    rows = weight.shape[0] // spec.groups
    return scale.unsqueeze(1).expand(-1, rows, -1).reshape(weight.shape[0], -1, *ones)
