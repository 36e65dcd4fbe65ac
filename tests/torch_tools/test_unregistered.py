"""Layers and weights that a network uses and has not registered."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from lrexport import InputError, decompose
from lrexport.torch_tools.unregistered import unregistered


class Holding(nn.Module):
    def __init__(self, held: object, use: Callable[[object, Tensor], Tensor]) -> None:
        super().__init__()
        self.first = nn.Linear(16, 16)
        self.held, self.use = held, use

    def forward(self, x: Tensor) -> Tensor:
        return self.use(self.held, self.first(x))


def _layer() -> nn.Module:
    return nn.Linear(16, 16)


CASES: dict[str, tuple[object, Callable[..., Tensor], str]] = {
    "a list": ([_layer(), nn.ReLU()], lambda held, x: held[1](held[0](x)), "held[0].weight, held[0].bias"),
    "a tuple": ((_layer(),), lambda held, x: held[0](x), "held[0].weight, held[0].bias"),
    "a dictionary": ({"a": _layer()}, lambda held, x: held["a"](x), "held['a'].weight, held['a'].bias"),
    "lists in lists": ([[], [_layer()]], lambda held, x: held[1][0](x), "held[1][0].weight, held[1][0].bias"),
    "an object": (SimpleNamespace(a=_layer()), lambda held, x: held.a(x), "held.a.weight, held.a.bias"),
    "a block": ([nn.Sequential(_layer())], lambda held, x: held[0](x), "held[0].0.weight, held[0].0.bias"),
    "parameters": ([nn.Parameter(torch.ones(16))], lambda held, x: x * held[0], "held[0]"),
    "trained tensors": ([torch.ones(16, requires_grad=True)], lambda held, x: x * held[0], "held[0]"),
}


@pytest.mark.parametrize("kind", CASES)
def test_weights_that_are_not_in_the_state_dict_are_named_before_any_work(kind: str) -> None:
    held, use, names = CASES[kind]
    with pytest.raises(InputError) as caught:
        decompose(Holding(held, use), (16,))
    assert caught.value.message == f"the network uses weights that are not in its state dict: {names}"
    assert "nn.ModuleList" in str(caught.value.hint)


def test_what_is_held_and_not_used_is_nobodys_business() -> None:
    network = Holding([_layer()], lambda _held, x: x)  # a teacher that is kept out of the state dict
    assert [*unregistered(network)] == ["held[0].weight", "held[0].bias"]
    assert [*decompose(network, (16,)).layers] == ["first"]


def test_layers_that_are_registered_elsewhere_may_stand_in_lists() -> None:
    layers = [_layer(), _layer()]
    network = Holding(layers, lambda held, x: held[1](held[0](x)))  # type: ignore[index]
    network.registered = nn.ModuleList(layers)
    assert unregistered(network) == {}
    decompose(network, (16,))
