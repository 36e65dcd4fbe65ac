"""The parts of a folded network that can be trained alone against the same parts of the dense one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from lrexport.lowrank.layers.kernels import WEIGHTED
from lrexport.lowrank.layers.pairs import is_pair
from lrexport.torch_tools.batch import Batch, call
from lrexport.torch_tools.memory_layout import fast_layout
from lrexport.torch_tools.modes import eval_mode

Kind = Literal["pair", "block", "network"]


@dataclass(frozen=True)
class Part:
    """A module of the network by its name, "" for the whole network."""

    name: str
    kind: Kind


def parts_of(network: nn.Module) -> list[Part]:
    """Every pair, then every block, then the whole network.

    A block is the outermost module around a smallest group of several layers of which one is a pair: a residual block, a
    stage of layers in one Sequential.
    """
    pairs = [name for name, module in network.named_modules() if _is_pair(module)]
    layers = {name: frozenset(_layers(module, name)) for name, module in network.named_modules() if not _inside(name, pairs)}
    blocks: list[str] = []
    for name, inner in layers.items():
        if not name or len(inner) < 2 or inner.isdisjoint(pairs):
            continue
        smaller = any(len(other) > 1 and other < inner for other in layers.values())
        outermost = not any(layers[outer] == inner for outer in _outer(name) if outer)
        if not smaller and outermost:
            blocks.append(name)
    whole = [Part("", "network")] if pairs else []
    return [*(Part(name, "pair") for name in pairs), *(Part(name, "block") for name in blocks), *whole]


def called_once(parts: list[Part], networks: tuple[nn.Module, ...], inputs: Batch) -> list[Part]:
    """The parts that every one of the networks calls exactly once, in the order in which the last one calls them."""
    counts: dict[str, int] = {}
    order: list[str] = []

    def note(name: str) -> Any:
        def enter(_module: nn.Module, _args: object) -> None:
            counts[name] = counts.get(name, 0) + 1
            order.append(name)

        return enter

    names = {part.name for part in parts if part.name}
    for network in networks:
        order.clear()
        batch = fast_layout(network, inputs.clone())  # before the hooks, because it runs the network
        hooks = [network.get_submodule(name).register_forward_pre_hook(note(name)) for name in sorted(names)]
        try:
            with torch.no_grad(), eval_mode(network):
                call(network, batch)
        finally:
            for hook in hooks:
                hook.remove()
    place = {name: number for number, name in enumerate(order)}
    kept = [part for part in parts if not part.name or counts.get(part.name) == len(networks)]
    kinds: tuple[Kind, ...] = ("pair", "block", "network")
    return sorted(kept, key=lambda part: (kinds.index(part.kind), place.get(part.name, 0)))


def own_parameters(network: nn.Module, part: Part) -> list[nn.Parameter]:
    """The floating-point parameters of a part, frozen ones too, without those that modules outside of it share."""
    inside = network.get_submodule(part.name)
    mine = set(inside.modules())
    shared = {
        parameter for module in network.modules() if module not in mine for parameter in module.parameters(recurse=False)
    }
    return [each for each in inside.parameters() if each.is_floating_point() and each not in shared]


def _is_pair(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) and is_pair(module)


def _layers(module: nn.Module, name: str) -> Iterator[str]:
    """The names of the layers in a module; a pair is one layer."""
    if _is_pair(module) or isinstance(module, WEIGHTED):
        yield name
        return
    for child, inner in module.named_children():
        yield from _layers(inner, f"{name}.{child}" if name else child)


def _outer(name: str) -> Iterator[str]:
    while name:
        name = name.rpartition(".")[0]
        yield name


def _inside(name: str, pairs: list[str]) -> bool:
    return any(name.startswith(f"{pair}.") for pair in pairs)
