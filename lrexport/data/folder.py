"""Image folders: ROOT/train and ROOT/val or ROOT/test, with one folder per class; kept in memory if small, else streamed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lrexport.data.augment import Augmentation
from lrexport.data.images import ArraySet, ImageData, ImageSet
from lrexport.data.reading import Bad, Files, check_few, find_bad, in_threads, try_image
from lrexport.data.streamed import StreamedSet
from lrexport.errors import InputError

_SUFFIXES = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".webp", ".tif", ".tiff"}
_IN_MEMORY_BYTES = 2 << 30
Shape = tuple[int, int, int]


def load_folder(
    source: str, root: Path, input_shape: Shape, in_memory: bool, workers: int | None = None, max_bad: int = 0
) -> ImageData:
    """The images of ``root``, which must have its two parts; up to ``max_bad`` unreadable images are left out.

    Raises InputError naming empty folders, unreadable images, or classes that differ between the two parts.
    """
    if input_shape[0] != 3:
        raise InputError(f"image folders give RGB images; the network takes {input_shape[0]} channels ({input_shape})")
    train_root = root / "train"
    test_root = next(root / name for name in ("val", "test") if (root / name).is_dir())
    classes = _classes(train_root)
    if len(classes) < 2:
        raise InputError(f"{train_root} has {len(classes)} class folder(s); expected at least two")
    other = _classes(test_root)
    if other != classes:
        only = [f"{name} only in {train_root.name}" for name in classes if name not in other]
        only += [f"{name} only in {test_root.name}" for name in other if name not in classes]
        raise InputError(f"the classes of {train_root} and {test_root} differ: {', '.join(only[:10])}")
    listed = {part: _list(part, classes) for part in (train_root, test_root)}
    size = input_shape[0] * input_shape[1] * input_shape[2] * sum(map(len, listed.values()))
    decoded = in_memory and size <= _IN_MEMORY_BYTES
    (train, bad), (test, bad_test) = (
        _decode(files, input_shape) if decoded else _stream(files, input_shape, workers, max_bad)
        for files in listed.values()
    )
    bad = {**bad, **bad_test}
    check_few(bad, max_bad)
    for part, images in zip(listed, (train, test), strict=True):
        _check_classes(part, classes, images)
    augmentation = Augmentation(max(1, input_shape[1] // 8) if decoded else 0, flip=True)
    skipped = tuple(str(path.relative_to(root)) for path in bad)
    return ImageData(source, classes, train, test, augmentation, skipped=skipped)


def _classes(root: Path) -> list[str]:
    return sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _list(root: Path, classes: list[str]) -> Files:
    files: Files = []
    for label, name in enumerate(classes):
        images = sorted(path for path in (root / name).rglob("*") if path.suffix.lower() in _SUFFIXES)
        if not images:
            hint = f"Images are recognised by these suffixes: {', '.join(sorted(_SUFFIXES))}."
            raise InputError(f"class folder {root / name} has no images", hint)
        files += [(path, label) for path in images]
    return files


def _check_classes(root: Path, classes: list[str], images: ImageSet) -> None:
    counts = torch.bincount(images.labels, minlength=len(classes)).tolist()
    for name, count in zip(classes, counts, strict=True):
        if not count:
            raise InputError(f"class folder {root / name} has no readable images", "Replace its images.")


def _stream(files: Files, input_shape: Shape, workers: int | None, max_bad: int) -> tuple[ImageSet, Bad]:
    """A streamed set of the files, and those that cannot be read, which it leaves out if ``max_bad`` allows any.

    In that case every file is read once beforehand, so all processes and all resumed runs see the same images.
    """
    bad = find_bad(files) if max_bad else {}
    return StreamedSet.of([file for file in files if file[0] not in bad], input_shape, workers), bad


def _decode(files: Files, input_shape: Shape) -> tuple[ImageSet, Bad]:
    """Decode every file once: a set of the readable images, and the files that could not be read.

    Images of another size are resized by their shorter side, then centre-cropped.
    """
    _, height, width = input_shape

    def load(path: Path) -> np.ndarray | InputError:
        image = try_image(path)
        if isinstance(image, InputError):
            return image
        if image.size != (width, height):
            scale = max(width / image.width, height / image.height)
            resized = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
            image = image.resize(resized, Image.Resampling.BILINEAR)
            left, top = (image.width - width) // 2, (image.height - height) // 2
            image = image.crop((left, top, left + width, top + height))
        return np.asarray(image)

    images = np.empty((len(files), height, width, 3), np.uint8)
    labels: list[int] = []
    bad: dict[Path, InputError] = {}
    for (path, label), pixels in zip(files, in_threads(load, [path for path, _ in files]), strict=True):
        if isinstance(pixels, InputError):
            bad[path] = pixels
            continue
        images[len(labels)] = pixels
        labels.append(label)
    pixels_of = torch.from_numpy(images[: len(labels)]).permute(0, 3, 1, 2).contiguous()
    return ArraySet(pixels_of, torch.tensor(labels, dtype=torch.int64)), bad
