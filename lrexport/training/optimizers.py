"""Optimisers, with weight decay for ordinary weights only."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from lrexport.lowrank.factors.svd_form import SVDForm
from lrexport.training.scaling import scale_gradients

Optimizer = Literal["sgd", "adam"]


def make_optimizer(
    network: nn.Module, kind: Optimizer, lr: float, momentum: float, weight_decay: float, scaled: bool = False
) -> torch.optim.Optimizer:
    """SGD with ``momentum``, or Adam with torch's defaults, which trained the paper's CIFAR networks.

    With ``scaled`` SGD scales the gradients of factors (:mod:`lrexport.training.scaling`); Adam does its own scaling.
    """
    groups = parameter_groups(network, weight_decay)
    if kind == "adam":
        return torch.optim.Adam(groups, lr=lr)
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=momentum)
    if scaled:
        optimizer.register_step_pre_hook(lambda *_: scale_gradients(network))
    return optimizer


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Groups of parameters for an optimiser: ordinary weights decay; U, s, V do not."""
    parametrised: list[Any] = [getattr(module, "parametrizations", {}) for module in network.modules()]
    forms = (form["weight"] for form in parametrised if "weight" in form and isinstance(form["weight"][0], SVDForm))
    factors = {id(parameter) for form in forms for parameter in form.parameters()}
    ordinary = [parameter for parameter in network.parameters() if id(parameter) not in factors]
    free = [parameter for parameter in network.parameters() if id(parameter) in factors]
    groups = [{"params": ordinary, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
