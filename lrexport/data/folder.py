"""Image folders: ROOT/train and ROOT/val or ROOT/test, one folder a class; in memory when small, streamed otherwise."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lrexport.data.augment import Augmentation
from lrexport.data.images import ArraySet, ImageData, ImageSet
from lrexport.data.reading import Files, read_image
from lrexport.data.streamed import StreamedSet
from lrexport.errors import InputError

_SUFFIXES = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".webp", ".tif", ".tiff"}
_IN_MEMORY_BYTES = 2 << 30
Shape = tuple[int, int, int]


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


def _list(root: Path, classes: list[str]) -> Files:
    found: Files = []
    for label, name in enumerate(classes):
        images = sorted(path for path in (root / name).rglob("*") if path.suffix.lower() in _SUFFIXES)
        if not images:
            raise InputError(f"class folder {root / name} has no images", f"Known endings: {', '.join(sorted(_SUFFIXES))}")
        found += [(path, label) for path in images]
    return found


def _decode(files: Files, input_shape: Shape) -> ArraySet:
    """Decode every file once; an image of another size has its shorter side resized, then the centre cropped."""
    _, height, width = input_shape

    def load(path: Path) -> np.ndarray:
        image = read_image(path)
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
