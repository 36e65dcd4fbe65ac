"""Use channels_last, in which convolutions are faster, for networks that accept it."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lrexport.torch_tools.modes import eval_mode

# Known results of takes_channels_last; copies of a network are tested again.
_TAKES: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def takes_channels_last(network: nn.Module, images: Tensor) -> bool:
    """Whether the network accepts ``images`` (N, C, H, W) in channels_last.

    `x.view(len(x), -1)`, by which many networks flatten, raises an error for this layout.
    """
    if images.ndim != 4:
        return False
    if network not in _TAKES:
        image = images[:1]  # cloned below, because a network may change its input in place
        _TAKES[network] = _runs(network, channels_last(image.clone())) or not _runs(network, image.clone().contiguous())
    return _TAKES[network]


@torch.no_grad()
def _runs(network: nn.Module, images: Tensor) -> bool:
    with eval_mode(network):
        try:
            network(images)
        except Exception:  # the caller's own pass will raise it again
            return False
    return True


def fast_layout(network: nn.Module, images: Tensor) -> Tensor:
    """``images`` (N, …) in channels_last if the network accepts it, else contiguous."""
    return channels_last(images) if takes_channels_last(network, images) else images.contiguous()


def channels_last(tensor: Tensor) -> Tensor:
    """A tensor with four axes in channels_last; any other unchanged."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
