"""Sets of samples, which yield batches of what the network takes on a device; above all images in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from lrexport.data.augment import Augmentation
from lrexport.data.order import Order, Purpose
from lrexport.data.preprocessing import Normalisation as Normalisation
from lrexport.data.preprocessing import Preprocessing, in_order
from lrexport.data.targets import CLASSIFICATION, chosen, ready
from lrexport.errors import InputError
from lrexport.preprocessing import MEAN as MEAN
from lrexport.preprocessing import STD as STD
from lrexport.runs.sources import DataSource, RecordedPreprocessing
from lrexport.signature import Signature
from lrexport.text import number_of, plain
from lrexport.torch_tools.batch import Batch

_NAMED = 10


class ImageSet(Protocol):
    """Samples, images or others. ``labels`` is (N,) int64 where their targets are classes, else None.

    Batches are inputs (B, …) as the network takes them, and their targets: (B,) int64 for classes, (B, H, W) int64 for
    masks, None without targets, else what the data gives. Without ``order``, batches are in sequence and unchanged. With it
    they are shuffled and augmented by ``augmentation``, and each is only this process's part.
    """

    @property
    def labels(self) -> Tensor | None: ...

    @property
    def signature(self) -> Signature:
        """What a network for these samples takes."""
        ...

    def __len__(self) -> int: ...
    def subset(self, indices: Tensor) -> ImageSet: ...

    def batches(
        self,
        size: int,
        device: torch.device,
        order: Order | None = None,
        augmentation: Augmentation | None = None,
    ) -> Iterator[tuple[Batch, Any]]: ...

    def to(self, device: torch.device) -> ImageSet:
        """The set on ``device``; a set that is read from disk stays there."""
        ...

    def digest(self) -> str:
        """Hex sha256 that changes with the samples, their targets or their order."""
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
    """Images in memory as uint8 (N, C, H, W), normalised and augmented a whole batch at a time.

    Their targets are ``labels`` (N,) int64, or ``masks`` (N, H, W) uint8, or none. ``value_range`` is that of pixels before
    ``mean`` and ``std``.
    """

    images: Tensor
    labels: Tensor | None
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    value_range: tuple[float, float] = (0.0, 1.0)
    masks: Tensor | None = None

    @classmethod
    def of(
        cls, images: Tensor, labels: Tensor | None, preprocessing: Preprocessing, masks: Tensor | None = None
    ) -> ArraySet:
        """From RGB images, as files have them."""
        done = preprocessing
        return cls(in_order(images, done.channels), labels, done.mean, done.std, done.value_range, masks)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(C, H, W) of one image."""
        return tuple(self.images.shape[1:])

    @property
    def signature(self) -> Signature:
        return Signature.of(self.image_shape)

    def subset(self, indices: Tensor) -> ArraySet:
        labels, masks = (None if each is None else each[indices] for each in (self.labels, self.masks))
        return replace(self, images=self.images[indices], labels=labels, masks=masks)

    def batches(
        self,
        size: int,
        device: torch.device,
        order: Order | None = None,
        augmentation: Augmentation | None = None,
    ) -> Iterator[tuple[Batch, Any]]:
        """See :class:`ImageSet`."""
        normalise = Normalisation(self.mean, self.std, device, self.value_range)
        targets = self.labels if self.masks is None else self.masks
        if order is None:
            for start in range(0, len(self), size):
                end = start + size
                yield Batch.of(normalise(self.images[start:end])), ready(chosen(targets, slice(start, end)), device)
            return
        for step, index in order.batches(len(self), size):
            part = order.part(len(index))
            mine = index[part]
            images, truth = self.images[mine.to(self.images.device)].to(device), ready(chosen(targets, mine), device)
            if augmentation is not None:
                places = order.generator(Purpose.AUGMENTATION, step), part, len(index)
                if self.masks is None:
                    images = augmentation(images, *places)
                else:
                    images, truth = augmentation.with_masks(images, truth, *places)
            yield Batch.of(normalise(images)), truth

    def to(self, device: torch.device) -> ArraySet:
        return replace(self, images=self.images.to(device))

    def digest(self) -> str:
        about: tuple[Any, ...] = (self.mean, self.std, tuple(self.images.shape))
        if self.value_range != (0.0, 1.0):
            about = (*about, self.value_range)
        digest = hashlib.sha256(repr(about).encode())
        for tensor in (self.images, self.labels, self.masks):
            if tensor is not None:
                digest.update(tensor.cpu().contiguous().numpy().data)
        return digest.hexdigest()


@dataclass(frozen=True)
class ImageData:
    """A data set: training and test samples, and the augmentation of training images.

    ``classes`` are their names where the targets are classes or masks, else it is empty. ``skipped`` are the unreadable
    files that were left out. ``preprocessing`` is that of pictures; ``mean`` and ``std`` are part of it. ``default_task`` is
    the task that the targets are for: "classification", "segmentation", "image", "detection", "fidelity" without targets,
    None where only the user knows it.
    """

    source: str
    classes: Sequence[str]
    train: ImageSet
    test: ImageSet
    augmentation: Augmentation | None = None
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    skipped: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None
    default_task: str | None = CLASSIFICATION

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings for the user."""
        if not self.skipped:
            return ()
        count = number_of(len(self.skipped), "unreadable image")
        return (f"left out {count} of {plain(self.source)}: {first_of(self.skipped)}",)


@dataclass(frozen=True)
class Splits:
    """Training samples, those held out for all choices that lrexport makes, and test samples for the final score only."""

    data: ImageData
    train: ImageSet
    heldout: ImageSet

    @property
    def signature(self) -> Signature:
        """What a network for these samples takes."""
        return self.train.signature

    @property
    def test(self) -> ImageSet:
        return self.data.test

    def to(self, device: torch.device) -> Splits:
        """The same splits with training and held-out samples on ``device``."""
        return replace(self, train=self.train.to(device), heldout=self.heldout.to(device))

    def digest(self) -> str:
        """Hex sha256 of the training and held-out samples."""
        return hashlib.sha256(f"{self.train.digest()} {self.heldout.digest()}".encode()).hexdigest()

    def to_record(self) -> DataSource:
        done = self.data.preprocessing
        return DataSource(
            source=self.data.source,
            classes=len(self.data.classes),
            class_names=tuple(map(str, self.data.classes)),
            train=len(self.train),
            heldout=len(self.heldout),
            test=len(self.test),
            mean=self.data.mean,
            std=self.data.std,
            skipped=len(self.data.skipped),
            preprocessing=None if done is None else RecordedPreprocessing.of(done),
        )


def hold_out(data: ImageData, share: float = 0.1, most: int = 5000, seed: int = 0) -> Splits:
    """Hold out ``share`` of the training samples, at most ``most``, drawn by ``seed``: of every class the same share.

    Raises InputError if a class has fewer than two training samples; without classes, if all of them are fewer than two.
    """
    count = len(data.train)
    share = min(share, most / max(1, count))
    generator = torch.Generator().manual_seed(seed)
    held = torch.zeros(count, dtype=torch.bool)
    labels = data.train.labels
    groups: list[Tensor | None] = [None] if labels is None else [*labels.unique()]
    for label in groups:
        members = torch.arange(count) if labels is None or label is None else labels.eq(label).nonzero().flatten()
        if len(members) < 2:
            of_class = "" if label is None else f"class {data.classes[int(label)]!r} of "
            sample = "sample" if label is None else "image"
            raise InputError(
                f"{of_class}{data.source} has {len(members)} training {sample}; expected 2 or more",
                "One is held out to choose ranks and checkpoints, the other is for training.",
            )
        picked = min(max(1, round(share * len(members))), len(members) - 1)
        held[members[torch.randperm(len(members), generator=generator)[:picked]]] = True
    return Splits(data, data.train.subset((~held).nonzero().flatten()), data.train.subset(held.nonzero().flatten()))


def parted(count: int, source: str) -> tuple[Tensor, Tensor]:
    """Training and test samples of a set without parts: every fifth is a test sample, of fewer than five the last.

    Raises InputError for fewer than three, of which nothing could be held out.
    """
    if count < 3:
        raise InputError(
            f"{source} has {count} sample{'' if count == 1 else 's'}; expected 3 or more",
            "One is for the final score and one is held out for choices.",
        )
    index = torch.arange(count)
    is_test = index % 5 == 4 if count >= 5 else index == count - 1
    return index[~is_test], index[is_test]
