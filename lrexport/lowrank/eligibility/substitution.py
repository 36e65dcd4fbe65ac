"""Test whether a network computes the same with pairs in place of its layers, before hours are spent on training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from lrexport.errors import InputError
from lrexport.lowrank.eligibility.factorisable import Factorisable
from lrexport.lowrank.layers.pairs import as_pair, put
from lrexport.signature import Signature
from lrexport.torch_tools.outputs import flat_tensors
from lrexport.torch_tools.tracing import noise, run_once


def misfits(network: nn.Module, signature: Signature, layers: Mapping[str, Factorisable]) -> dict[str, str]:
    """Those of ``layers`` that cannot become pairs, with reasons; found by running one input with substitutes for them.

    A network may use attributes of a layer that a pair lacks, call it through another reference, or test its type. The
    network is not changed.
    """
    if not layers:
        return {}
    inputs = noise(network, signature)

    def run() -> object:
        return run_once(network, signature, inputs.clone())  # a network may change its input in place

    reference = run()
    if _misfit(network, layers, run, reference) is None:
        return {}
    fitting: dict[str, Factorisable] = {}
    reasons: dict[str, str] = {}
    for name, layer in layers.items():
        why = _misfit(network, {**fitting, name: layer}, run, reference)
        if why is None:
            fitting[name] = layer
        else:
            reasons[name] = why
    return reasons


def _misfit(
    network: nn.Module, layers: Mapping[str, Factorisable], run: Callable[[], object], reference: object
) -> str | None:
    """Why ``run``, with substitutes for ``layers``, does not give the ``reference``; None if it does."""
    calls = Counter[str]()
    expected = Counter(name for layer in layers.values() for name, _ in layer.calls)
    with _substitutes(network, layers), ExitStack() as hooks:
        for name in expected:
            pair = network.get_submodule(name)
            hooks.callback(pair.register_forward_hook(lambda *_given, name=name: calls.update([name])).remove)
        try:
            output = run()
        except InputError as error:
            return f"the network does not run with a pair in its place: {error.__cause__}"
    if calls != expected:
        return "the network calls it through another reference"
    if _same(output, reference) or not _same(run(), reference):  # a network with random outputs cannot be compared
        return None
    return "the network computes something else with a pair in its place"


@contextmanager
def _substitutes(network: nn.Module, layers: Mapping[str, Factorisable]) -> Iterator[None]:
    """Inside the block, replace ``layers`` by modules that look like pairs and compute the same."""
    before = {place: network.get_submodule(place) for layer in layers.values() for place in layer.names}
    pairs = {layer: as_pair(layer, layer, nn.Identity()) for layer in before.values()}
    try:
        for place, layer in before.items():
            put(network, place, pairs[layer])
        yield
    finally:
        for place, layer in before.items():
            put(network, place, layer)


def _same(output: object, reference: object) -> bool:
    """Whether all tensors of two outputs are close."""
    outputs, expected = list(flat_tensors(output)), list(flat_tensors(reference))
    return len(outputs) == len(expected) and all(map(_equal, outputs, expected))


def _equal(output: Tensor, reference: Tensor) -> bool:
    if output.shape != reference.shape:
        return False
    return torch.allclose(output.double(), reference.double(), rtol=1e-3, atol=1e-6, equal_nan=True)
