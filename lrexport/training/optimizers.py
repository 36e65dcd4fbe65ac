"""Optimisers, with weight decay where it belongs."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from lrexport.lowrank.svd_form import SVDForm, factors, is_attached

Optimizer = Literal["sgd", "adam"]


def make_optimizer(
    network: nn.Module, kind: Optimizer, lr: float, momentum: float, weight_decay: float, scaled: bool = False
) -> torch.optim.Optimizer:
    """SGD with ``momentum``, or Adam with torch's own constants, as the paper's CIFAR networks were trained.

    With ``scaled`` SGD scales the gradients of U and V, see :func:`scale_gradients`; to Adam a column's scale is nothing.
    """
    groups = parameter_groups(network, weight_decay)
    if kind == "adam":
        return torch.optim.Adam(groups, lr=lr)
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=momentum)
    if scaled:
        optimizer.register_step_pre_hook(lambda *_: scale_gradients(network))
    return optimizer


@torch.no_grad()
def scale_gradients(network: nn.Module) -> None:
    """Scale the gradients of U and V, column by column, so that a step moves the kernel about as far as a dense step would.

    The kernel changes by dU · s · Vᵀ, and the gradient of U has the factor s as well: a step of plain SGD moves the kernel
    s² times as far as one on the kernel itself, and singular values of trained layers are 1 to 6. Columns are divided by
    s² + mean s², where that is more than 1: scaled gradient descent (Tong, Ma and Chi 2021, arXiv 2005.08898), damped.
    """
    for left, singular, right in {factors(layer): None for layer in filter(is_attached, network.modules())}:  # tied: once
        energies = singular.square()
        scale = (energies + energies.mean(-1, keepdim=True)).clamp_min(1).reciprocal().unsqueeze(-2)
        for side in (left, right):
            if side.grad is not None:
                side.grad.mul_(scale)


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """An optimiser's groups: ordinary weights decay; U, s, V do not."""
    held: list[Any] = [getattr(module, "parametrizations", {}) for module in network.modules()]
    forms = (form["weight"] for form in held if "weight" in form and isinstance(form["weight"][0], SVDForm))
    factors = {id(parameter) for form in forms for parameter in form.parameters()}
    ordinary = [parameter for parameter in network.parameters() if id(parameter) not in factors]
    free = [parameter for parameter in network.parameters() if id(parameter) in factors]
    groups = [{"params": ordinary, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
