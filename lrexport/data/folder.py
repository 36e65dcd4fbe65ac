"""Image folders: ROOT/train and ROOT/val or ROOT/test, with one folder per class; kept in memory if small, else streamed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lrexport.data.augment import Augmentation
from lrexport.data.images import ImageData, ImageSet
from lrexport.data.picture_sets import SUFFIX_HINT, Shape, fits_in_memory, for_pictures, picture_set, pictures_below
from lrexport.data.reading import Files, check_few
from lrexport.errors import InputError


def load_folder(
    source: str,
    root: Path,
    input_shape: Shape,
    in_memory: bool,
    workers: int | None = None,
    max_bad: int = 0,
    asked: Mapping[str, Any] | None = None,
    given: Mapping[str, Any] | None = None,
) -> ImageData:
    """The images of ``root``, which must have its two parts; up to ``max_bad`` unreadable images are left out.

    ``asked`` and ``given`` are those of :meth:`Preprocessing.of`. Raises InputError naming empty folders, unreadable images,
    or classes that differ between the two parts.
    """
    preprocessing = for_pictures(input_shape, asked or {}, given)
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
    decoded = in_memory and fits_in_memory(sum(map(len, listed.values())), preprocessing)
    (train, bad), (test, bad_test) = (
        picture_set(files, preprocessing, input_shape[0], decoded, workers, max_bad) for files in listed.values()
    )
    bad = {**bad, **bad_test}
    check_few(bad, max_bad)
    for part, images in zip(listed, (train, test), strict=True):
        _check_classes(part, classes, images)
    augmentation = Augmentation(max(1, input_shape[1] // 8) if decoded else 0, flip=True)
    skipped = tuple(str(path.relative_to(root)) for path in bad)
    done = preprocessing
    return ImageData(source, classes, train, test, augmentation, done.mean, done.std, skipped, done)


def _classes(root: Path) -> list[str]:
    return sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _list(root: Path, classes: list[str]) -> Files:
    files: list[tuple[Path, int]] = []
    for label, name in enumerate(classes):
        images = pictures_below(root / name)
        if not images:
            raise InputError(f"class folder {root / name} has no images", SUFFIX_HINT)
        files += [(path, label) for path in images]
    return files


def _check_classes(root: Path, classes: list[str], images: ImageSet) -> None:
    assert images.labels is not None
    counts = torch.bincount(images.labels, minlength=len(classes)).tolist()
    for name, count in zip(classes, counts, strict=True):
        if not count:
            raise InputError(f"class folder {root / name} has no readable images", "Replace its images.")
