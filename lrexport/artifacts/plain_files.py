"""Protection against devices, FIFOs and sockets as inputs and outputs, and links to outputs.

Opening a FIFO without a writer blocks forever, and renaming a file over /dev/null removes the device from the machine. So
the kind of a path is checked before it is opened.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from lrexport.errors import DeviceError, InputError

_KINDS = ((stat.S_ISFIFO, "FIFO"), (stat.S_ISSOCK, "socket"), (stat.S_ISCHR, "device"), (stat.S_ISBLK, "device"))
_STDOUT = ("stdout", "1")  # its names in /dev and among a process's open files
_MOST_LINKS = 40  # the limit of Linux


def special(mode: int) -> str | None:
    """The kind of a file with this ``st_mode``; None for a plain file, a folder or a link."""
    return next((kind for test, kind in _KINDS if test(mode)), None)


def check_input(path: Path) -> None:
    """Raise InputError if ``path`` leads to a FIFO, a socket or a device; other errors are left to opening it."""
    try:
        kind = special(path.stat().st_mode)
    except (OSError, ValueError):
        return
    if kind is not None:
        raise InputError(f"{path} is a {kind}; expected a plain file", "Save its content to a file, and give that file.")


def open_input(path: Path) -> BinaryIO:
    """``path`` opened for reading. Raises InputError if it is not a plain file, OSError as ``open`` does."""
    check_input(path)
    # Even if it becomes a FIFO at this moment, opening it must not block.
    stream = open(path, "rb", opener=_without_waiting)  # noqa: SIM115 - the caller closes it
    if (kind := special(os.fstat(stream.fileno()).st_mode)) is not None:
        stream.close()
        raise InputError(f"{path} is a {kind}; expected a plain file")
    return stream


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def without_links(path: str, flags: int, mode: int = 0o666) -> int:
    """An opener that raises OSError if ``path`` is a link, and does not block on a FIFO."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), mode)


def destination(path: Path) -> Path:
    """The file that a write to ``path`` changes: links are followed, as by a shell's ``>``.

    Raises InputError if it is a FIFO, a socket, a device, a folder, or a named stream (/dev/stdout), DeviceError for a
    cycle of links. Nothing is opened.
    """
    end = path
    for _ in range(_MOST_LINKS):
        if _names_a_stream(end):
            hint = "Write to stdout with -." if end.name in _STDOUT else _ELSEWHERE
            raise InputError(f"{_with_end(path, end)} is a device or a stream; expected a plain file to write", hint)
        if not end.is_symlink():
            break
        end = end.parent / os.readlink(end)
    else:
        raise DeviceError(f"cannot write {path}: its links form a cycle", _ELSEWHERE)
    try:
        mode = end.lstat().st_mode
    except (OSError, ValueError):  # it does not exist yet
        return end
    if (kind := "folder" if stat.S_ISDIR(mode) else special(mode)) is not None:
        raise InputError(f"{_with_end(path, end)} is a {kind}; expected a plain file to write", _ELSEWHERE)
    return end


_ELSEWHERE = "Nothing was written. Name a file."


def _names_a_stream(path: Path) -> bool:
    """Whether it is directly in /dev (its subfolders, such as /dev/shm, have files) or among a process's open files."""
    folder = os.path.realpath(path.parent)
    return folder in ("/dev", "/dev/fd") or folder.startswith("/proc/")


def _with_end(path: Path, end: Path) -> str:
    return str(path) if path == end else f"{path}, a link to {end},"
