"""Preprocessing on tensors and pictures: normalisation of whole batches, channel order, resizing and cropping."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from lrexport.preprocessing import Preprocessing as Preprocessing

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_GREY = 19595, 38470, 7471  # red, green and blue in the luma of ITU-R 601-2, of 65,536, as Pillow has it


class Normalisation:
    """uint8 (B, C, H, W) → float32 on ``device``, by the mean and standard deviation of values in ``value_range``."""

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
        value_range: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        low, high = value_range
        self.device = device
        self.mean = torch.tensor(mean, device=device).sub(low).mul(255).div(high - low).view(1, -1, 1, 1)
        self.scale = torch.tensor(std, device=device).mul(255).reciprocal().mul(high - low).view(1, -1, 1, 1)

    @classmethod
    def of(cls, preprocessing: Preprocessing, device: torch.device) -> Normalisation:
        """The normalisation of a preprocessing."""
        return cls(preprocessing.mean, preprocessing.std, device, preprocessing.value_range)

    def __call__(self, images: Tensor) -> Tensor:
        return images.to(self.device, non_blocking=True).float().sub_(self.mean).mul_(self.scale)


def in_order(images: Tensor, channels: str) -> Tensor:
    """uint8 RGB (N, 3, H, W), as files have it, in the order that the network takes; (N, 1, H, W) for grey."""
    if channels == "bgr":
        return images.flip(1)
    if channels == "grey" and images.shape[1] == 3:
        weights = torch.tensor(_GREY, device=images.device).view(1, 3, 1, 1)
        return (images.to(torch.int32).mul(weights).sum(1, keepdim=True).add(1 << 15) >> 16).to(torch.uint8)
    return images


@dataclass(frozen=True)
class Fitting:
    """Resizes and crops pictures to the size of a preprocessing.

    Without ``resize`` the shorter side is resized so that the crop just fits, times ``margin``.
    """

    preprocessing: Preprocessing
    margin: float = 1.0

    def __call__(self, image: Image.Image, nearest: bool = False) -> Image.Image:
        """The picture at the network's size; ``nearest`` for masks, whose values must not be mixed."""
        done = self.preprocessing
        assert done.size is not None
        height, width = done.size
        how = Image.Resampling.NEAREST if nearest else RESAMPLING[done.interpolation]
        if done.crop == "none":
            return image if image.size == (width, height) else image.resize((width, height), how)
        if done.resize is None:
            scale = max(width / image.width, height / image.height) * self.margin
        else:
            scale = done.resize / min(image.width, image.height)
        size = max(width, round(image.width * scale)), max(height, round(image.height * scale))
        if image.size != size:
            image = image.resize(size, how)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        return image.crop((left, top, left + width, top + height))
