"""Training and eval mode as contexts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def in_mode(network: nn.Module, training: bool) -> Iterator[None]:
    """Training or eval mode inside the block; afterwards every module is in its previous mode."""
    modes = [(module, module.training) for module in network.modules()]
    network.train(training)
    try:
        yield
    finally:
        for module, before in modes:
            module.training = before


@contextmanager
def eval_mode(network: nn.Module) -> Iterator[None]:
    """Eval mode and float32 inside the block, even if the network's forward uses autocast; then the previous modes.

    Exported files compute in float32, so networks are scored, counted and compared like this.
    """
    with in_mode(network, training=False), _ignoring_autocast():
        yield


@contextmanager
def _ignoring_autocast() -> Iterator[None]:
    """Regions of torch.autocast that begin inside the block have no effect; an outer region still has."""
    usual = {name: getattr(torch.autocast, name) for name in ("__enter__", "__exit__")}
    idle: dict[str, Any] = {"__enter__": lambda region: region, "__exit__": lambda *_given: None}
    try:
        for name, method in idle.items():
            setattr(torch.autocast, name, method)
        yield
    finally:
        for name, method in usual.items():
            setattr(torch.autocast, name, method)
