"""Crop and flip a whole batch at once, on its device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


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
        batch, _, height, width = images.shape
        device = images.device
        whole = of or batch
        offsets = torch.randint(0, 2 * self.padding + 1, (2, whole, 1), generator=generator)[:, part].to(device)
        rows = offsets[0] + torch.arange(height, device=device)
        columns = offsets[1] + torch.arange(width, device=device)
        if self.flip:
            mirrored = torch.rand(whole, 1, generator=generator)[part].to(device) < 0.5
            columns = torch.where(mirrored, columns.flip(1), columns)
        padded = F.pad(images, (self.padding,) * 4).permute(0, 2, 3, 1)
        image = torch.arange(batch, device=device).view(-1, 1, 1)
        return padded[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
