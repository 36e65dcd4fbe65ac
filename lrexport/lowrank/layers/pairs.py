"""Pairs: the two plain layers that replace a layer, and how they are put into a network."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

from torch import nn

from lrexport.lowrank.layers.kernels import WEIGHTED
from lrexport.lowrank.layers.schemes import SCHEMES
from lrexport.plan import Pair, PairChoice, Scheme

_HALVES = ["first", "second"]  # in the order in which they run
# Attributes of a layer that networks use, as in `x.view(-1, self.head.in_features)`.
_SIZES = ("in_features", "out_features", "in_channels", "out_channels")


def is_pair(module: nn.Sequential) -> bool:
    """Whether a module is a pair."""
    return [name for name, _ in module.named_children()] == _HALVES and all(isinstance(half, WEIGHTED) for half in module)


def untrained_pair(layer: Any, scheme: Scheme, rank: int) -> nn.Sequential:
    """A pair for the layer, with uninitialised weights and the layer's bias in the second half."""
    first, second = SCHEMES[scheme].pair(layer, rank)
    if layer.bias is not None:
        second.bias = nn.Parameter(layer.bias.detach().clone())
    return as_pair(layer, first, second)


def as_pair(layer: Any, first: nn.Module, second: nn.Module) -> nn.Sequential:
    """Two modules as a pair, with the layer's mode and its attributes for sizes."""
    pair = nn.Sequential(OrderedDict(zip(_HALVES, (first, second), strict=True))).train(layer.training)
    for name in _SIZES:
        if hasattr(layer, name):
            setattr(pair, name, getattr(layer, name))
    return pair


def put(network: nn.Module, place: str, module: nn.Module) -> None:
    """Replace the module at ``place`` in the network by ``module``."""
    parent, _, child = place.rpartition(".")
    setattr(network.get_submodule(parent), child, module)


def put_pairs(network: nn.Module, places: Iterable[str], planned: Pair | PairChoice, pair: nn.Sequential) -> None:
    """Replace a layer by ``pair``; other layers with its weight get pairs with the same weights, but own stride and bias."""
    pairs: dict[nn.Module, nn.Sequential] = {}
    layers = {place: network.get_submodule(place) for place in places}  # read all before any is replaced
    for place, layer in layers.items():
        if pairs and layer not in pairs:
            pairs[layer] = untrained_pair(layer, planned.scheme, planned.rank)
            for half, tied in zip(pair, pairs[layer], strict=True):
                tied.weight = half.weight
        put(network, place, pairs.setdefault(layer, pair))
