"""Replace subclasses of convolutions and Linear by plain layers that compute the same, found by running them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lrexport.torch_tools.batch import Batch, InputsLike, call, signature_of
from lrexport.torch_tools.copying import copy_network
from lrexport.torch_tools.modes import in_mode
from lrexport.torch_tools.modules import replace
from lrexport.torch_tools.outputs import flat_tensors
from lrexport.torch_tools.padding import Padded, padding_like, seen, with_padding
from lrexport.torch_tools.seeds import seed_torch
from lrexport.torch_tools.tracing import noise
from lrexport.torch_tools.weight_layers import TRANSPOSED, WEIGHTED

# Methods by which a subclass can change the computation.
_COMPUTES = ("__call__", "forward", "_conv_forward")
_FUNCTIONS: dict[Callable[..., Any], type[nn.Module]] = {
    F.conv1d: nn.Conv1d,
    F.conv2d: nn.Conv2d,
    F.conv3d: nn.Conv3d,
    F.conv_transpose1d: nn.ConvTranspose1d,
    F.conv_transpose2d: nn.ConvTranspose2d,
    F.conv_transpose3d: nn.ConvTranspose3d,
    F.linear: nn.Linear,
}
_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_ARGUMENTS_TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
# Relative to the largest output; different orders of summation in float32 differ by less.
_TOLERANCE = 1e-5
_MOST_SIZES = 8  # of inputs that a layer is tried with


class _NoPlainLayer(Exception):
    """No plain layer computes the same; the text says why."""


@dataclass(frozen=True)
class _Call:
    """A call of a convolution or of ``linear`` in a layer's forward pass, with its arguments."""

    kind: type[nn.Module]
    given: dict[str, Any]


def base_of(layer: nn.Module) -> type[nn.Module]:
    """The layer class of torch.nn that it has or derives from."""
    return next(kind for kind in type(layer).__mro__ if kind in WEIGHTED)


def computes_itself(layer: nn.Module) -> bool:
    """Whether its class, or an attribute of the layer, overrides the computation of its base class."""
    base = base_of(layer)
    # An attribute of the layer can be any callable, not only a method.
    methods = [(getattr(layer, name), getattr(base, name)) for name in _COMPUTES if hasattr(base, name)]
    return any(getattr(method, "__func__", None) is not usual for method, usual in methods)


def make_layers_plain(network: nn.Module, inputs: InputsLike) -> list[str]:
    """Replace subclasses by plain layers that compute the same, in place; returns notes for the user.

    Each layer is tested alone on random inputs, and all together in the network; if its output changes, nothing is
    replaced. The tests use random weights, so they have the same result whenever the network is built again.
    """
    owners = Counter(id(value) for module in network.modules() for value in module.parameters(recurse=False))
    before: dict[nn.Module, nn.Module] = {}
    for name, module in list(network.named_modules()):
        if name and isinstance(module, WEIGHTED) and computes_itself(module) and _is_its_class(module):
            tied = any(owners[id(value)] > 1 for value in module.parameters(recurse=False))
            with suppress(_NoPlainLayer):
                before[plain_equivalent(module, tied)] = module
    if not before:
        return []
    drawn = noise(network, signature_of(inputs, network), samples=2)
    reference = _output(network, drawn)
    for plain, layer in before.items():
        replace(network, layer, plain)
    if not _agree(_output(network, drawn), reference, 1e-3):
        for plain, layer in before.items():
            replace(network, plain, layer)
        return []
    kinds = Counter((type(layer).__name__, _kind(plain)) for plain, layer in before.items())
    return [f"replaced {count} {kind} by {plain}, which computes the same" for (kind, plain), count in kinds.items()]


def _kind(plain: Any) -> str:
    return f"padding and {type(plain.convolution).__name__}" if isinstance(plain, nn.Sequential) else type(plain).__name__


def why_not_plain(layer: nn.Module) -> str:
    """Why no plain layer can replace ``layer``, whose class overrides the computation."""
    try:
        plain_equivalent(layer, tied=False)
    except _NoPlainLayer as why:
        return f"{type(layer).__name__} {why}"
    return f"{type(layer).__name__} may compute something else than {base_of(layer).__name__}"


@torch.no_grad()
def plain_equivalent(layer: nn.Module, tied: bool) -> nn.Module:
    """A plain layer with the weight that ``layer`` uses, or padding and a convolution; ``tied``: others share its weight.

    Raises _NoPlainLayer.
    """
    mode = layer.training
    layer.training = False
    try:
        drawn = copy_network(layer)
        generator = torch.Generator().manual_seed(0)
        for value in drawn.parameters():
            if value.is_floating_point():
                value.copy_(torch.randn(value.shape, generator=generator) * 0.5)
        for each in (drawn, layer):
            plain = _plain_of(each)
            for given in _inputs(each, generator):
                if not _agree(each(given.clone()), plain(given), _TOLERANCE):
                    raise _NoPlainLayer(f"computes something else than {_kind(plain)}")
    except _NoPlainLayer:
        raise
    except Exception as error:  # foreign code can raise anything; the layer is then kept
        raise _NoPlainLayer(f"may compute something else than {base_of(layer).__name__}") from error
    finally:
        layer.training = mode
    _keep_parameters(plain, layer, tied)
    return plain.train(mode)


def _is_its_class(layer: nn.Module) -> bool:
    """Whether its computation is that of its class: nothing is overridden or hooked on this one layer."""
    changed = [name for name in _COMPUTES if name in vars(layer)]
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return not changed and not any(hooks)


def _plain_of(layer: Any) -> Any:
    """A plain layer with the settings and the weight of the one call that ``layer`` makes."""
    given = next(_inputs(layer, torch.Generator().manual_seed(1)))
    call = _only_call(layer, given)
    weight, bias, inner = call.given["weight"], call.given.get("bias"), call.given["input"]
    if not isinstance(layer, call.kind):
        raise _NoPlainLayer(f"computes something else than {base_of(layer).__name__}")
    options: dict[str, Any] = {"bias": bias is not None, "dtype": weight.dtype, "device": weight.device}
    if call.kind is nn.Linear:
        plain: Any = nn.Linear(weight.shape[1], weight.shape[0], **options)
    else:
        plain = _convolution(call, weight, inner, given, layer, options)
    owner: Any = plain.convolution if isinstance(plain, nn.Sequential) else plain
    owner.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight.detach().clone())
    if bias is not None:
        owner.bias = bias if isinstance(bias, nn.Parameter) else nn.Parameter(bias.detach().clone())
    return plain


def _only_call(layer: Any, given: Tensor) -> _Call:
    """The call of a convolution or of ``linear`` for an input. Raises _NoPlainLayer if there is none or several."""
    watch = _Calls()
    with watch:
        layer(given)
    if len(watch.calls) != 1:
        what = "several products" if watch.calls else "no visible convolution or linear function"
        raise _NoPlainLayer(f"computes {what}")
    return watch.calls[0]


def _convolution(call: _Call, weight: Tensor, inner: Tensor, given: Tensor, layer: Any, options: dict[str, Any]) -> Any:
    transposed, groups = call.kind in TRANSPOSED, int(call.given.get("groups", 1))
    outer, into = weight.shape[0], weight.shape[1] * groups
    axes = weight.ndim - 2
    settings = {name: call.given[name] for name in ("stride", "dilation", "output_padding") if name in call.given}
    settings = {name: _on_each_axis(value, axes) for name, value in settings.items()}
    padding: Any = call.given.get("padding", 0)
    if not isinstance(padding, str):
        padding = _on_each_axis(padding, axes)
    added = [inner.shape[-axes + axis] - given.shape[-axes + axis] for axis in range(axes)]
    pads_twice = isinstance(padding, str) or any(padding)
    mode = "zeros"
    observed = [] if transposed else _padding_of(layer, axes)
    if observed:
        if (even := _even(observed)) and not pads_twice:
            padding, observed = even, []
    elif any(added):
        if transposed or pads_twice or any(each < 0 or each % 2 for each in added):
            raise _NoPlainLayer("pads its input unevenly")
        padding, mode = tuple(each // 2 for each in added), str(getattr(layer, "padding_mode", "zeros"))
    channels = (outer, into) if transposed else (into, outer)
    plain = call.kind(
        *channels, tuple(weight.shape[2:]), padding=padding, groups=groups, padding_mode=mode, **settings, **options
    )
    if not observed:
        return plain
    before = padding_like(observed, plain)
    if before is None:
        raise _NoPlainLayer("pads its input unevenly")
    return with_padding(before, plain)


def _padding_of(layer: Any, axes: int) -> list[Padded]:
    """The zeros that ``layer`` adds around inputs of several sizes; empty if it adds none."""
    inputs = _inputs(layer, torch.Generator().manual_seed(1))
    observed = [seen(given, _only_call(layer, given).given["input"], axes) for given in inputs]
    padded = [each for each in observed if each is not None]
    return padded if any(any(pair) for each in padded for pair in each.added) else []


def _even(observed: list[Padded]) -> tuple[int, ...] | None:
    """The zeros that are added on both sides of each axis, if it is the same for all sizes."""
    if len({each.added for each in observed}) > 1 or any(front != back for front, back in observed[0].added):
        return None
    return tuple(front for front, _ in observed[0].added)


def _on_each_axis(value: Any, axes: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * axes if len(values) == 1 else values


class _Calls(TorchFunctionMode):
    """Records calls of convolutions and linear functions."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[_Call] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kind = _FUNCTIONS.get(func)
        if kind is not None:
            names = _ARGUMENTS_TRANSPOSED if kind in TRANSPOSED else _ARGUMENTS
            self.calls.append(_Call(kind, {**dict(zip(names, args, strict=False)), **(kwargs or {})}))
        return func(*args, **(kwargs or {}))


def _inputs(layer: Any, generator: torch.Generator) -> Iterator[Tensor]:
    """Inputs of even and odd sizes and of different scales, because the computation may depend on them."""
    example = next(value for value in layer.parameters() if value.is_floating_point())
    if isinstance(layer, nn.Linear):
        shapes: list[tuple[int, ...]] = [(3, layer.in_features), (2, 2, layer.in_features)]
    else:
        reach = [dilation * (size - 1) + 1 for dilation, size in zip(layer.dilation, layer.kernel_size, strict=True)]
        last = 4 + min(max(2, *layer.stride), _MOST_SIZES)  # padding can depend on the rest of a division by the stride
        shapes = [(2, layer.in_channels, *(2 * each + more for each in reach)) for more in range(4, last)]
    for shape in shapes:
        drawn = torch.randn(shape, generator=generator).to(example)
        yield drawn
        yield 3 * drawn.abs() + 1


@torch.no_grad()
def _output(network: nn.Module, inputs: Batch) -> object:
    """The network's output in eval mode, or the type of the error that it raises."""
    try:
        with in_mode(network, training=False), torch.random.fork_rng():
            seed_torch(0)
            return call(network, inputs.clone())
    except Exception as error:
        return type(error)


def _agree(output: object, reference: object, tolerance: float) -> bool:
    mine, others = list(flat_tensors(output)), list(flat_tensors(reference))
    if type(output) is not type(reference) or len(mine) != len(others):
        return False
    return (not mine and output is reference) or all(_close(*pair, tolerance) for pair in zip(mine, others, strict=True))


def _close(one: Tensor, other: Tensor, tolerance: float) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not one.numel():
        return True
    difference = (one.double() - other.double()).abs().max()
    return float(difference) <= tolerance * max(float(other.double().abs().max()), 1e-12)


def _keep_parameters(plain: Any, layer: Any, tied: bool) -> None:
    """Raise _NoPlainLayer for a computed weight of a tied layer, because only parameters can stay tied."""
    own = {id(value) for value in layer.parameters(recurse=False)}
    if tied and id(plain.weight) not in own:
        raise _NoPlainLayer("computes its weight from one that others share")
