"""What of two networks can be compared: their outputs, or those of the modules behind which shapes depend on values.

A detector's boxes are as many as it finds; before that, its backbone and its head return as many values for any image.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import Tensor, nn

from lrexport.errors import InputError
from lrexport.lowrank.layers.kernels import WEIGHTED
from lrexport.torch_tools.batch import Batch, call
from lrexport.torch_tools.memory_layout import fast_layout
from lrexport.torch_tools.modes import eval_mode
from lrexport.torch_tools.outputs import flat_tensors, named_tensors, refilled

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


def decisive(networks: tuple[nn.Module, ...], inputs: Batch) -> tuple[str, ...]:
    """Those of :func:`comparable` that the networks' outputs are computed from. Raises as that does.

    Not a backbone that only the head reads: it may differ where the head makes up for it.
    """
    names = comparable(networks, inputs)
    return names if len(names) == 1 else _last_of(networks[0], names, inputs)


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


@torch.no_grad()
def _last_of(network: nn.Module, names: tuple[str, ...], inputs: Batch) -> tuple[str, ...]:
    """Those of the modules whose outputs change the network's although the others' are held; all if none does.

    Values are changed, not followed by gradients, which do not pass a detector's proposals.
    """
    held: dict[str, Any] = {}
    batch = fast_layout(network, inputs.clone())

    def outputs(changed: str | None = None) -> list[Tensor]:
        """The network's outputs, with those of the modules held and of one of them changed; the first call only holds."""

        def note(name: str) -> Any:
            def leave(_module: nn.Module, _args: object, output: Any) -> Any:
                return _copied(held.setdefault(name, _copied(output)), different=name == changed)

            return leave

        with ExitStack() as hooks, eval_mode(network):
            for name in names:
                hooks.callback(network.get_submodule(name).register_forward_hook(note(name)).remove)
            return list(flat_tensors(call(network, batch.clone())))

    usual = outputs()
    return tuple(name for name in names if not _are_equal(outputs(name), usual)) or names


def _copied(output: Any, different: bool = False) -> Any:
    """A copy of an output, with other floating-point values of about the same size if ``different``."""
    generator = torch.Generator().manual_seed(0)

    def copy(tensor: Tensor) -> Tensor:
        if not different or not tensor.is_floating_point():
            return tensor.clone()
        noise = torch.randn(tensor.shape, generator=generator).to(tensor)
        return tensor + noise * tensor.square().mean().sqrt().clamp_min(1e-3)

    return refilled(output, map(copy, flat_tensors(output)))


def _are_equal(outputs: list[Tensor], others: list[Tensor]) -> bool:
    return len(outputs) == len(others) and all(map(torch.equal, outputs, others))


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
