"""What a part of a network is called with and what it returns, recorded for many inputs of the network."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lrexport.lowrank.repair.observed import outputs_of
from lrexport.torch_tools.batch import Batch, call
from lrexport.torch_tools.memory_layout import channels_last, fast_layout
from lrexport.torch_tools.modes import eval_mode
from lrexport.torch_tools.outputs import flat_tensors, refilled


class UnslicableError(Exception):
    """Tensors without the same number of rows for each input of the network: they cannot be recorded."""


@dataclass(frozen=True)
class Recorded:
    """A tree of ``tensors`` for ``len`` inputs of the network, (N, rows, …) each.

    What is no tensor is that of the first batch. ``last``: whether the tensors are in channels_last.
    """

    tree: Any
    tensors: tuple[Tensor, ...]
    last: tuple[bool, ...]

    def __len__(self) -> int:
        return len(self.tensors[0])

    def of(self, index: Tensor) -> Any:
        """The tree for the inputs ``index``: copies, since a module may change what it gets in place."""
        return refilled(self.tree, map(_taken, self.tensors, self.last, [index] * len(self.tensors)))


def record_inputs(network: nn.Module, name: str, batches: Iterable[Batch]) -> Recorded:
    """Arguments and keyword arguments of the module ``name``, whose forward is not run. Raises UnslicableError."""
    recording, module = _Recording(), network.get_submodule(name)

    def enter(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        recording.add((args, kwargs))
        raise _EnoughError

    return recording.run(network, batches, lambda: module.register_forward_pre_hook(enter, with_kwargs=True))


@torch.no_grad()
def record_outputs(network: nn.Module, names: tuple[str, ...], batches: Iterable[Batch]) -> Recorded:
    """As :func:`lrexport.lowrank.repair.observed.outputs_of`. Raises UnslicableError."""
    recording = _Recording()
    for batch in batches:
        recording.samples = len(batch)
        with eval_mode(network):
            outputs = outputs_of(network, names, batch)
        recording.add(outputs)
    return recording.done()


class _EnoughError(Exception):
    """Ends a forward pass early."""


class _Recording:
    def __init__(self) -> None:
        self.tree: Any = None
        self.parts: list[list[Tensor]] = []
        self.last: tuple[bool, ...] = ()
        self.samples = 0  # of the current batch

    @torch.no_grad()
    def run(self, network: nn.Module, batches: Iterable[Batch], register: Callable[[], RemovableHandle]) -> Recorded:
        """Run the network for each batch as far as needed."""
        with ExitStack() as hooks, eval_mode(network):
            for number, batch in enumerate(batches):
                inputs, self.samples = fast_layout(network, batch), len(batch)
                if not number:  # only now, because fast_layout runs the network
                    hooks.callback(register().remove)
                try:
                    call(network, inputs)
                except _EnoughError:
                    continue
        return self.done()

    def done(self) -> Recorded:
        """What was added. Raises UnslicableError if nothing was."""
        if not self.parts:
            raise UnslicableError
        return Recorded(self.tree, tuple(torch.cat(each) for each in zip(*self.parts, strict=True)), self.last)

    def add(self, tree: Any) -> None:
        """Keep copies of the tensors of one batch."""
        given = list(flat_tensors(tree))
        tensors = [self._by_sample(tensor) for tensor in given]
        if not tensors:
            raise UnslicableError
        if not self.parts:
            self.tree, self.last = tree, tuple(map(_is_channels_last, given))
        elif [tensor.shape[1:] for tensor in tensors] != [tensor.shape[1:] for tensor in self.parts[0]]:
            raise UnslicableError
        self.parts.append(tensors)

    def _by_sample(self, tensor: Tensor) -> Tensor:
        """(rows of all samples, …) as (samples, rows of one, …)."""
        if not tensor.ndim or not len(tensor) or len(tensor) % self.samples:
            raise UnslicableError
        return tensor.detach().clone().unflatten(0, (self.samples, -1))


def _is_channels_last(tensor: Tensor) -> bool:
    return tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)


def _taken(tensor: Tensor, last: bool, index: Tensor) -> Tensor:
    rows = tensor[index].flatten(0, 1)
    return channels_last(rows) if last else rows.contiguous()
