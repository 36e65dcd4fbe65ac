"""Run a network once and watch how it uses its layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lrexport.torch_tools.forward_errors import forward_error
from lrexport.torch_tools.modules import in_mode


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


# Whether a network takes channels_last, once it is known; of one that was copied it is found out anew.
_TAKES: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def takes_channels_last(network: nn.Module, images: Tensor) -> bool:
    """Whether the network takes ``images`` (N, C, H, W) in channels_last, in which convolutions are faster.

    `x.view(len(x), -1)`, by which many a network flattens, is an error there.
    """
    if images.ndim != 4:
        return False
    if network not in _TAKES:
        one = images[:1]  # copied, as a network may change its input in place
        _TAKES[network] = _runs(network, channels_last(one.clone())) or not _runs(network, one.clone().contiguous())
    return _TAKES[network]


@torch.no_grad()
def _runs(network: nn.Module, images: Tensor) -> bool:
    with eval_mode(network):
        try:
            network(images)
        except Exception:  # of whatever kind: the caller's own pass shows it
            return False
    return True


def fast_layout(network: nn.Module, images: Tensor) -> Tensor:
    """``images`` (N, …) in the layout in which the network is fastest: channels_last, where it has two axes and takes it."""
    return channels_last(images) if takes_channels_last(network, images) else images.contiguous()


def channels_last(tensor: Tensor) -> Tensor:
    """channels_last where there are four axes, anything else as it is."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


@contextmanager
def eval_mode(network: nn.Module) -> Iterator[None]:
    """Eval mode and float32 inside, whatever autocast the network's forward asks for; every module back in its mode after.

    An exported file computes in float32, so this is what is scored, counted and compared everywhere.
    """
    with in_mode(network, training=False), _ignoring_autocast():
        yield


@contextmanager
def _ignoring_autocast() -> Iterator[None]:
    """Regions of torch.autocast that begin inside do nothing; one that was begun outside goes on."""
    usual = {name: getattr(torch.autocast, name) for name in ("__enter__", "__exit__")}
    idle: dict[str, Any] = {"__enter__": lambda region: region, "__exit__": lambda *_given: None}
    try:
        for name, method in idle.items():
            setattr(torch.autocast, name, method)
        yield
    finally:
        for name, method in usual.items():
            setattr(torch.autocast, name, method)
