"""Crop and flip a whole batch at once, on its device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = 255  # the value of a mask where no class is meant


@dataclass(frozen=True)
class Augmentation:
    """Pad by ``padding`` zeros and crop at a different offset per image; mirror each with probability ½ if ``flip``.

    The recipe of He et al. 2016 (arXiv 1512.03385), section 4.2.
    """

    padding: int
    flip: bool

    def __call__(
        self, images: Tensor, generator: torch.Generator, part: Tensor | slice = slice(None), of: int = 0
    ) -> Tensor:
        """uint8 (B, C, H, W) → the same shape. ``images`` are the ``part`` of a batch of ``of`` images, by default all.

        Random numbers are drawn on the CPU for the whole batch, so a seed gives the same images everywhere.
        """
        rows, columns = self._places(images, generator, part, of)
        padded = F.pad(images, (self.padding,) * 4).permute(0, 2, 3, 1)
        return padded[_numbers(images), rows, columns].permute(0, 3, 1, 2)

    def with_masks(
        self, images: Tensor, masks: Tensor, generator: torch.Generator, part: Tensor | slice = slice(None), of: int = 0
    ) -> tuple[Tensor, Tensor]:
        """As called for images, with masks (B, H, W) cropped and mirrored in the same way; beside a picture is ignored."""
        rows, columns = self._places(images, generator, part, of)
        padded = F.pad(images, (self.padding,) * 4).permute(0, 2, 3, 1)
        outside = F.pad(masks, (self.padding,) * 4, value=IGNORED)
        number = _numbers(images)
        return padded[number, rows, columns].permute(0, 3, 1, 2), outside[number, rows, columns]

    def _places(self, images: Tensor, generator: torch.Generator, part: Tensor | slice, of: int) -> tuple[Tensor, Tensor]:
        """Rows (B, H, 1) and columns (B, 1, W) of the padded images that are taken."""
        batch, _, height, width = images.shape
        device = images.device
        whole = of or batch
        offsets = torch.randint(0, 2 * self.padding + 1, (2, whole, 1), generator=generator)[:, part].to(device)
        rows = offsets[0] + torch.arange(height, device=device)
        columns = offsets[1] + torch.arange(width, device=device)
        if self.flip:
            mirrored = torch.rand(whole, 1, generator=generator)[part].to(device) < 0.5
            columns = torch.where(mirrored, columns.flip(1), columns)
        return rows[:, :, None], columns[:, None, :]


def _numbers(images: Tensor) -> Tensor:
    """The number of each image in its batch, (B, 1, 1)."""
    return torch.arange(len(images), device=images.device).view(-1, 1, 1)
