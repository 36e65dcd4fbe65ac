"""BatchNorm: statistics over the images of all processes, and new statistics after a network's weights have changed.

Several processes train like one process with the global batch. torch.nn.SyncBatchNorm does this only on GPUs.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from lrexport.signature import Signature
from lrexport.torch_tools.batch import Batch
from lrexport.torch_tools.memory_layout import run
from lrexport.torch_tools.modes import eval_mode
from lrexport.torch_tools.tracing import run_once, watching_inputs

BatchNorm = _BatchNorm


@contextmanager
def global_statistics(network: nn.Module, world: int) -> Iterator[None]:
    """Inside the block, BatchNorm takes mean and variance over the images of all ``world`` processes."""
    norms = [module for module in network.modules() if isinstance(module, BatchNorm)] if world > 1 else []
    for norm in norms:
        usual = type(norm).forward is _BatchNorm.forward
        norm.forward = MethodType(_forward if usual else _own_forward, norm)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for norm in norms:
            del norm.__dict__["forward"]


def needing_several(network: nn.Module, signature: Signature) -> list[str]:
    """Names of BatchNorms with only one value per channel and image, which cannot be trained on single images."""
    layers: list[str] = []
    modules = dict(network.named_modules())
    norms: dict[nn.Module, str] = {module: name for name, module in modules.items() if isinstance(module, BatchNorm)}

    def note(norm: nn.Module, given: Tensor) -> None:
        if given.numel() == given.shape[0] * given.shape[1]:
            layers.append(norms[norm])

    with watching_inputs(norms, note):
        run_once(network, signature)
    return layers


@contextmanager
def batch_statistics(network: nn.Module) -> Iterator[list[nn.Module]]:
    """Inside the block, all BatchNorms reset their statistics and average over their inputs; yields the BatchNorms.

    BatchNorms without inputs keep their statistics. Other modules are not changed.
    """
    norms = [module for module in network.modules() if isinstance(module, BatchNorm) and module.track_running_stats]
    before = [(norm.momentum, norm.training, copy.deepcopy(dict(norm.named_buffers()))) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average
        norm.train()
    try:
        yield list(norms)
    finally:
        for norm, (momentum, training, buffers) in zip(norms, before, strict=True):
            norm.momentum, norm.training = momentum, training
            if not norm.num_batches_tracked:
                for name, value in buffers.items():
                    norm.get_buffer(name).copy_(value)


@torch.no_grad()
def reestimate_batchnorm(network: nn.Module, batches: Iterable[Batch]) -> bool:
    """Replace BatchNorm's running mean and variance by the plain average over ``batches`` (B, …); no labels are used.

    Pruning changes every layer's output distribution, and this corrects the statistics within seconds. All other modules,
    such as dropout, are in eval mode. Returns False if the network has no BatchNorm.
    """
    with eval_mode(network), batch_statistics(network) as norms:
        if not norms:
            return False
        size = 0
        for batch in batches:
            if len(batch) < size // 2:  # a short last batch would have the weight of a full one
                break
            size = len(batch)
            run(network, batch)
    return True


class _Sum(torch.autograd.Function):
    """The sum over all processes. Each process's loss depends on the whole sum, so gradients are summed as well."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        torch.distributed.all_reduce(total)
        return total


class _Global(TorchFunctionMode):
    """Replaces the function of BatchNorm in the forward of a subclass, which may do more, such as an activation."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.norm = norm
        self.count = norm.num_batches_tracked.clone() if norm.track_running_stats else None

    def __torch_function__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.batch_norm:
            if self.count is not None:  # which the subclass may have raised already
                self.norm.num_batches_tracked.copy_(self.count)
            return _forward(self.norm, args[0] if args else (kwargs or {})["input"])
        return func(*args, **(kwargs or {}))


def _own_forward(norm: Any, x: Tensor) -> Any:
    """A subclass's own forward of x (B, C, …), in training with sums over all processes."""
    if not norm.training:
        return type(norm).forward(norm, x)
    with _Global(norm):
        return type(norm).forward(norm, x)


def _forward(norm: Any, x: Tensor) -> Tensor:
    """BatchNorm of x (B, C, …), Ioffe & Szegedy 2015, with sums over all processes; running statistics as in torch."""
    if not norm.training:  # processes only share batches in training
        result: Tensor = type(norm).forward(norm, x)
        return result
    axes = [axis for axis in range(x.ndim) if axis != 1]
    wide = x.float()
    count = torch.full((1,), x.numel() / x.shape[1], device=x.device)
    sums = _Sum.apply(torch.cat([wide.sum(axes), count]))
    total = sums[-1].detach()
    mean = sums[:-1] / total
    shape = [1, -1] + [1] * (x.ndim - 2)
    centred = wide - mean.view(shape)  # the difference of squares, in one pass, would lose digits
    variance = _Sum.apply(centred.square().sum(axes)) / total
    if norm.track_running_stats:
        _note(norm, mean.detach(), variance.detach() * total / (total - 1).clamp_min(1))
    scaled = centred * (variance + norm.eps).rsqrt().view(shape)
    if norm.affine:
        scaled = scaled * norm.weight.view(shape) + norm.bias.view(shape)
    return scaled.to(x.dtype)


@torch.no_grad()
def _note(norm: Any, mean: Tensor, unbiased: Tensor) -> None:
    norm.num_batches_tracked.add_(1)
    momentum = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean), momentum)
    norm.running_var.lerp_(unbiased.to(norm.running_var), momentum)
