"""Read image files as RGB, and collect those that cannot be read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from PIL import Image

from lrexport.artifacts.plain_files import check_input
from lrexport.data.decoding import decode
from lrexport.data.images import first_of
from lrexport.errors import InputError

Result = TypeVar("Result")
Files = list[tuple[Path, int]]  # with their labels
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


def find_bad(files: Files) -> Bad:
    """The files that cannot be read; every file is decoded once to find out."""

    def failure(path: Path) -> InputError | None:  # returns no pixels, which would fill the memory
        image = try_image(path)
        return image if isinstance(image, InputError) else None

    paths = [path for path, _ in files]
    return {path: error for path, error in zip(paths, in_threads(failure, paths), strict=True) if error is not None}


def in_threads(function: Callable[[Path], Result], paths: Sequence[Path]) -> Iterator[Result]:
    """``function`` of each of ``paths``, in order, with one thread per core; on an error no further ones are started."""
    pool = ThreadPoolExecutor(cores_here())
    try:
        yield from pool.map(function, paths)
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


def _unreadable(path: Path, error: Exception) -> InputError:
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    hint = "Remove or replace it; compress and train leave out up to N such images with --max-bad N."
    return InputError(f"cannot read the image {path}: {reason}", hint)
