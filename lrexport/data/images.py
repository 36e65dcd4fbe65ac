"""The one shape of data in lrexport: sets of labelled images that yield normalised batches on a device."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from lrexport.data.augment import Augmentation
from lrexport.data.order import Order, Purpose
from lrexport.errors import InputError
from lrexport.runs.record import DataSource
from lrexport.text import plain

# ImageNet's statistics: what torchvision's networks and the usual CIFAR checkpoints were trained with.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
_NAMED = 10


class ImageSet(Protocol):
    """Labelled images. ``labels`` is (N,) int64; batches are ((B, C, H, W) float32 normalised, (B,) int64).

    Without ``order`` batches come one after the other and as they are; with it shuffled, varied by ``augmentation``, and
    of each batch only this process's part.
    """

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
        order: Order | None = None,
        augmentation: Augmentation | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]: ...

    def to(self, device: torch.device) -> ImageSet:
        """The set kept on the device where it will be used, or itself where it is read from disk."""
        ...

    def digest(self) -> str:
        """Hex sha256 that tells other images from these, or images that changed."""
        ...


def first_of(names: Sequence[str]) -> str:
    """The first ten of the names of files, safe to print, and how many more there are."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(map(plain, names[:_NAMED])) + more


def drawn(count: int, most: int, seed: int) -> Tensor:
    """Which at most ``most`` of ``count`` inputs are taken, at random by ``seed``; fewer are the first of more."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:most]


def draw(images: ImageSet, most: int, seed: int) -> ImageSet:
    """At most ``most`` of the images, at random by ``seed``: folders list theirs class by class."""
    return images.subset(drawn(len(images), most, seed))


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
        order: Order | None = None,
        augmentation: Augmentation | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """As :class:`ImageSet` has it."""
        normalise = Normalisation(self.mean, self.std, device)
        if order is None:
            for start in range(0, len(self), size):
                end = start + size
                yield normalise(self.images[start:end]), self.labels[start:end].to(device)
            return
        for step, index in order.batches(len(self), size):
            part = order.part(len(index))
            mine = index[part].to(self.images.device)
            images = self.images[mine].to(device)
            if augmentation is not None:
                images = augmentation(images, order.generator(Purpose.AUGMENTATION, step), part, len(index))
            yield normalise(images), self.labels[mine.to(self.labels.device)].to(device)

    def to(self, device: torch.device) -> ArraySet:
        return replace(self, images=self.images.to(device))

    def digest(self) -> str:
        digest = hashlib.sha256(repr((self.mean, self.std, tuple(self.images.shape))).encode())
        digest.update(self.images.cpu().contiguous().numpy().data)
        digest.update(self.labels.cpu().contiguous().numpy().data)
        return digest.hexdigest()


class Normalisation:
    """uint8 (B, C, H, W) → float32 on ``device``, by mean and standard deviation of values in [0, 1]."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        self.device = device
        self.mean = torch.tensor(mean, device=device).mul(255).view(1, -1, 1, 1)
        self.scale = torch.tensor(std, device=device).mul(255).reciprocal().view(1, -1, 1, 1)

    def __call__(self, images: Tensor) -> Tensor:
        return images.to(self.device, non_blocking=True).float().sub_(self.mean).mul_(self.scale)


@dataclass(frozen=True)
class ImageData:
    """A dataset: training and test images, the classes' names, and how training images may be varied.

    ``skipped`` are the files that could not be read and were left out.
    """

    source: str
    classes: Sequence[str]
    train: ImageSet
    test: ImageSet
    augmentation: Augmentation | None = None
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    skipped: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know about it."""
        if not self.skipped:
            return ()
        count = f"{len(self.skipped)} image{'s' if len(self.skipped) > 1 else ''}"
        return (f"left out of {plain(self.source)}, as unreadable: {count}: {first_of(self.skipped)}",)


@dataclass(frozen=True)
class Splits:
    """Training data with a part held out for every choice the tool makes; the test images are for one last look."""

    data: ImageData
    train: ImageSet
    heldout: ImageSet

    @property
    def test(self) -> ImageSet:
        return self.data.test

    def to(self, device: torch.device) -> Splits:
        """With the images of both parts kept on the device where they will be used."""
        return replace(self, train=self.train.to(device), heldout=self.heldout.to(device))

    def digest(self) -> str:
        """Hex sha256 of all that training and choices see."""
        return hashlib.sha256(f"{self.train.digest()} {self.heldout.digest()}".encode()).hexdigest()

    def to_record(self) -> DataSource:
        return DataSource(
            source=self.data.source,
            classes=len(self.data.classes),
            train=len(self.train),
            heldout=len(self.heldout),
            test=len(self.test),
            mean=self.data.mean,
            std=self.data.std,
            skipped=len(self.data.skipped),
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
