"""Networks that return images, such as super-resolution: mean absolute error; PSNR and SSIM."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor

from lrexport.errors import InputError
from lrexport.metric import DECIBEL, Metric
from lrexport.tasks.packages import need
from lrexport.tasks.task import Meter, SumMeter, Task
from lrexport.torch_tools.outputs import flat_tensors

if TYPE_CHECKING:
    from lrexport.data.images import ImageData

_LEAST_ERROR = 1e-10  # of the squared range: PSNR is at most 100 dB, also of two equal images


def image_of(outputs: Any) -> Tensor:
    """The image (B, C, H, W) that the network returns: its first tensor. Raises InputError."""
    image = next(flat_tensors(outputs), None)
    if image is None or image.ndim != 4 or not image.is_floating_point():
        what = f"shape {tuple(image.shape)}" if image is not None else f"a {type(outputs).__name__}"
        raise InputError(
            f"the network returns {what}; the task 'image' expects images (batch, channels, height, width)",
            "For other outputs give --task package.module:object.",
        )
    return image


class ImageToImage(Task):
    """Images (B, C, H, W) with targets of the same shape: L1, then PSNR and SSIM, the means over images.

    ``data_range`` is the largest value of the targets minus the smallest; uint8 targets are divided by 255 first.
    """

    name = "image"
    metric_infos = (Metric("PSNR", DECIBEL), Metric("SSIM"))

    def __init__(self, data_range: float = 1.0) -> None:
        self.data_range = data_range

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        image = image_of(outputs)
        return F.l1_loss(image, _wanted(image, targets))

    def meter(self) -> Meter:
        return _Fidelity(self.data_range)

    def check_output(self, output: Any, data: ImageData) -> None:
        image_of(output)


def _wanted(image: Tensor, targets: Any) -> Tensor:
    """The target images as float, of the shape of the network's. Raises InputError."""
    if not isinstance(targets, Tensor) or targets.shape != image.shape:
        what = f"shape {tuple(targets.shape)}" if isinstance(targets, Tensor) else f"type {type(targets).__name__}"
        raise InputError(
            f"the data has targets of {what}; the network returns images of shape {tuple(image.shape)}",
            "The task 'image' expects targets of the same shape as the network's output.",
        )
    return targets.to(image.dtype) if targets.is_floating_point() else targets.to(image.dtype) / 255


class _Fidelity(SumMeter):
    """Sums of PSNR and SSIM, and the number of images."""

    def __init__(self, data_range: float) -> None:
        super().__init__(3)
        self.data_range = data_range
        (self._functional,) = need(ImageToImage.name, "torchmetrics.functional.image")

    def update(self, outputs: Any, targets: Any) -> None:
        image = image_of(outputs)
        wanted = _wanted(image, targets)
        error = (image.double() - wanted.double()).square().flatten(1).mean(1) / self.data_range**2
        ssim = self._functional.structural_similarity_index_measure(
            image.float(), wanted.float(), data_range=self.data_range, reduction="none"
        )
        self.sums[0] += float((-10 * error.clamp_min(_LEAST_ERROR).log10()).sum())
        self.sums[1] += float(ssim.double().sum())
        self.sums[2] += len(image)

    def compute(self) -> dict[str, float]:
        psnr, ssim, count = self.sums.tolist()
        return {"PSNR": psnr / count, "SSIM": ssim / count}
