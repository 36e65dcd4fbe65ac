"""Semantic segmentation: cross-entropy of pixels, and the mean intersection over union of classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lrexport.errors import InputError
from lrexport.metric import SHARE, Metric
from lrexport.tasks.task import Meter, SumMeter, Task

if TYPE_CHECKING:
    from lrexport.data.images import ImageData

IGNORED = 255  # pixels of this class count neither in the loss nor in the metrics
_MAIN = ("out", "logits")  # torchvision's and Hugging Face's names
_AUXILIARY, _AUXILIARY_SHARE = "aux", 0.5  # as torchvision's reference training weights it


def maps_of(outputs: Any) -> Tensor:
    """The class scores of pixels (B, K, H, W): the only tensor, or that named ``out`` or ``logits``. Raises InputError."""
    maps = outputs
    if isinstance(outputs, Mapping):
        maps = next((outputs[name] for name in _MAIN if name in outputs), None)
    elif isinstance(outputs, list | tuple) and outputs:
        maps = outputs[0]
    if not isinstance(maps, Tensor) or maps.ndim != 4 or not maps.is_floating_point():
        what = f"shape {tuple(maps.shape)}" if isinstance(maps, Tensor) else f"a {type(outputs).__name__}"
        names = f" of {', '.join(map(str, outputs))}" if isinstance(outputs, Mapping) else ""
        raise InputError(
            f"the network returns {what}{names}; the task 'segmentation' expects class scores "
            "(batch, classes, height, width)",
            "Return that tensor, or a dict with it as 'out'; for other outputs give --task package.module:object.",
        )
    return maps


class Segmentation(Task):
    """A class for every pixel: scores (B, K, H, W), masks (B, H, W) of classes, pixels of class 255 left out.

    Scores of another size than the masks are resized to it (bilinear). In training, torchvision's auxiliary output counts
    with the weight 0.5.
    """

    name = "segmentation"
    metric_infos = (Metric("mIoU", SHARE), Metric("pixel accuracy", SHARE))

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        targets = _checked(targets)
        loss = _cross_entropy(maps_of(outputs), targets)
        auxiliary = outputs.get(_AUXILIARY) if isinstance(outputs, Mapping) else None
        if isinstance(auxiliary, Tensor):
            loss = loss + _AUXILIARY_SHARE * _cross_entropy(auxiliary, targets)
        return loss

    def meter(self) -> Meter:
        return _Confusion()

    def check_output(self, output: Any, data: ImageData) -> None:
        outputs, classes = maps_of(output).shape[1], len(data.classes)
        if classes > outputs:
            raise InputError(
                f"{data.source} has masks of {classes} classes; the network has {outputs} outputs for each pixel",
                f"Build the network for this data, as in MODEL?num_classes={classes}, or give data that fits it.",
            )


def _checked(masks: Any) -> Tensor:
    """The masks (B, H, W). Raises InputError for targets of another form."""
    if not isinstance(masks, Tensor) or masks.ndim != 3 or masks.is_floating_point():
        is_tensor = isinstance(masks, Tensor)
        what = f"{str(masks.dtype)[6:]} of shape {tuple(masks.shape)}" if is_tensor else f"type {type(masks).__name__}"
        raise InputError(
            f"the data has targets of {what}; the task 'segmentation' expects masks of classes, "
            "integers (batch, height, width)",
            "Give masks, as --data masks:ROOT has them, or another --task.",
        )
    return masks.long()


def _cross_entropy(maps: Tensor, masks: Tensor) -> Tensor:
    """The mean over all pixels that count; 0 if none does."""
    maps = _sized(maps, masks)
    summed = F.cross_entropy(maps, masks, ignore_index=IGNORED, reduction="sum")
    return summed / (masks != IGNORED).sum().clamp_min(1)


def _sized(maps: Tensor, masks: Tensor) -> Tensor:
    if maps.shape[-2:] == masks.shape[-2:]:
        return maps
    return F.interpolate(maps, size=tuple(masks.shape[-2:]), mode="bilinear", align_corners=False)


class _Confusion(SumMeter):
    """Pixels by true class and predicted class, K·K sums."""

    def __init__(self) -> None:
        super().__init__(0, torch.int64)

    def update(self, outputs: Any, targets: Any) -> None:
        targets = _checked(targets)
        maps = _sized(maps_of(outputs), targets)
        classes = maps.shape[1]
        counts = targets != IGNORED
        truth, predicted = targets[counts], maps.argmax(1)[counts]
        if truth.numel() and not 0 <= int(truth.min()) <= int(truth.max()) < classes:
            raise InputError(
                f"the masks have classes from {int(truth.min())} to {int(truth.max())}; the network has {classes} outputs "
                "for each pixel",
                f"Number the classes from 0; {IGNORED} marks pixels that are left out.",
            )
        sums = torch.bincount(truth * classes + predicted, minlength=classes**2).cpu()
        self.sums = sums if not self.sums.numel() else self.sums + sums

    def compute(self) -> dict[str, float]:
        """The mean IoU over classes that are in the masks or predicted, and the share of pixels of the right class."""
        classes = round(self.sums.numel() ** 0.5)
        confusion = self.sums.view(classes, classes).double()
        hits = confusion.diagonal()
        union = confusion.sum(0) + confusion.sum(1) - hits
        there = union > 0
        iou, pixels = hits[there] / union[there], confusion.sum()
        return {
            "mIoU": float(iou.mean()) if len(iou) else float("nan"),
            "pixel accuracy": float(hits.sum() / pixels) if pixels else float("nan"),
        }
