"""Git LFS pointers: placeholders of files whose content was not fetched."""

from __future__ import annotations

from pathlib import Path

from lrexport.errors import InputError

_HEAD = b"version https://git-lfs.github.com/spec/"  # how every pointer begins (Git LFS specification)


def is_lfs_pointer(path: str | Path) -> bool:
    """Whether a file is a pointer instead of the content."""
    try:
        with open(path, "rb") as stream:
            return stream.read(len(_HEAD)) == _HEAD
    except OSError:
        return False


def refuse_lfs_pointer(path: Path) -> None:
    """Raise InputError if a file is a pointer, with the command that fetches the content."""
    if is_lfs_pointer(path):
        raise InputError(f"{path} is a Git LFS pointer, not the file itself", "Fetch the file: git lfs pull")
