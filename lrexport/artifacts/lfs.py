"""Pointers that Git LFS leaves where a file itself was not fetched."""

from __future__ import annotations

from pathlib import Path

from lrexport.errors import InputError

_HEAD = b"version https://git-lfs.github.com/spec/"  # of every pointer, by Git LFS's specification


def is_lfs_pointer(path: str | Path) -> bool:
    """Whether a file holds a pointer instead of its content."""
    try:
        with open(path, "rb") as stream:
            return stream.read(len(_HEAD)) == _HEAD
    except OSError:
        return False


def refuse_lfs_pointer(path: Path) -> None:
    """Raise InputError, with what fetches the content, where a file holds a pointer."""
    if is_lfs_pointer(path):
        raise InputError(f"{path} is a Git LFS pointer, not the file itself", "Fetch what it points to: git lfs pull")
