"""The one shape of data in lrexport: sets of labelled images that yield normalised batches on a device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from lrexport.data.augment import Augmentation
from lrexport.errors import InputError
from lrexport.record import DataSource

# ImageNet's statistics: what torchvision's networks and the usual CIFAR checkpoints were trained with.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class ImageSet(Protocol):
    """Labelled images. ``labels`` is (N,) int64; batches are ((B, C, H, W) float32 normalised, (B,) int64)."""

    @property
    def labels(self) -> Tensor: ...

    @property
    def image_shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...
    def subset(self, indices: Tensor) -> ImageSet: ...

    def batches(
        self,
        size: int,
        device: torch.device,
        shuffle: torch.Generator | None = None,
        augmentation: Augmentation | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]: ...


def draw(images: ImageSet, most: int, seed: int) -> ImageSet:
    """At most ``most`` of the images, at random by ``seed``: folders list theirs class by class."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return images.subset(order[:most])


@dataclass(frozen=True)
class ArraySet:
    """Images kept in memory as uint8 (N, C, H, W); normalised, and augmented when asked, a whole batch at a time."""

    images: Tensor
    labels: Tensor
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(C, H, W) of one image."""
        return tuple(self.images.shape[1:])

    def subset(self, indices: Tensor) -> ArraySet:
        return replace(self, images=self.images[indices], labels=self.labels[indices])

    def batches(
        self,
        size: int,
        device: torch.device,
        shuffle: torch.Generator | None = None,
        augmentation: Augmentation | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches in order, or shuffled and augmented by the generator ``shuffle``.

        A shuffled last batch of less than half the size is left out: BatchNorm's statistics over a few images hurt.
        """
        order = torch.arange(len(self)) if shuffle is None else torch.randperm(len(self), generator=shuffle)
        mean = torch.tensor(self.mean, device=device).mul(255).view(1, -1, 1, 1)
        scale = torch.tensor(self.std, device=device).mul(255).reciprocal().view(1, -1, 1, 1)
        for start in range(0, len(self), size):
            index = order[start : start + size]
            if shuffle is not None and start and len(index) < size // 2:
                return
            images = self.images[index].to(device)
            if shuffle is not None and augmentation is not None:
                images = augmentation(images, shuffle)
            yield images.float().sub_(mean).mul_(scale), self.labels[index].to(device)


@dataclass(frozen=True)
class ImageData:
    """A dataset: training and test images, the classes' names, and how training images may be varied."""

    source: str
    classes: Sequence[str]
    train: ImageSet
    test: ImageSet
    augmentation: Augmentation | None = None
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD


@dataclass(frozen=True)
class Splits:
    """Training data with a part held out for every choice the tool makes; the test images are for one last look."""

    data: ImageData
    train: ImageSet
    heldout: ImageSet

    @property
    def test(self) -> ImageSet:
        return self.data.test

    def to_record(self) -> DataSource:
        return DataSource(
            source=self.data.source,
            classes=len(self.data.classes),
            train=len(self.train),
            heldout=len(self.heldout),
            test=len(self.test),
            mean=self.data.mean,
            std=self.data.std,
        )


def hold_out(data: ImageData, share: float = 0.1, most: int = 5000, seed: int = 0) -> Splits:
    """Hold out ``share`` of the training images (at most ``most``), the same share of every class, chosen by ``seed``.

    Raises InputError where a class has fewer than two training images.
    """
    labels = data.train.labels
    share = min(share, most / max(1, len(labels)))
    generator = torch.Generator().manual_seed(seed)
    held = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        if len(members) < 2:
            raise InputError(
                f"class {data.classes[int(label)]!r} of {data.source} has {len(members)} training image; 2 are the least",
                "One is held out for the choices the tool makes, and one is left to train on.",
            )
        count = min(max(1, round(share * len(members))), len(members) - 1)
        held[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return Splits(data, data.train.subset((~held).nonzero().flatten()), data.train.subset(held.nonzero().flatten()))
