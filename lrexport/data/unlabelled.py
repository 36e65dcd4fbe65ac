"""Inputs without labels: for weighting, reconstruction, and BatchNorm's statistics."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

from lrexport.data.images import ImageSet, draw, drawn
from lrexport.torch_tools.batch import Batch


class Unlabelled(Protocol):
    """Inputs of a network, (N, …) each."""

    def __len__(self) -> int: ...
    def draw(self, most: int) -> Unlabelled:
        """At most ``most`` random inputs, always the same; a smaller draw is a prefix of a larger one."""
        ...

    def batches(self, size: int) -> Iterator[Batch]:
        """Batches (B, …), B ≤ ``size``, on the device where they are used."""
        ...


@dataclass(frozen=True)
class Images:
    """The samples of a set, drawn by ``seed``."""

    images: ImageSet
    device: torch.device
    seed: int

    def __len__(self) -> int:
        return len(self.images)

    def draw(self, most: int) -> Images:
        return Images(draw(self.images, most, self.seed), self.device, self.seed)

    def batches(self, size: int) -> Iterator[Batch]:
        return (images for images, _ in self.images.batches(size, self.device))


@dataclass(frozen=True)
class Given:
    """Inputs in memory, (N, …) each, drawn by ``seed`` as a set of images is."""

    inputs: Batch
    device: torch.device
    seed: int

    def __len__(self) -> int:
        return len(self.inputs)

    def draw(self, most: int) -> Given:
        order = drawn(len(self.inputs), most, self.seed)
        return Given(self.inputs[order], self.device, self.seed)

    def batches(self, size: int) -> Iterator[Batch]:
        # Copies, because a network may change its input in place.
        return (part.to(self.device, copy=True) for part in self.inputs.split(size))
