"""Top-1 and top-5 accuracy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lrexport.data.images import ImageSet
from lrexport.errors import InputError
from lrexport.runs.record import Accuracy
from lrexport.torch_tools.batch import Batch
from lrexport.torch_tools.memory_layout import run
from lrexport.torch_tools.modes import eval_mode

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def count_correct(logits: Tensor, labels: Tensor) -> tuple[int, int]:
    """Top-1 and top-5 hits: logits (B, K), labels (B,). With fewer than five classes, top-5 hits are all labels."""
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    return int(best[:, 0].sum()), int(best.sum())


class NotANumber(InputError):
    """A network gives NaN, so it has no score."""


def nan_rows(logits: Tensor) -> int:
    """The number of images with NaN among their logits (B, K)."""
    return int(logits.isnan().any(1).sum())


def images_of(split: str) -> str:
    """The images of a split, for a message."""
    return f"{split.replace('heldout', 'held-out')} images"


def not_a_number(what: str, bad: int, count: int, images: str) -> NotANumber:
    """The error for a network or file ``what`` that gives NaN on ``bad`` of ``count`` images."""
    return NotANumber(
        f"{what} gives NaN on {bad:,} of {count:,} {images}, so it has no score",
        "Check its weights, and whether its inputs are in the range that it was trained with.",
    )


@torch.no_grad()
def check_numbers(network: nn.Module, inputs: Batch, name: str) -> None:
    """Raise NotANumber if the network in eval mode gives NaN on a batch of images; ``name`` describes them."""
    with eval_mode(network):
        bad = nan_rows(run(network, inputs))
    if bad:
        raise not_a_number("the network", bad, len(inputs), name)


@torch.no_grad()
def score(
    network: nn.Module,
    images: ImageSet,
    device: torch.device,
    split: str,
    batch_size: int = 250,
    fabric: Fabric | None = None,
) -> Accuracy:
    """Accuracy in eval mode; the network's mode is restored. The processes of ``fabric`` divide the images.

    Raises NotANumber in all processes if the network gives NaN on any image.
    """
    part, several = images, fabric is not None and fabric.world_size > 1
    if fabric is not None and several:
        part = images.subset(torch.arange(fabric.global_rank, len(images), fabric.world_size))
    sums = torch.zeros(3, dtype=torch.int64)  # top-1, top-5, and images with NaN
    with eval_mode(network):
        for batch, labels in part.batches(batch_size, device):
            logits = run(network, batch)
            sums += torch.tensor([*count_correct(logits, labels), nan_rows(logits)])
    if fabric is not None and several:
        total: Any = fabric.all_reduce(sums.to(device), reduce_op="sum")
        sums = total.cpu()
    top1, top5, bad = sums.tolist()
    if bad:
        raise not_a_number("the network", bad, len(images), images_of(split))
    return Accuracy(top1=top1 / len(images), top5=top5 / len(images), n=len(images), split=split)
