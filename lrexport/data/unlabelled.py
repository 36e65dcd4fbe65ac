"""Inputs without labels: for weighting, reconstruction, and BatchNorm's statistics."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lrexport.data.images import ImageSet, draw, drawn


class Unlabelled(Protocol):
    """Inputs (N, …) of one shape."""

    def __len__(self) -> int: ...
    def draw(self, most: int) -> Unlabelled:
        """At most ``most`` random inputs, always the same; a smaller draw is a prefix of a larger one."""
        ...

    def batches(self, size: int) -> Iterator[Tensor]:
        """Batches (B, …), B ≤ ``size``, on the device where they are used."""
        ...


@dataclass(frozen=True)
class Images:
    """The images of a set, drawn by ``seed``."""

    images: ImageSet
    device: torch.device
    seed: int

    def __len__(self) -> int:
        return len(self.images)

    def draw(self, most: int) -> Images:
        return Images(draw(self.images, most, self.seed), self.device, self.seed)

    def batches(self, size: int) -> Iterator[Tensor]:
        return (images for images, _ in self.images.batches(size, self.device))


@dataclass(frozen=True)
class Tensors:
    """The inputs of a tensor (N, …), drawn by ``seed``."""

    inputs: Tensor
    device: torch.device
    seed: int

    def __len__(self) -> int:
        return len(self.inputs)

    def draw(self, most: int) -> Tensors:
        order = drawn(len(self.inputs), most, self.seed)
        return Tensors(self.inputs[order.to(self.inputs.device)], self.device, self.seed)

    def batches(self, size: int) -> Iterator[Tensor]:
        # Copies, because a network may change its input in place.
        return (part.to(self.device, copy=True) for part in self.inputs.split(size))
