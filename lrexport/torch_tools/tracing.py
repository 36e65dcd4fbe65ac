"""Run a network once and watch how it uses its layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lrexport.torch_tools.forward_errors import forward_error
from lrexport.torch_tools.modes import eval_mode


@dataclass(frozen=True)
class LayerCall:
    """One use of a layer for one input of the network: on ``samples`` items, from ``input`` to ``output`` positions.

    Positions are the sizes along the kernel's axes, (H, W) for Conv2d; Linear has none, its samples are rows.
    """

    samples: int
    input: tuple[int, ...] = ()
    output: tuple[int, ...] = ()


@dataclass
class Uses:
    """How one forward pass used a layer: its calls, what else than a tensor it was given, and reads from outside."""

    calls: list[LayerCall] = field(default_factory=list)
    extra_arguments: bool = False
    weight_read: bool = False


def trace(network: nn.Module, layers: Iterable[nn.Module], input_shape: tuple[int, ...]) -> dict[nn.Module, Uses]:
    """Run one input through the network in eval mode and note how each of its ``layers``, Linear or ConvNd, is used."""
    uses = {layer: Uses() for layer in layers}
    watch = _WeightReads(uses)

    def enter(module: nn.Module, _args: object) -> None:
        watch.running.append(module)

    def leave(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        watch.running.pop()
        if module in uses:
            uses[module].calls.append(_call(module, given_to(args, kwargs), output))
            uses[module].extra_arguments |= len(args) + len(kwargs) > 1

    modules = [network, *(layer for layer in uses if layer is not network)]
    hooks: list[Any] = [module.register_forward_pre_hook(enter) for module in modules]
    hooks += [module.register_forward_hook(leave, with_kwargs=True) for module in modules]
    try:
        with watch:
            run_once(network, input_shape)
    finally:
        for hook in hooks:
            hook.remove()
    return uses


class _WeightReads(TorchFunctionMode):
    """Notes the layers whose weight or bias is read, by a function or for an attribute, while another module runs."""

    def __init__(self, uses: dict[nn.Module, Uses]) -> None:
        super().__init__()
        self.uses = uses
        self.running: list[nn.Module] = []
        self.owners: dict[int, list[nn.Module]] = {}
        for layer in uses:
            for parameter in layer.parameters(recurse=False):
                self.owners.setdefault(id(parameter), []).append(layer)

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self.running:
            for value in flat_tensors((args, kwargs)):
                owners = self.owners.get(id(value), [])
                if self.running[-1] not in owners:
                    for owner in owners:
                        self.uses[owner].weight_read = True
        return func(*args, **(kwargs or {}))


def flat_tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in nested arguments or outputs, in their order."""
    if is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from flat_tensors(tuple(value.values()))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from flat_tensors(part)


def given_to(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The input in the arguments of a layer's call."""
    return args[0] if args else kwargs["input"]


def _call(layer: nn.Module, given: Tensor, output: Tensor) -> LayerCall:
    if isinstance(layer, nn.Linear):
        return LayerCall(given.numel() // given.shape[-1])
    axes = len(layer.kernel_size)  # type: ignore[arg-type]
    samples = 1 if given.ndim == axes + 1 else given.shape[0]  # an input without batch is taken, too
    return LayerCall(samples, tuple(given.shape[-axes:]), tuple(output.shape[-axes:]))


@contextmanager
def watching_inputs(layers: Iterable[nn.Module], note: Callable[[nn.Module, Tensor], object]) -> Iterator[None]:
    """Inside the block ``note`` is called with each of ``layers`` that runs and with its input."""

    def enter(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        note(layer, given_to(args, kwargs))

    hooks = [layer.register_forward_pre_hook(enter, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def largest_output(network: nn.Module, input_shape: tuple[int, ...]) -> int:
    """The most values that one module of the network puts out for one input of ``input_shape``."""
    sizes = [1]

    def note(_module: nn.Module, _args: object, output: object) -> None:
        if isinstance(output, Tensor):
            sizes.append(output.numel())

    hooks = [module.register_forward_hook(note) for module in network.modules()]
    try:
        run_once(network, input_shape)
    finally:
        for hook in hooks:
            hook.remove()
    return max(sizes)


def example_input(network: nn.Module, input_shape: tuple[int, ...]) -> Tensor:
    """One input of zeros, (1, *input_shape), on the network's device and in its first floating-point parameter's dtype."""
    parameters: list[Tensor] = [*network.parameters(), torch.empty(0)]
    dtype = next(parameter.dtype for parameter in parameters if parameter.is_floating_point())
    return torch.zeros((1, *input_shape), device=parameters[0].device, dtype=dtype)


def noise(network: nn.Module, input_shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """As :func:`example_input`, of normally distributed numbers, always the same for one seed."""
    drawn = torch.randn((1, *input_shape), generator=torch.Generator().manual_seed(seed))
    return drawn.to(example_input(network, input_shape))


@torch.no_grad()
def run_once(network: nn.Module, input_shape: tuple[int, ...], images: Tensor | None = None) -> Tensor:
    """Output for one input in eval mode, by default zeros. Raises InputError where the network does not take it."""
    with eval_mode(network):
        try:
            return network(example_input(network, input_shape) if images is None else images)
        except Exception as error:
            raise forward_error(error, input_shape) from error
