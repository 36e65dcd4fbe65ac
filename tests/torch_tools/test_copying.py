"""Copies of networks that keep what their forward pass or their builder made on their modules."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lrexport.torch_tools.copying import copy_network


def _script() -> Any:
    def double(x: Tensor) -> Tensor:
        return 2 * x

    return torch.jit.script(double)


class Keeping(nn.Module):
    def __init__(self, make: Callable[[nn.Module], object]) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.kept = make(self)

    def forward(self, x: Tensor) -> Tensor:
        self.loss = self.layer(x).square().mean()
        return self.layer(x)  # type: ignore[no-any-return]


STATE: dict[str, Callable[[nn.Module], object]] = {
    "a lock": lambda _: threading.Lock(),
    "locks in containers": lambda _: {"a": [threading.RLock(), (threading.Lock(),)]},
    "a computed tensor": lambda module: module.layer.weight.norm(dim=1),
    "computed tensors in containers": lambda module: [{"a": (module.layer.weight * 2,)}],
    "a generator": lambda _: (index for index in range(3)),
    "an open file": lambda _: Path(__file__).open(),  # noqa: SIM115 - it is to stay open
    "a thread that waits": lambda _: threading.Timer(1, print),
    "a condition": lambda _: threading.Condition(),
    "an object that holds a lock": lambda _: functools.partial(print, threading.Lock()),
    "a random generator": lambda _: torch.Generator().manual_seed(3),
    "a scripted function": lambda _: _script(),
    "a method of its own": lambda module: module.forward,
    "a function that knows it": lambda module: lambda: module,
    "a container that holds itself": lambda _: _cycle(),
}


def _cycle() -> list[object]:
    made: list[object] = [threading.Lock()]
    made.append(made)
    return made


@pytest.mark.parametrize("what", STATE)
def test_a_network_is_copied_whatever_it_keeps(what: str) -> None:
    network = Keeping(STATE[what])
    network(torch.randn(2, 4))
    other = copy_network(network)
    images = torch.randn(2, 4)
    assert torch.equal(other(images), network(images))
    with torch.no_grad():
        other.layer.weight.zero_()
    assert network.layer.weight.any()
    assert other.loss.shape == ()


def test_buffers_that_were_computed_are_copied() -> None:
    network = Keeping(lambda _: None)
    network.register_buffer("scale", network.layer.weight.sum())
    other = copy_network(network)
    assert torch.equal(other.get_buffer("scale"), network.get_buffer("scale"))
    assert not other.get_buffer("scale").requires_grad


def test_tied_weights_and_own_methods_stay_so_in_the_copy() -> None:
    network = Keeping(lambda module: (module.forward, module.layer))
    network.tied = nn.Linear(4, 4)
    network.tied.weight = network.layer.weight
    other = copy_network(network)
    assert other.tied.weight is other.layer.weight is not network.layer.weight
    method, layer = other.kept  # type: ignore[misc]
    assert method.__self__ is other
    assert layer is other.layer
