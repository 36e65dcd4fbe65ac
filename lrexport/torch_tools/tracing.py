"""Run a network once and observe how it uses its layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lrexport.signature import Signature
from lrexport.torch_tools.batch import Batch, call, draw_input, still_input
from lrexport.torch_tools.forward_errors import forward_error
from lrexport.torch_tools.modes import eval_mode
from lrexport.torch_tools.outputs import flat_tensors


@dataclass(frozen=True)
class LayerCall:
    """One call of a layer for one input of the network: ``samples`` items, from ``input`` to ``output`` sizes.

    Sizes are along the kernel's axes, (H, W) for Conv2d; Linear has none, and its samples are rows.
    """

    samples: int
    input: tuple[int, ...] = ()
    output: tuple[int, ...] = ()


@dataclass
class Uses:
    """How one forward pass used a layer: its calls, whether with further arguments, and whether others read its weight."""

    calls: list[LayerCall] = field(default_factory=list)
    extra_arguments: bool = False
    weight_read: bool = False


def trace(network: nn.Module, layers: Iterable[nn.Module], signature: Signature) -> dict[nn.Module, Uses]:
    """Run one sample through the network in eval mode: the uses of each of its ``layers``, Linear or ConvNd."""
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
            run_once(network, signature)
    finally:
        for hook in hooks:
            hook.remove()
    return uses


class _WeightReads(TorchFunctionMode):
    """Records the layers whose weight or bias is read, by a function or for an attribute, while another module runs."""

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


def given_to(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The input among the arguments of a layer's call."""
    return args[0] if args else kwargs["input"]


def _call(layer: nn.Module, given: Tensor, output: Tensor) -> LayerCall:
    if isinstance(layer, nn.Linear):
        return LayerCall(given.numel() // given.shape[-1])
    axes = len(layer.kernel_size)  # type: ignore[arg-type]
    samples = 1 if given.ndim == axes + 1 else given.shape[0]  # layers also accept inputs without a batch
    return LayerCall(samples, tuple(given.shape[-axes:]), tuple(output.shape[-axes:]))


@contextmanager
def watching_inputs(layers: Iterable[nn.Module], note: Callable[[nn.Module, Tensor], object]) -> Iterator[None]:
    """Inside the block, ``note`` is called with each of ``layers`` that runs, and its input."""

    def enter(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        note(layer, given_to(args, kwargs))

    hooks = [layer.register_forward_pre_hook(enter, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def largest_output(network: nn.Module, signature: Signature) -> int:
    """The largest number of values in one module's output, for one sample."""
    sizes = [1]

    def note(_module: nn.Module, _args: object, output: object) -> None:
        if isinstance(output, Tensor):
            sizes.append(output.numel())

    hooks = [module.register_forward_hook(note) for module in network.modules()]
    try:
        run_once(network, signature)
    finally:
        for hook in hooks:
            hook.remove()
    return max(sizes)


def like_weights(network: nn.Module) -> Tensor:
    """An empty tensor on the network's device, in the precision of its first floating-point parameter."""
    parameters: list[Tensor] = [*network.parameters(), torch.empty(0)]
    dtype = next(parameter.dtype for parameter in parameters if parameter.is_floating_point())
    return torch.empty(0, device=parameters[0].device, dtype=dtype)


def example_input(network: nn.Module, signature: Signature, samples: int = 1) -> Batch:
    """Inputs of zeros, (samples, *shape) each, on the network's device and, without a dtype, in its precision."""
    like = like_weights(network)
    return Batch(tuple(still_input(spec, samples, like) for spec in signature), signature.names)


def noise(network: nn.Module, signature: Signature, seed: int = 0, samples: int = 1) -> Batch:
    """:func:`example_input` with random values within the inputs' ranges, always the same for one seed."""
    like, generator = like_weights(network), torch.Generator().manual_seed(seed)
    return Batch(tuple(draw_input(spec, samples, like, generator) for spec in signature), signature.names)


@torch.no_grad()
def run_once(network: nn.Module, signature: Signature, batch: Batch | None = None) -> Any:
    """The output in eval mode, by default for one sample of zeros. Raises InputError if the network does not accept it."""
    with eval_mode(network):
        try:
            return call(network, example_input(network, signature) if batch is None else batch)
        except Exception as error:
            raise forward_error(error, signature) from error
