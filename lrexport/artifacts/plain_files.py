"""Devices, FIFOs and sockets: never waited for as an input, never replaced as an output; and links to outputs.

Opening a FIFO that nobody writes to does not return, and renaming a file over /dev/null takes the device away from the
whole machine. So what a path is gets looked at before it is opened.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from lrexport.errors import DeviceError, InputError

_KINDS = ((stat.S_ISFIFO, "FIFO"), (stat.S_ISSOCK, "socket"), (stat.S_ISCHR, "device"), (stat.S_ISBLK, "device"))
_STDOUT = ("stdout", "1")  # in /dev, and among a process's open files
_MOST_LINKS = 40  # as Linux follows


def special(mode: int) -> str | None:
    """What a file with that ``st_mode`` is where it is neither a plain file, nor a folder, nor a link."""
    return next((kind for test, kind in _KINDS if test(mode)), None)


def check_input(path: Path) -> None:
    """Raise InputError where ``path`` leads to a FIFO, a socket or a device; whatever else is wrong, opening it says."""
    try:
        kind = special(path.stat().st_mode)
    except (OSError, ValueError):
        return
    if kind is not None:
        raise InputError(f"{path} is a {kind}; expected a plain file", "Save what it gives to a file, and name that file.")


def open_input(path: Path) -> BinaryIO:
    """``path`` for reading. Raises InputError where it is not a plain file, OSError as ``open`` does."""
    check_input(path)
    # Should it become a FIFO just now, opening it must not wait.
    stream = open(path, "rb", opener=_without_waiting)  # noqa: SIM115 - the caller's
    if (kind := special(os.fstat(stream.fileno()).st_mode)) is not None:
        stream.close()
        raise InputError(f"{path} is a {kind}; expected a plain file")
    return stream


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def without_links(path: str, flags: int, mode: int = 0o666) -> int:
    """An opener that fails with OSError where ``path`` is a link, and waits for nobody where it is a FIFO."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), mode)


def destination(path: Path) -> Path:
    """The file that writing to ``path`` writes: that which a link leads to, as a shell's ``>`` does.

    Raises InputError where that is a FIFO, a socket, a device, a folder, or a stream by its name (/dev/stdout), DeviceError
    for links in a circle. Nothing is opened.
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
        raise DeviceError(f"cannot write {path}: its links lead in a circle", _ELSEWHERE)
    try:
        mode = end.lstat().st_mode
    except (OSError, ValueError):  # it is to be made
        return end
    if (kind := "folder" if stat.S_ISDIR(mode) else special(mode)) is not None:
        raise InputError(f"{_with_end(path, end)} is a {kind}; expected a plain file to write", _ELSEWHERE)
    return end


_ELSEWHERE = "Nothing was written. Name a file."


def _names_a_stream(path: Path) -> bool:
    """Whether it is in /dev itself (below it are places for files, /dev/shm) or among the open files of a process."""
    folder = os.path.realpath(path.parent)
    return folder in ("/dev", "/dev/fd") or folder.startswith("/proc/")


def _with_end(path: Path, end: Path) -> str:
    return str(path) if path == end else f"{path}, a link to {end},"
