"""Whether a network runs with pairs in the places of its layers, tried out before hours are spent on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from lrexport.errors import InputError
from lrexport.lowrank.pairs import put_pairs, untrained_pair
from lrexport.lowrank.tracing import run_once

if TYPE_CHECKING:
    from lrexport.lowrank.inspection import Factorisable


def misfits(network: nn.Module, input_shape: tuple[int, ...], layers: Mapping[str, Factorisable]) -> dict[str, str]:
    """Those of ``layers`` that cannot be pairs, with the reason: pairs of rank 1 are put in their places, and one input run.

    A network may want something of a layer that a pair has not, or call it from elsewhere than its place. The network is
    left as it was.
    """
    if _misfit(network, input_shape, layers) is None:
        return {}
    fitting: dict[str, Factorisable] = {}
    found: dict[str, str] = {}
    for name, layer in layers.items():
        why = _misfit(network, input_shape, {**fitting, name: layer})
        if why is None:
            fitting[name] = layer
        else:
            found[name] = why
    return found


def _misfit(network: nn.Module, input_shape: tuple[int, ...], layers: Mapping[str, Factorisable]) -> str | None:
    wanted = Counter(name for layer in layers.values() for name, _ in layer.calls)
    found: Counter[str] = Counter()
    with _pairs_in_place(network, layers), ExitStack() as hooks:
        for name in wanted:
            pair = network.get_submodule(name)
            hooks.callback(pair.register_forward_hook(lambda *_given, name=name: found.update([name])).remove)
        try:
            run_once(network, input_shape)
        except InputError as error:
            return f"the network does not run with a pair in its place: {error.__cause__}"
    return None if found == wanted else "the network calls it from elsewhere than its place"


@contextmanager
def _pairs_in_place(network: nn.Module, layers: Mapping[str, Factorisable]) -> Iterator[None]:
    before = {place: network.get_submodule(place) for layer in layers.values() for place in layer.names}
    try:
        with torch.random.fork_rng(devices=()):  # their weights are drawn, and nobody else's are to be others for it
            for name, layer in layers.items():
                put_pairs(network, layer.names, layer.scheme, 1, untrained_pair(before[name], layer.scheme, 1))
        yield
    finally:
        for place, module in before.items():
            parent, _, child = place.rpartition(".")
            setattr(network.get_submodule(parent), child, module)
