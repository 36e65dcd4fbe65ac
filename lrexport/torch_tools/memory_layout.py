"""channels_last, in which convolutions are faster, for networks that take it."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lrexport.torch_tools.modes import eval_mode

# Whether a network takes channels_last, once it is known; of a copy it is found out again.
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
