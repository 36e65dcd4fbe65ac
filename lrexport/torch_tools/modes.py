"""Training and eval mode for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def in_mode(network: nn.Module, training: bool) -> Iterator[None]:
    """Training or eval mode inside; every module back in its own mode afterwards."""
    modes = [(module, module.training) for module in network.modules()]
    network.train(training)
    try:
        yield
    finally:
        for module, before in modes:
            module.training = before


@contextmanager
def eval_mode(network: nn.Module) -> Iterator[None]:
    """Eval mode and float32 inside, whatever autocast the network's forward asks for; every module back in its mode after.

    An exported file computes in float32, so this is what is scored, counted and compared everywhere.
    """
    with in_mode(network, training=False), _ignoring_autocast():
        yield


@contextmanager
def _ignoring_autocast() -> Iterator[None]:
    """Regions of torch.autocast that begin inside do nothing; one that was begun outside goes on."""
    usual = {name: getattr(torch.autocast, name) for name in ("__enter__", "__exit__")}
    idle: dict[str, Any] = {"__enter__": lambda region: region, "__exit__": lambda *_given: None}
    try:
        for name, method in idle.items():
            setattr(torch.autocast, name, method)
        yield
    finally:
        for name, method in usual.items():
            setattr(torch.autocast, name, method)
