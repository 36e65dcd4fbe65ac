"""The inputs of a network at run time: one tensor, or several by name, and how a network is called with them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Union

import torch
from torch import Tensor, nn

from lrexport.errors import UsageError
from lrexport.signature import INPUT, InputSpec, Signature

# What stands for a batch, or for a network's inputs, in the Python API.
BatchLike = Union["Batch", Tensor, Sequence[Tensor], Mapping[str, Tensor]]
InputsLike = Signature | BatchLike | Sequence[int]


@dataclass(frozen=True)
class Batch:
    """Inputs of a network, (B, …) each, in the order of its forward. ``names`` is empty where nobody named them."""

    tensors: tuple[Tensor, ...]
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, value: BatchLike) -> Batch:
        """A tensor, several in their order, or several by name. Raises UsageError for anything else."""
        if isinstance(value, Batch):
            return value
        if isinstance(value, Tensor):
            return cls((value,))
        if isinstance(value, Mapping):
            values, names = tuple(value.values()), tuple(map(str, value))
        elif isinstance(value, list | tuple):
            values, names = tuple(value), ()
        else:
            values, names = (), ()
        if not values or not all(isinstance(each, Tensor) for each in values):
            what = type(value).__name__
            raise UsageError(f"invalid inputs of type {what}: expected a tensor (N, …), several, or a dict of them by name")
        return cls(values, names)

    @classmethod
    def cat(cls, batches: Sequence[Batch]) -> Batch:
        """One batch of several, one after the other."""
        whole = zip(*(batch.tensors for batch in batches), strict=True)
        return cls(tuple(torch.cat(parts) for parts in whole), batches[0].names)

    def __len__(self) -> int:
        return len(self.tensors[0])

    @property
    def only(self) -> Tensor:
        """The tensor of a single input."""
        (tensor,) = self.tensors
        return tensor

    def __getitem__(self, index: slice | Tensor) -> Batch:
        return self.map(lambda tensor: tensor[index])

    def map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with every tensor changed."""
        return Batch(tuple(map(change, self.tensors)), self.names)

    def to(self, device: torch.device, copy: bool = False) -> Batch:
        """On ``device``."""
        return self.map(lambda tensor: tensor.to(device, copy=copy))

    def clone(self) -> Batch:
        """A copy, since a network may change its inputs in place."""
        return self.map(Tensor.clone)

    def split(self, sizes: Sequence[int] | int) -> Iterator[Batch]:
        """In parts of these sizes."""
        for parts in zip(*(tensor.split(sizes) for tensor in self.tensors), strict=True):
            yield Batch(tuple(parts), self.names)

    def filled(self, size: int) -> Batch:
        """At least ``size`` samples, the last one repeated."""
        missing = size - len(self)
        return self if missing <= 0 else Batch.cat([self, *([self[-1:]] * missing)])

    def arguments(self, network: nn.Module) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """Positional and named arguments of the network's forward."""
        inner = network
        while isinstance(getattr(inner, "module", None), nn.Module):  # as wrappers for several processes hold it
            inner = inner.module  # type: ignore[assignment]
        return self.arguments_of(inner.forward)

    def arguments_of(self, forward: Callable[..., Any]) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """By name where several inputs have the names of its parameters in another order than it has; else in order."""
        if len(self.tensors) == 1 or not self.names:
            return self.tensors, {}
        parameters = _parameters(forward)
        if self.names == parameters[: len(self.names)] or not set(self.names) <= set(parameters):
            return self.tensors, {}
        return (), dict(zip(self.names, self.tensors, strict=True))


def call(network: nn.Module, batch: Batch, *more: Any) -> Any:
    """What the network returns for a batch, whatever that is; ``more`` arguments follow the inputs."""
    positional, named = batch.arguments(network)
    return network(*positional, *more, **named)


def _parameters(forward: Callable[..., Any]) -> tuple[str, ...]:
    try:
        return tuple(inspect.signature(forward).parameters)
    except (TypeError, ValueError):
        return ()


def draw_input(spec: InputSpec, samples: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """Random values for an input, (samples, *shape), on the device of ``like`` and, without a dtype, in its precision."""
    shape = (samples, *spec.shape)
    dtype = like.dtype if spec.dtype is None else getattr(torch, spec.dtype)
    if spec.is_float:
        if spec.low is None or spec.high is None:
            drawn = torch.randn(shape, generator=generator)
        else:
            drawn = torch.rand(shape, generator=generator) * (spec.high - spec.low) + spec.low
    else:
        low, high = (0, 1) if spec.low is None or spec.high is None else (int(spec.low), int(spec.high))
        drawn = torch.randint(low, high + 1, shape, generator=generator)
    return drawn.to(device=like.device, dtype=dtype)


def still_input(spec: InputSpec, samples: int, like: Tensor) -> Tensor:
    """Zeros for an input, (samples, *shape), or the value of its range that is nearest to 0."""
    value = 0.0 if spec.low is None or spec.high is None else min(max(0.0, spec.low), spec.high)
    dtype = like.dtype if spec.dtype is None else getattr(torch, spec.dtype)
    return torch.full((samples, *spec.shape), value, device=like.device, dtype=dtype)


def signature_of(inputs: InputsLike, network: nn.Module | None = None) -> Signature:
    """What a network takes, from a signature, the shape of its one input in numbers, or example inputs (B, …).

    Several examples without names get those of the parameters of ``network``'s forward. The range of integers is that of
    the examples. Raises UsageError for anything else.
    """
    if isinstance(inputs, Signature):
        return inputs
    if isinstance(inputs, list | tuple) and inputs and not any(isinstance(each, Tensor) for each in inputs):
        sizes = [size for size in inputs if isinstance(size, int) and not isinstance(size, bool) and size > 0]
        if len(sizes) == len(inputs):
            return Signature.of(sizes)
    elif isinstance(inputs, Batch | Tensor | list | tuple | Mapping) and not _is_empty(inputs):
        batch = Batch.of(inputs)
        if all(tensor.ndim > (0 if len(batch.tensors) > 1 else 1) and len(tensor) for tensor in batch.tensors):
            names = batch.names or _names(len(batch.tensors), network)
            return Signature(tuple(map(_spec_of, names, batch.tensors)))
    what = f"of shape {tuple(inputs.shape)}" if isinstance(inputs, Tensor) else repr(inputs)[:60]
    raise UsageError(
        f"invalid example_inputs {what}: expected a batch (B, …) as one tensor, several by name, or the shape of one input",
        "As in compress(model, torch.randn(1, 3, 224, 224), …) or compress(model, (3, 224, 224), …).",
    )


def _is_empty(inputs: Any) -> bool:
    return isinstance(inputs, list | tuple | Mapping) and not inputs


def _names(count: int, network: nn.Module | None) -> tuple[str, ...]:
    if count == 1:
        return (INPUT,)
    parameters = _parameters(network.forward) if network is not None else ()
    return parameters[:count] if len(parameters) >= count else tuple(f"{INPUT}_{number}" for number in range(count))


def _spec_of(name: str, tensor: Tensor) -> InputSpec:
    shape = tuple(tensor.shape[1:])
    if tensor.is_floating_point():
        return InputSpec(name, shape)
    kind = str(tensor.dtype).removeprefix("torch.")
    return InputSpec(name, shape, kind, float(tensor.min()), float(tensor.max()))
