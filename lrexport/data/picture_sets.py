"""Sets of picture files with their classes, masks or nothing: decoded into memory if they are few, else streamed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lrexport.data.images import ArraySet, ImageSet
from lrexport.data.preprocessing import Fitting, Preprocessing
from lrexport.data.reading import Bad, Files, Pixels, find_bad, in_threads, try_image, try_pair
from lrexport.data.streamed import StreamedSet
from lrexport.errors import InputError

Shape = tuple[int, int, int]
_SUFFIXES = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".webp", ".tif", ".tiff"}
SUFFIX_HINT = f"Images are recognised by these suffixes: {', '.join(sorted(_SUFFIXES))}."
_IN_MEMORY_BYTES = 2 << 30


def for_pictures(shape: Shape, asked: Mapping[str, Any], given: Mapping[str, Any] | None) -> Preprocessing:
    """The preprocessing of RGB files for a network of ``shape``. Raises InputError unless channels and order fit."""
    preprocessing = Preprocessing.of(shape, asked, given)
    channels = 1 if preprocessing.channels == "grey" else 3
    if shape[0] != channels or (shape[0] == 1 and asked.get("channels") is None and (given or {}).get("channels") is None):
        raise InputError(
            f"image folders give RGB images; the network takes {shape[0]} channels ({shape})",
            "Give --channel-order grey to make them grey." if shape[0] == 1 else None,
        )
    return preprocessing


def pictures_below(root: Path) -> list[Path]:
    """The picture files below a folder, at any depth, in their order."""
    return sorted(path for path in root.rglob("*") if path.suffix.lower() in _SUFFIXES)


def fits_in_memory(count: int, preprocessing: Preprocessing) -> bool:
    """Whether so many pictures are kept in memory."""
    assert preprocessing.size is not None
    height, width = preprocessing.size
    return 3 * height * width * count <= _IN_MEMORY_BYTES


def picture_set(
    files: Files, preprocessing: Preprocessing, channels: int, decoded: bool, workers: int | None, max_bad: int
) -> tuple[ImageSet, Bad]:
    """A set of the readable files, in memory if ``decoded``, and those that cannot be read.

    A streamed set leaves them out if ``max_bad`` allows any: then every file is read once beforehand, so all processes and
    all resumed runs see the same images.
    """
    if decoded:
        return _decode(files, preprocessing)
    bad = find_bad(files) if max_bad else {}
    kept = [(path, target) for path, target in files if path not in bad]
    return StreamedSet.of(kept, preprocessing, channels, workers), bad


def _decode(files: Files, preprocessing: Preprocessing) -> tuple[ImageSet, Bad]:
    """Decode every file once. Images of another size are resized by their shorter side, then centre-cropped."""
    assert preprocessing.size is not None
    fitting = Fitting(preprocessing)
    has_masks = bool(files) and isinstance(files[0][1], Path)

    def load(file: tuple[Path, Any]) -> tuple[Pixels, Pixels | None] | InputError:
        path, target = file
        if isinstance(target, Path):
            return try_pair(path, target, fitting)
        image = try_image(path)
        return image if isinstance(image, InputError) else (np.asarray(fitting(image)), None)

    images = np.empty((len(files), *preprocessing.size, 3), np.uint8)
    masks = np.empty((len(files), *preprocessing.size), np.uint8) if has_masks else None
    labels: list[int] = []
    bad: dict[Path, InputError] = {}
    count = 0
    for (path, target), loaded in zip(files, in_threads(load, files), strict=True):
        if isinstance(loaded, InputError):
            bad[path] = loaded
            continue
        images[count] = loaded[0]
        if masks is not None and loaded[1] is not None:
            masks[count] = loaded[1]
        if isinstance(target, int):
            labels.append(target)
        count += 1
    pixels = torch.from_numpy(images[:count]).permute(0, 3, 1, 2).contiguous()
    has_classes = not files or isinstance(files[0][1], int)
    classes = torch.tensor(labels, dtype=torch.int64) if has_classes else None
    return ArraySet.of(pixels, classes, preprocessing, None if masks is None else torch.from_numpy(masks[:count])), bad
