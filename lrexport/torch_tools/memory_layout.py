"""Use channels_last, in which convolutions are faster, for networks that accept it."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lrexport.torch_tools.batch import Batch, call
from lrexport.torch_tools.modes import eval_mode

# Known results of takes_channels_last; copies of a network are tested again.
_TAKES: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def takes_channels_last(network: nn.Module, batch: Batch) -> bool:
    """Whether the network accepts the images in ``batch``, (N, C, H, W) each, in channels_last.

    `x.view(len(x), -1)`, by which many networks flatten, raises an error for this layout.
    """
    if not any(tensor.ndim == 4 for tensor in batch.tensors):
        return False
    if network not in _TAKES:
        image = batch[:1]  # cloned below, because a network may change its input in place
        _TAKES[network] = _runs(network, image.clone().map(channels_last)) or not _runs(
            network, image.clone().map(contiguous)
        )
    return _TAKES[network]


@torch.no_grad()
def _runs(network: nn.Module, batch: Batch) -> bool:
    with eval_mode(network):
        try:
            call(network, batch)
        except Exception:  # the caller's own pass will raise it again
            return False
    return True


def fast_layout(network: nn.Module, batch: Batch) -> Batch:
    """``batch`` with its images in channels_last if the network accepts that, else contiguous."""
    return batch.map(channels_last if takes_channels_last(network, batch) else contiguous)


def run(network: nn.Module, batch: Batch) -> Any:
    """The output of the network for a batch, in the layout that is fastest."""
    return call(network, fast_layout(network, batch))


def channels_last(tensor: Tensor) -> Tensor:
    """A tensor with four axes in channels_last; any other unchanged."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def contiguous(tensor: Tensor) -> Tensor:
    """The tensor in torch's own layout."""
    return tensor.contiguous()
