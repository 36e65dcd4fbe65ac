"""Top-1 and top-5 accuracy, and BatchNorm statistics for a network whose weights just changed."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from lrexport.data.images import ImageSet
from lrexport.lowrank.reconstruct import batch_statistics
from lrexport.lowrank.tracing import eval_mode, fast_layout
from lrexport.record import Accuracy


def count_correct(logits: Tensor, labels: Tensor) -> tuple[int, int]:
    """How many labels are the largest logit, and among the five largest (all, where there are fewer). (B, K), (B,)."""
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    return int(best[:, 0].sum()), int(best.sum())


@torch.no_grad()
def score(network: nn.Module, images: ImageSet, device: torch.device, split: str, batch_size: int = 250) -> Accuracy:
    """Accuracy in eval mode; the network's own mode is put back."""
    top1 = top5 = 0
    with eval_mode(network):
        for batch, labels in images.batches(batch_size, device):
            first, five = count_correct(network(fast_layout(batch)), labels)
            top1, top5 = top1 + first, top5 + five
    return Accuracy(top1=top1 / len(images), top5=top5 / len(images), n=len(images), split=split)


@torch.no_grad()
def reestimate_batchnorm(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> bool:
    """Replace BatchNorm's running mean and variance by the plain average over ``batches``; no labels are used.

    Pruning changes every layer's output distribution; this repairs the statistics in seconds. Returns whether there was
    a BatchNorm at all. Dropout and the rest stay in eval mode.
    """
    with eval_mode(network), batch_statistics(network) as norms:
        if not norms:
            return False
        size = 0
        for images, _ in batches:
            if len(images) < size // 2:  # a short last batch would weigh as much as a whole one
                break
            size = len(images)
            network(fast_layout(images))
    return True
