"""What of two networks can be compared: their outputs, or those of the modules behind which shapes depend on values.

A detector's boxes are as many as it finds; before that, its backbone and its head return as many values for any image.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import nn

from lrexport.errors import InputError
from lrexport.lowrank.layers.kernels import WEIGHTED
from lrexport.torch_tools.batch import Batch, call
from lrexport.torch_tools.memory_layout import fast_layout
from lrexport.torch_tools.modes import eval_mode
from lrexport.torch_tools.outputs import named_tensors

_Shapes = dict[str, tuple[int, ...]]


class _EnoughError(Exception):
    """Ends a forward pass early."""


def comparable(networks: tuple[nn.Module, ...], inputs: Batch) -> tuple[str, ...]:
    """The modules whose outputs to compare, by name: ("",) for the networks' own outputs, else the outermost ones.

    ``inputs`` are three or more. All floating-point tensors must have the same shapes in all networks, with rows that grow
    with the number of inputs. Raises InputError if no module has such outputs.
    """
    seen = [[_shapes(network, inputs[:count]) for count in (2, 3)] for network in networks]
    names = tuple(_pick(networks[0], "", seen))
    if not names:
        raise InputError(
            "the network has no output whose shape is the same for all inputs, so outputs cannot be compared",
            "Its forward, or a module in it, must return floating-point tensors (B, …).",
        )
    return names


def outputs_of(network: nn.Module, names: tuple[str, ...], inputs: Batch) -> Any:
    """The network's output for a batch in its present mode; with other modules than "" a dict of theirs by name."""
    if names == ("",):
        return call(network, fast_layout(network, inputs))
    inputs = fast_layout(network, inputs)
    return called_until(network, names, inputs.arguments(network))


def called_until(network: nn.Module, names: tuple[str, ...], arguments: tuple[Any, Any]) -> Any:
    """As :func:`outputs_of` for positional and named ``arguments``; the forward ends with the last of the modules."""
    positional, named = arguments
    if names == ("",):
        return network(*positional, **named)
    outputs: dict[str, Any] = {}

    def note(name: str) -> Any:
        def leave(_module: nn.Module, _args: object, output: Any) -> None:
            outputs[name] = output
            if len(outputs) == len(names):
                raise _EnoughError

        return leave

    with ExitStack() as hooks:
        for name in names:
            hooks.callback(network.get_submodule(name).register_forward_hook(note(name)).remove)
        with suppress(_EnoughError):
            network(*positional, **named)
    return {name: outputs[name] for name in names}


@torch.no_grad()
def _shapes(network: nn.Module, inputs: Batch) -> dict[str, list[_Shapes]]:
    """Shapes of the floating-point outputs of every call of every module, divided by the number of inputs if possible."""
    shapes: dict[str, list[_Shapes]] = {}

    def note(name: str) -> Any:
        def leave(_module: nn.Module, _args: object, output: Any) -> None:
            floats = {key: each for key, each in named_tensors(output).items() if each.is_floating_point()}
            shapes.setdefault(name, []).append(
                {key: _of_one(tuple(each.shape), len(inputs)) for key, each in floats.items()}
            )

        return leave

    batch = fast_layout(network, inputs.clone())
    with ExitStack() as hooks, eval_mode(network):
        for name, module in network.named_modules():
            hooks.callback(module.register_forward_hook(note(name)).remove)
        call(network, batch)
    return shapes


def _of_one(shape: tuple[int, ...], samples: int) -> tuple[int, ...]:
    """The shape for one sample; () if the rows are not those of samples."""
    return (shape[0] // samples, *shape[1:]) if shape and shape[0] and shape[0] % samples == 0 else ()


def _pick(network: nn.Module, name: str, seen: list[list[dict[str, list[_Shapes]]]]) -> Iterator[str]:
    """``name`` if its outputs can be compared, else those modules in it whose outputs can."""
    module = network.get_submodule(name)
    if next(module.parameters(), None) is None:
        return
    calls = [shapes.get(name, []) for of_network in seen for shapes in of_network]
    if all(each == calls[0] and len(each) == 1 for each in calls) and calls[0][0] and all(calls[0][0].values()):
        yield name
    elif not isinstance(module, WEIGHTED):
        for child, _ in module.named_children():
            yield from _pick(network, f"{name}.{child}" if name else child, seen)
