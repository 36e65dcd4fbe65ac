"""``images:ROOT``, pictures without classes, and ``masks:ROOT``, pictures with a mask each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lrexport.data.augment import IGNORED, Augmentation
from lrexport.data.images import ImageData, first_of, parted
from lrexport.data.picture_sets import SUFFIX_HINT, Shape, fits_in_memory, picture_set, pictures_below
from lrexport.data.preprocessing import Preprocessing
from lrexport.data.reading import Files, check_few, in_threads, read_mask
from lrexport.data.sources import TEST_FOLDERS
from lrexport.data.targets import FIDELITY, SEGMENTATION
from lrexport.errors import InputError
from lrexport.text import number_of

_MASKS_HINT = (
    "ROOT/images and ROOT/masks have files of the same names before the suffix; so do those of ROOT/train and ROOT/val."
)


def load_pictures(
    source: str,
    root: Path,
    input_shape: Shape,
    with_masks: bool,
    workers: int | None,
    max_bad: int,
    asked: Mapping[str, Any],
    given: Mapping[str, Any] | None,
) -> ImageData:
    """The pictures below ``root``, in ``train`` and ``val`` or ``test`` if it has these, else every fifth is a test picture.

    Up to ``max_bad`` that cannot be read are left out. ``asked`` and ``given`` are those of :meth:`Preprocessing.of`. Raises
    InputError naming what is missing, unreadable or of another size.
    """
    preprocessing = _preprocessing(input_shape, asked, given)
    listing = _pairs if with_masks else _pictures
    parts = list(_parts(root))
    if len(parts) == 2:
        listed: list[Files] = [listing(part) for part in parts]
    else:
        files = listing(root)
        listed = [[files[place] for place in index.tolist()] for index in parted(len(files), source)]
    decoded = fits_in_memory(sum(map(len, listed)), preprocessing)
    (train, bad), (test, bad_test) = (
        picture_set(files, preprocessing, input_shape[0], decoded, workers, max_bad) for files in listed
    )
    bad = {**bad, **bad_test}
    check_few(bad, max_bad)
    for name, part in (("train", train), ("test", test)):
        if not len(part):
            raise InputError(f"{source} has no readable pictures in {name}", "Replace its pictures.")
    height = input_shape[1]
    done = preprocessing
    return ImageData(
        source,
        _classes(source, [file for files in listed for file in files if file[0] not in bad]) if with_masks else (),
        train,
        test,
        Augmentation(max(1, height // 8) if decoded or with_masks else 0, flip=True),
        done.mean,
        done.std,
        tuple(str(path.relative_to(root)) for path in bad),
        done,
        SEGMENTATION if with_masks else FIDELITY,
    )


def _preprocessing(shape: Shape, asked: Mapping[str, Any], given: Mapping[str, Any] | None) -> Preprocessing:
    """That of pictures without an order of their own: a network of one channel gets grey ones. Raises InputError."""
    preprocessing = Preprocessing.of(shape, asked, given)
    if shape[0] != (1 if preprocessing.channels == "grey" else 3):
        raise InputError(
            f"pictures are given as {preprocessing.channels.upper()}; the network takes {shape[0]} channels ({shape})",
            "Give --channel-order rgb or bgr for 3 channels, grey for one; use arrays:FILE.npz for others.",
        )
    return preprocessing


def _parts(root: Path) -> Iterator[Path]:
    """The folders ``train`` and ``val`` or ``test``, if both are there."""
    test = next((root / name for name in TEST_FOLDERS if (root / name).is_dir()), None)
    if (root / "train").is_dir() and test is not None:
        yield from (root / "train", test)


def _pictures(root: Path) -> Files:
    files = pictures_below(root)
    if not files:
        raise InputError(f"no pictures below {root}", SUFFIX_HINT)
    return [(path, None) for path in files]


def _pairs(root: Path) -> Files:
    """Each picture below ``root/images`` with the mask of its name below ``root/masks``."""
    images, masks = (_by_name(root / name) for name in ("images", "masks"))
    for here, those, what in ((images, masks, "mask"), (masks, images, "image")):
        lonely = [str(path) for name, path in here.items() if name not in those]
        if lonely:
            other = "image" if what == "mask" else "mask"
            raise InputError(f"{number_of(len(lonely), other)} without {what}: {first_of(lonely)}", _MASKS_HINT)
    return [(path, masks[name]) for name, path in images.items()]


def _by_name(root: Path) -> dict[Path, Path]:
    """Pictures by their place below ``root``, without the suffix."""
    if not root.is_dir():
        raise InputError(f"folder {root} does not exist", _MASKS_HINT)
    files: dict[Path, Path] = {}
    for path in pictures_below(root):
        name = path.relative_to(root).with_suffix("")
        if name in files:
            raise InputError(f"two files of one name: {files[name]} and {path}", "Their masks could not be told apart.")
        files[name] = path
    if not files:
        raise InputError(f"no pictures below {root}", SUFFIX_HINT)
    return files


def _classes(source: str, files: Files) -> list[str]:
    """Names of the classes in all masks: their numbers from 0. Raises InputError for masks without numbers of classes."""
    masks = [target for _, target in files if isinstance(target, Path)]

    def values(path: Path) -> Any:
        return np.bincount(read_mask(path).reshape(-1), minlength=IGNORED + 1) > 0

    used = np.zeros(IGNORED + 1, bool)
    for each in in_threads(values, masks):
        used |= each
    numbers = np.flatnonzero(used[:IGNORED])
    if not len(numbers) or (len(numbers) == 1 and used[IGNORED]):
        shown = ", ".join(map(str, np.flatnonzero(used)))
        raise InputError(
            f"the masks of {source} have only the values {shown}, of which {IGNORED} is ignored; "
            "expected the number of a class in each pixel",
            "Write 0 for the first class, 1 for the second, and so on.",
        )
    return [str(number) for number in range(int(numbers[-1]) + 1)]
