"""Images that stay on disk until worker processes read them for a batch."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from lrexport.data.augment import Augmentation
from lrexport.data.images import MEAN, STD, Normalisation
from lrexport.data.order import Order, Purpose, seed_of
from lrexport.data.reading import Files, cores_here, size_of, try_image
from lrexport.errors import InputError
from lrexport.torch_tools.batch import Batch
from lrexport.torch_tools.import_torchvision import torchvision

# As in torchvision's reference evaluation: resize to 256 before a crop of 224.
_RESIZE_OVER_CROP = 256 / 224
_MOST_WORKERS = 16
_PREFETCHED = 4  # batches that a worker prepares ahead
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class StreamedSet:
    """Images that ``workers`` processes read from disk, with torchvision's ImageNet transforms.

    By default there is one worker for each core that this process may use.
    """

    files: Files
    labels: Tensor
    input_shape: Shape
    workers: int | None = None

    @classmethod
    def of(cls, files: Files, input_shape: Shape, workers: int | None = None) -> StreamedSet:
        return cls(files, torch.tensor([label for _, label in files], dtype=torch.int64), input_shape, workers)

    def __len__(self) -> int:
        return len(self.files)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(C, H, W) of one image as the network gets it."""
        return self.input_shape

    def subset(self, indices: Tensor) -> StreamedSet:
        return replace(self, files=[self.files[i] for i in indices.tolist()], labels=self.labels[indices])

    def batches(
        self,
        size: int,
        device: torch.device,
        order: Order | None = None,
        augmentation: Augmentation | None = None,
    ) -> Iterator[tuple[Batch, Tensor]]:
        """Images with ``order`` and ``augmentation`` get random resized crops and flips; others are centre-cropped.

        Raises InputError naming an image that cannot be read.
        """
        transforms = torchvision("transforms.v2")
        _, height, width = self.input_shape
        if order is not None and augmentation is not None:
            steps = [transforms.RandomResizedCrop((height, width), antialias=True), transforms.RandomHorizontalFlip()]
        else:
            steps = [_ResizeAround(height, width), transforms.CenterCrop((height, width))]
        if order is None:
            index: Any = torch.arange(len(self)).split(size) if len(self) else ()  # split would yield one empty batch
        else:
            index = [batch[order.part(len(batch))] for _, batch in order.batches(len(self), size)]
        # Decoding a JPEG takes milliseconds, so every core gets a process.
        workers = min(min(cores_here(), _MOST_WORKERS) if self.workers is None else self.workers, len(index))
        loader: Any = torch.utils.data.DataLoader(
            _Streamed(self.files, transforms.Compose([*steps, transforms.PILToTensor()]), order),
            batch_sampler=[part.tolist() for part in index],
            collate_fn=_collate,
            num_workers=workers,
            prefetch_factor=_PREFETCHED if workers else None,
            pin_memory=device.type == "cuda",
        )
        # Images travel to the device as bytes, a quarter of the size of floats, and are normalised there.
        normalise = Normalisation(MEAN, STD, device)
        for batch in loader:
            if isinstance(batch, InputError):
                raise batch
            images, labels = batch
            yield Batch.of(normalise(images)), labels.to(device, non_blocking=True)

    def to(self, device: torch.device) -> StreamedSet:
        return self

    def digest(self) -> str:
        """Hex sha256 of names, sizes and labels; reading every image could take hours."""
        digest = hashlib.sha256(repr(self.input_shape).encode())
        for path, label in self.files:
            digest.update(os.fsencode(f"{path.parent.name}/{path.name} {size_of(path)} {label}\n"))
        return digest.hexdigest()


@dataclass(frozen=True)
class _ResizeAround:
    """Resizes an image to 256/224 of the crop along one axis and at least that along the other.

    For a square crop the result is exactly that of torchvision's Resize of the shorter side.
    """

    height: int
    width: int

    def __call__(self, image: Image.Image) -> Image.Image:
        if self.height * image.width >= self.width * image.height:
            height = round(self.height * _RESIZE_OVER_CROP)
            width = int(height * image.width / image.height)
        else:
            width = round(self.width * _RESIZE_OVER_CROP)
            height = int(width * image.height / image.width)
        return image.resize((width, height), Image.Resampling.BILINEAR)


class _Streamed(torch.utils.data.Dataset[tuple[Tensor, int] | InputError]):
    """Images by index; for an unreadable one the error is returned, not raised (see :func:`_collate`)."""

    def __init__(self, files: Files, transform: Any, order: Order | None) -> None:
        self.files, self.transform, self.order = files, transform, order

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int] | InputError:
        path, label = self.files[index]
        if self.order is not None:  # crops must not depend on the number of workers or on which one reads the image
            torch.manual_seed(seed_of(Purpose.AUGMENTATION, self.order.seed, self.order.epoch, index))
        image = try_image(path)
        return image if isinstance(image, InputError) else (self.transform(image), label)


def _collate(read: list[tuple[Tensor, int] | InputError]) -> Any:
    """A batch, or its first error; an error raised in a worker would arrive with a traceback as its message."""
    errors = [each for each in read if isinstance(each, InputError)]
    return errors[0] if errors else torch.utils.data.default_collate(read)
