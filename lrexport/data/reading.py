"""Read image files as RGB, and masks as classes, and collect those that cannot be read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from lrexport.artifacts.plain_files import check_input
from lrexport.data.decoding import decode, decode_mask
from lrexport.data.images import first_of
from lrexport.data.preprocessing import Fitting
from lrexport.errors import InputError

Result = TypeVar("Result")
Item = TypeVar("Item")
Pixels = npt.NDArray[np.uint8]
Files = Sequence[tuple[Path, int | Path | None]]  # with their class, or the file of their mask
Bad = Mapping[Path, InputError]  # images that cannot be read, and why


def read_image(path: Path) -> Image.Image:
    """The image as RGB. Raises InputError naming a file that is not an image, is damaged, or is unreasonably large."""
    check_input(path)
    try:
        return decode(path)
    except Exception as error:  # on damaged files Pillow's decoders raise almost anything, even IndexError and struct.error
        raise _unreadable(path, error) from error


def try_image(path: Path) -> Image.Image | InputError:
    """:func:`read_image`, but the error is returned."""
    try:
        return read_image(path)
    except InputError as error:
        return error


def read_mask(path: Path) -> Pixels:
    """The classes of a mask, uint8 (H, W). Raises InputError naming a file that is none, as :func:`read_image`."""
    check_input(path)
    try:
        return decode_mask(path)
    except Exception as error:
        raise _unreadable(path, error, "mask") from error


def read_pair(path: Path, mask: Path) -> tuple[Image.Image, Pixels]:
    """An image and the classes (H, W) of its mask. Raises InputError also if they differ in size."""
    image, classes = read_image(path), read_mask(mask)
    height, width = classes.shape
    if (width, height) != image.size:
        sizes = f"{width} × {height} pixels; its image {path} has {image.width} × {image.height}"
        raise InputError(f"the mask {mask} has {sizes}", "Make both the same size.")
    return image, classes


def try_pair(path: Path, mask: Path, fitting: Fitting) -> tuple[Pixels, Pixels] | InputError:
    """:func:`read_pair` at the network's size, with pixels (H, W, 3), but the error is returned."""
    try:
        image, classes = read_pair(path, mask)
    except InputError as error:
        return error
    return np.array(fitting(image)), np.array(fitting(Image.fromarray(classes), nearest=True))


def find_bad(files: Files) -> Bad:
    """The images that cannot be read, or not with their mask; every file is decoded once to find out."""

    def failure(file: tuple[Path, Any]) -> InputError | None:  # returns no pixels, which would fill the memory
        path, target = file
        try:
            if isinstance(target, Path):
                read_pair(path, target)
            else:
                read_image(path)
        except InputError as error:
            return error
        return None

    failures = zip(files, in_threads(failure, files), strict=True)
    return {path: error for (path, _), error in failures if error is not None}


def in_threads(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """``function`` of each of ``items``, in order, with one thread per core; on an error no further ones are started."""
    pool = ThreadPoolExecutor(cores_here())
    try:
        yield from pool.map(function, items)
    finally:
        pool.shutdown(cancel_futures=True)


def check_few(bad: Bad, most: int) -> None:
    """Raise InputError naming the first unreadable images if there are more than ``most``."""
    if len(bad) <= most:
        return
    first = next(iter(bad.values()))
    if len(bad) == 1:
        raise first
    allowed = f", --max-bad allows {most}" if most else ""
    names = first_of([str(path) for path in bad])
    hint = f"Remove or replace them, or leave them out with --max-bad {len(bad)}. The first error: {first.message}"
    raise InputError(f"{len(bad)} images cannot be read{allowed}: {names}", hint)


def cores_here() -> int:
    """Cores for this process: processes that train together on this machine share its cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def size_of(path: Path) -> int:
    """Bytes of the file. Raises InputError if it cannot be accessed, for example through a broken link."""
    try:
        return path.stat().st_size
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception, what: str = "image") -> InputError:
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    hint = "Remove or replace it; compress and train leave out up to N such images with --max-bad N."
    return InputError(f"cannot read the {what} {path}: {reason}", hint)
