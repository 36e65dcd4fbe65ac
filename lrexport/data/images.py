"""Sets of labelled images, which yield normalised batches on a device."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from lrexport.data.augment import Augmentation
from lrexport.data.order import Order, Purpose
from lrexport.data.preprocessing import Normalisation as Normalisation
from lrexport.errors import InputError
from lrexport.preprocessing import MEAN as MEAN
from lrexport.preprocessing import STD as STD
from lrexport.runs.record import DataSource
from lrexport.signature import Signature
from lrexport.text import plain
from lrexport.torch_tools.batch import Batch

_NAMED = 10


class ImageSet(Protocol):
    """Labelled images. ``labels`` is (N,) int64; batches are ((B, C, H, W) float32 normalised, (B,) int64).

    Without ``order``, batches are in sequence and unchanged. With it they are shuffled and augmented by ``augmentation``,
    and each is only this process's part.
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
    ) -> Iterator[tuple[Batch, Tensor]]: ...

    def to(self, device: torch.device) -> ImageSet:
        """The set on ``device``; a set that is read from disk stays there."""
        ...

    def digest(self) -> str:
        """Hex sha256 that changes with the images, their labels or their order."""
        ...


def first_of(names: Sequence[str]) -> str:
    """The first ten file names, safe to print, and the number of further ones."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(map(plain, names[:_NAMED])) + more


def drawn(count: int, most: int, seed: int) -> Tensor:
    """Indices of at most ``most`` of ``count`` inputs, drawn by ``seed``; a smaller draw is a prefix of a larger one."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:most]


def draw(images: ImageSet, most: int, seed: int) -> ImageSet:
    """At most ``most`` of the images, drawn by ``seed``, because folders list them class by class."""
    return images.subset(drawn(len(images), most, seed))


@dataclass(frozen=True)
class ArraySet:
    """Images in memory as uint8 (N, C, H, W), normalised and augmented a whole batch at a time."""

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
    ) -> Iterator[tuple[Batch, Tensor]]:
        """See :class:`ImageSet`."""
        normalise = Normalisation(self.mean, self.std, device)
        if order is None:
            for start in range(0, len(self), size):
                end = start + size
                yield Batch.of(normalise(self.images[start:end])), self.labels[start:end].to(device)
            return
        for step, index in order.batches(len(self), size):
            part = order.part(len(index))
            mine = index[part].to(self.images.device)
            images = self.images[mine].to(device)
            if augmentation is not None:
                images = augmentation(images, order.generator(Purpose.AUGMENTATION, step), part, len(index))
            yield Batch.of(normalise(images)), self.labels[mine.to(self.labels.device)].to(device)

    def to(self, device: torch.device) -> ArraySet:
        return replace(self, images=self.images.to(device))

    def digest(self) -> str:
        digest = hashlib.sha256(repr((self.mean, self.std, tuple(self.images.shape))).encode())
        digest.update(self.images.cpu().contiguous().numpy().data)
        digest.update(self.labels.cpu().contiguous().numpy().data)
        return digest.hexdigest()


@dataclass(frozen=True)
class ImageData:
    """A dataset: training and test images, class names, and the augmentation of training images.

    ``skipped`` are the unreadable files that were left out.
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
        """Warnings for the user."""
        if not self.skipped:
            return ()
        count = f"{len(self.skipped)} unreadable image{'s' if len(self.skipped) > 1 else ''}"
        return (f"left out {count} of {plain(self.source)}: {first_of(self.skipped)}",)


@dataclass(frozen=True)
class Splits:
    """Training images, those held out for all choices that lrexport makes, and test images for the final score only."""

    data: ImageData
    train: ImageSet
    heldout: ImageSet

    @property
    def signature(self) -> Signature:
        """What a network for these images takes."""
        return Signature.of(self.train.image_shape)

    @property
    def test(self) -> ImageSet:
        return self.data.test

    def to(self, device: torch.device) -> Splits:
        """The same splits with training and held-out images on ``device``."""
        return replace(self, train=self.train.to(device), heldout=self.heldout.to(device))

    def digest(self) -> str:
        """Hex sha256 of the training and held-out images."""
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
    """Hold out ``share`` of the training images, at most ``most``, with the same share of every class, drawn by ``seed``.

    Raises InputError if a class has fewer than two training images.
    """
    labels = data.train.labels
    share = min(share, most / max(1, len(labels)))
    generator = torch.Generator().manual_seed(seed)
    held = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        if len(members) < 2:
            raise InputError(
                f"class {data.classes[int(label)]!r} of {data.source} has {len(members)} training image; expected 2 or more",
                "One is held out to choose ranks and checkpoints, the other is for training.",
            )
        count = min(max(1, round(share * len(members))), len(members) - 1)
        held[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return Splits(data, data.train.subset((~held).nonzero().flatten()), data.train.subset(held.nonzero().flatten()))
