"""Images that stay on disk until worker processes read them for a batch, with their classes, masks or nothing."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from lrexport.data.augment import Augmentation
from lrexport.data.order import Order, Purpose, seed_of
from lrexport.data.preprocessing import RESAMPLING, Fitting, Normalisation, Preprocessing, in_order
from lrexport.data.reading import Files, cores_here, size_of, try_image, try_pair
from lrexport.data.targets import ready
from lrexport.errors import InputError
from lrexport.signature import Signature
from lrexport.torch_tools.batch import Batch
from lrexport.torch_tools.import_torchvision import torchvision
from lrexport.torch_tools.seeds import seed_torch

# As in torchvision's reference evaluation: resize to 256 before a crop of 224.
_RESIZE_OVER_CROP = 256 / 224
_MOST_WORKERS = 16
_PREFETCHED = 4  # batches that a worker prepares ahead


@dataclass(frozen=True)
class StreamedSet:
    """Images that ``workers`` processes read from disk, with torchvision's ImageNet transforms.

    By default there is one worker for each core that this process may use. ``labels`` is None for images without classes,
    whose targets are masks or nothing.
    """

    files: Files
    labels: Tensor | None
    preprocessing: Preprocessing
    channels: int = 3
    workers: int | None = None

    @classmethod
    def of(cls, files: Files, preprocessing: Preprocessing, channels: int = 3, workers: int | None = None) -> StreamedSet:
        has_classes = all(isinstance(target, int) for _, target in files)
        labels = torch.tensor([target for _, target in files], dtype=torch.int64) if has_classes else None
        return cls(files, labels, preprocessing, channels, workers)

    def __len__(self) -> int:
        return len(self.files)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(C, H, W) of one image as the network gets it."""
        assert self.preprocessing.size is not None
        return (self.channels, *self.preprocessing.size)

    @property
    def signature(self) -> Signature:
        return Signature.of(self.image_shape)

    def subset(self, indices: Tensor) -> StreamedSet:
        labels = None if self.labels is None else self.labels[indices]
        return replace(self, files=[self.files[i] for i in indices.tolist()], labels=labels)

    def batches(
        self,
        size: int,
        device: torch.device,
        order: Order | None = None,
        augmentation: Augmentation | None = None,
    ) -> Iterator[tuple[Batch, Any]]:
        """Images with ``order`` and ``augmentation`` get random resized crops and flips; others are centre-cropped.

        Those with masks are centre-cropped as well, and then augmented together with them. Raises InputError naming an image
        that cannot be read.
        """
        augmented = order is not None and augmentation is not None
        if order is None:
            steps = [(0, part) for part in torch.arange(len(self)).split(size)] if len(self) else []  # else one empty batch
        else:
            steps = list(order.batches(len(self), size))
        parts = [batch if order is None else batch[order.part(len(batch))] for _, batch in steps]
        # Decoding a JPEG takes milliseconds, so every core gets a process.
        workers = min(min(cores_here(), _MOST_WORKERS) if self.workers is None else self.workers, len(parts))
        loader: Any = torch.utils.data.DataLoader(
            _Streamed(self.files, self.preprocessing, order, augmented),
            batch_sampler=[part.tolist() for part in parts],
            collate_fn=_collate,
            num_workers=workers,
            prefetch_factor=_PREFETCHED if workers else None,
            pin_memory=device.type == "cuda",
        )
        # Images travel to the device as bytes, a quarter of the size of floats, and are normalised there.
        normalise = Normalisation.of(self.preprocessing, device)
        for (step, whole), batch in zip(steps, loader, strict=True):
            if isinstance(batch, InputError):
                raise batch
            images, targets = in_order(batch[0], self.preprocessing.channels), batch[1]
            if isinstance(targets, Tensor) and targets.ndim == 3 and order is not None and augmentation is not None:
                places = order.generator(Purpose.AUGMENTATION, step), order.part(len(whole)), len(whole)
                images, targets = augmentation.with_masks(images, targets, *places)
            yield Batch.of(normalise(images)), ready(targets, device)

    def to(self, device: torch.device) -> StreamedSet:
        return self

    def digest(self) -> str:
        """Hex sha256 of names, sizes and labels; reading every image could take hours."""
        done, plain = self.preprocessing, Preprocessing.of(self.image_shape, {})
        digest = hashlib.sha256(repr(self.image_shape).encode())
        if replace(done, origin=plain.origin) != plain:
            digest.update(repr(replace(done, origin=plain.origin)).encode())
        for path, target in self.files:
            digest.update(os.fsencode(f"{path.parent.name}/{path.name} {size_of(path)} "))
            about = f"{target.name} {size_of(target)}" if isinstance(target, Path) else f"{target}"
            digest.update(os.fsencode(f"{about}\n"))
        return digest.hexdigest()


@dataclass(frozen=True)
class _ResizeAround:
    """Resizes an image to 256/224 of the crop along one axis and at least that along the other.

    For a square crop the result is exactly that of torchvision's Resize of the shorter side.
    """

    height: int
    width: int
    resampling: Image.Resampling = Image.Resampling.BILINEAR

    def __call__(self, image: Image.Image) -> Image.Image:
        if self.height * image.width >= self.width * image.height:
            height = round(self.height * _RESIZE_OVER_CROP)
            width = int(height * image.width / image.height)
        else:
            width = round(self.width * _RESIZE_OVER_CROP)
            height = int(width * image.height / image.width)
        return image.resize((width, height), self.resampling)


class _Streamed(torch.utils.data.Dataset[Any]):
    """Images by index; for an unreadable one the error is returned, not raised (see :func:`_collate`)."""

    def __init__(self, files: Files, preprocessing: Preprocessing, order: Order | None, augmented: bool) -> None:
        transforms = torchvision("transforms.v2")
        assert preprocessing.size is not None
        height, width = preprocessing.size
        fitting = Fitting(preprocessing)
        how = getattr(transforms.InterpolationMode, preprocessing.interpolation.upper())
        steps: list[Any]
        if augmented:
            crop = transforms.RandomResizedCrop((height, width), interpolation=how, antialias=True)
            steps = [crop, transforms.RandomHorizontalFlip()]
        elif preprocessing.resize is None and preprocessing.crop == "center":
            resampling = RESAMPLING[preprocessing.interpolation]
            steps = [_ResizeAround(height, width, resampling), transforms.CenterCrop((height, width))]
        else:
            steps = [fitting]
        self.files, self.order, self.fitting = files, order, fitting
        self.transform = transforms.Compose([*steps, transforms.PILToTensor()])

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Any] | InputError:
        path, target = self.files[index]
        if self.order is not None:  # crops must not depend on the number of workers or on which one reads the image
            seed_torch(seed_of(Purpose.AUGMENTATION, self.order.seed, self.order.epoch, index))
        if isinstance(target, Path):
            pair = try_pair(path, target, self.fitting)
            if isinstance(pair, InputError):
                return pair
            pixels, mask = pair
            return torch.from_numpy(pixels).permute(2, 0, 1).contiguous(), torch.from_numpy(mask)
        image = try_image(path)
        return image if isinstance(image, InputError) else (self.transform(image), target)


def _collate(read: list[tuple[Tensor, Any] | InputError]) -> Any:
    """A batch, or its first error; an error raised in a worker would arrive with a traceback as its message."""
    errors = [each for each in read if isinstance(each, InputError)]
    if errors:
        return errors[0]
    if any(target is None for _, target in read):  # type: ignore[misc]
        return torch.utils.data.default_collate([image for image, _ in read]), None  # type: ignore[misc]
    return torch.utils.data.default_collate(read)
