"""Whether a network stays what it is with pairs in the places of its layers, tried out before hours are spent on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from lrexport.errors import InputError
from lrexport.lowrank.eligibility.factorisable import Factorisable
from lrexport.lowrank.layers.pairs import as_pair, put
from lrexport.torch_tools.tracing import noise, run_once


def misfits(network: nn.Module, input_shape: tuple[int, ...], layers: Mapping[str, Factorisable]) -> dict[str, str]:
    """Those of ``layers`` that cannot be pairs, and why: what looks like one is put in their places, and one input run.

    A network may want something of a layer that a pair has not, call it from elsewhere than its place, or ask what kind of
    a layer it is. It is left as it was.
    """
    if not layers:
        return {}
    images = noise(network, input_shape)

    def run() -> Tensor:
        return run_once(network, input_shape, images.clone())  # which a network may change in place

    wanted = run()
    if _misfit(network, layers, run, wanted) is None:
        return {}
    fitting: dict[str, Factorisable] = {}
    reasons: dict[str, str] = {}
    for name, layer in layers.items():
        why = _misfit(network, {**fitting, name: layer}, run, wanted)
        if why is None:
            fitting[name] = layer
        else:
            reasons[name] = why
    return reasons


def _misfit(network: nn.Module, layers: Mapping[str, Factorisable], run: Callable[[], Tensor], wanted: Tensor) -> str | None:
    """Why ``run``, with stand-ins for ``layers``, does not give what is ``wanted``; None where it does."""
    calls = Counter[str]()
    expected = Counter(name for layer in layers.values() for name, _ in layer.calls)
    with _stand_ins(network, layers), ExitStack() as hooks:
        for name in expected:
            pair = network.get_submodule(name)
            hooks.callback(pair.register_forward_hook(lambda *_given, name=name: calls.update([name])).remove)
        try:
            output = run()
        except InputError as error:
            return f"the network does not run with a pair in its place: {error.__cause__}"
    if calls != expected:
        return "the network calls it from elsewhere than its place"
    if _same(output, wanted) or not _same(run(), wanted):  # it draws lots
        return None
    return "the network does something else with a pair in its place"


@contextmanager
def _stand_ins(network: nn.Module, layers: Mapping[str, Factorisable]) -> Iterator[None]:
    """What looks like a pair and computes what the layer does, in the places of ``layers``."""
    before = {place: network.get_submodule(place) for layer in layers.values() for place in layer.names}
    pairs = {layer: as_pair(layer, layer, nn.Identity()) for layer in before.values()}
    try:
        for place, layer in before.items():
            put(network, place, pairs[layer])
        yield
    finally:
        for place, layer in before.items():
            put(network, place, layer)


def _same(output: object, wanted: object) -> bool:
    """Whether two outputs are, as far as they are tensors."""
    if not isinstance(output, Tensor) or not isinstance(wanted, Tensor):
        return True
    return output.shape == wanted.shape and torch.allclose(output, wanted, rtol=1e-3, atol=1e-6, equal_nan=True)
