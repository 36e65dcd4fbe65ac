"""Image folders: ROOT/train and ROOT/val or ROOT/test, one folder a class; in memory when small, streamed otherwise."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lrexport.data.augment import Augmentation
from lrexport.data.images import MEAN, STD, ArraySet, ImageData, ImageSet, Normalisation
from lrexport.data.order import Order, Purpose, seed_of
from lrexport.errors import InputError
from lrexport.models.vision import torchvision

_SUFFIXES = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".webp", ".tif", ".tiff"}
_IN_MEMORY_BYTES = 2 << 30
# torchvision's reference evaluation: a side of 256 for a crop of 224.
_RESIZE_OVER_CROP = 256 / 224
_MOST_WORKERS = 16
_PREFETCHED = 4  # batches a worker prepares ahead
Shape = tuple[int, int, int]
_Files = list[tuple[Path, int]]


def load_folder(source: str, root: Path, input_shape: Shape, in_memory: bool, workers: int | None = None) -> ImageData:
    """Dataset of a folder. Raises InputError naming what is absent, empty, unreadable or different between the parts."""
    if input_shape[0] != 3:
        raise InputError(f"image folders give RGB, the network takes {input_shape[0]} channels ({input_shape})")
    train_root = root / "train"
    test_root = next((root / name for name in ("val", "test") if (root / name).is_dir()), None)
    if not train_root.is_dir() or test_root is None:
        raise InputError(f"{root} needs the folders train and val (or test), one folder a class in each")
    classes = _classes(train_root)
    if len(classes) < 2:
        raise InputError(f"{train_root} has {len(classes)} class folder(s); two are the least")
    other = _classes(test_root)
    if other != classes:
        only = [f"{name} only in {train_root.name}" for name in classes if name not in other]
        only += [f"{name} only in {test_root.name}" for name in other if name not in classes]
        raise InputError(f"the classes of {train_root} and {test_root} differ: {', '.join(only[:10])}")
    train_files, test_files = _list(train_root, classes), _list(test_root, classes)
    size = input_shape[0] * input_shape[1] * input_shape[2] * (len(train_files) + len(test_files))
    train: ImageSet
    test: ImageSet
    if in_memory and size <= _IN_MEMORY_BYTES:
        train, test = _decode(train_files, input_shape), _decode(test_files, input_shape)
        return ImageData(source, classes, train, test, Augmentation(max(1, input_shape[1] // 8), flip=True))
    train, test = (StreamedSet.of(each, input_shape, workers) for each in (train_files, test_files))
    return ImageData(source, classes, train, test, Augmentation(0, flip=True))


def _classes(root: Path) -> list[str]:
    return sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _list(root: Path, classes: list[str]) -> _Files:
    found: _Files = []
    for label, name in enumerate(classes):
        images = sorted(path for path in (root / name).rglob("*") if path.suffix.lower() in _SUFFIXES)
        if not images:
            raise InputError(f"class folder {root / name} has no images", f"Known endings: {', '.join(sorted(_SUFFIXES))}")
        found += [(path, label) for path in images]
    return found


def _read(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"cannot read the image {path}: {error}", "Remove or replace it.") from error


def _decode(files: _Files, input_shape: Shape) -> ArraySet:
    """Decode every file once; an image of another size has its shorter side resized, then the centre cropped."""
    _, height, width = input_shape

    def load(path: Path) -> np.ndarray:
        image = _read(path)
        if image.size != (width, height):
            scale = max(width / image.width, height / image.height)
            resized = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
            image = image.resize(resized, Image.Resampling.BILINEAR)
            left, top = (image.width - width) // 2, (image.height - height) // 2
            image = image.crop((left, top, left + width, top + height))
        return np.asarray(image)

    images = np.empty((len(files), height, width, 3), np.uint8)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for index, pixels in enumerate(pool.map(load, (path for path, _ in files), chunksize=64)):
            images[index] = pixels
    labels = torch.tensor([label for _, label in files])
    return ArraySet(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), labels)


@dataclass(frozen=True)
class StreamedSet:
    """Images read from disk whenever they are needed, with torchvision's ImageNet transforms.

    ``workers`` processes read them, by default one a core of this process's share of the machine.
    """

    files: _Files
    labels: Tensor
    input_shape: Shape
    workers: int | None = None

    @classmethod
    def of(cls, files: _Files, input_shape: Shape, workers: int | None = None) -> StreamedSet:
        return cls(files, torch.tensor([label for _, label in files]), input_shape, workers)

    def __len__(self) -> int:
        return len(self.files)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(C, H, W) of one image as it is fed to the network."""
        return self.input_shape

    def subset(self, indices: Tensor) -> StreamedSet:
        return replace(self, files=[self.files[i] for i in indices.tolist()], labels=self.labels[indices])

    def batches(
        self,
        size: int,
        device: torch.device,
        order: Order | None = None,
        augmentation: Augmentation | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Without an order images are centre-cropped; in an ``order`` they get random resized crops and flips."""
        transforms = torchvision("transforms.v2")
        _, height, width = self.input_shape
        if order is not None and augmentation is not None:
            steps = [transforms.RandomResizedCrop((height, width), antialias=True), transforms.RandomHorizontalFlip()]
        else:
            steps = [_ResizeAround(height, width), transforms.CenterCrop((height, width))]
        if order is None:
            index: Any = torch.arange(len(self)).split(size) if len(self) else ()  # split would give one empty batch
        else:
            index = [batch[order.part(len(batch))] for _, batch in order.batches(len(self), size)]
        workers = min(_workers() if self.workers is None else self.workers, len(index))
        loader: Any = torch.utils.data.DataLoader(
            _Streamed(self.files, transforms.Compose([*steps, transforms.PILToTensor()]), order),
            batch_sampler=[part.tolist() for part in index],
            num_workers=workers,
            prefetch_factor=_PREFETCHED if workers else None,
            pin_memory=device.type == "cuda",
        )
        # Bytes travel to the device, a quarter of floats, and are normalised there.
        normalise = Normalisation(MEAN, STD, device)
        for images, labels in loader:
            yield normalise(images), labels.to(device, non_blocking=True)

    def to(self, device: torch.device) -> StreamedSet:
        return self

    def digest(self) -> str:
        """Of names, sizes and labels: to read every image would take hours."""
        found = hashlib.sha256(repr(self.input_shape).encode())
        for path, label in self.files:
            found.update(os.fsencode(f"{path.parent.name}/{path.name} {path.stat().st_size} {label}\n"))
        return found.hexdigest()


def _workers() -> int:
    """One process a core: decoding a JPEG takes milliseconds; the cores are shared by the training processes here."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(_MOST_WORKERS, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


@dataclass(frozen=True)
class _ResizeAround:
    """Resizes an image so that it is 256/224 of the crop along one axis and at least as much along the other.

    For a square crop that is torchvision's Resize of the shorter side, to the pixel.
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


class _Streamed(torch.utils.data.Dataset[tuple[Tensor, int]]):
    def __init__(self, files: _Files, transform: Any, order: Order | None) -> None:
        self.files, self.transform, self.order = files, transform, order

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.files[index]
        if self.order is not None:  # so that crops do not depend on which worker reads the image, or how many there are
            torch.manual_seed(seed_of(Purpose.AUGMENTATION, self.order.seed, self.order.epoch, index))
        return self.transform(_read(path)), label
