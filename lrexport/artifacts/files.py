"""Plain files: atomic writes, hashes, JSON and JSON lines."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from lrexport.errors import DeviceError, InputError
from lrexport.escape import json_text
from lrexport.units import format_bytes

# As tempfile makes them: eight of its own characters.
_RANDOM = re.compile(r"[a-z0-9_]{8}")
_TEMPORARY = re.compile(rf"\.(?P<name>.+)\.{_RANDOM.pattern}\.tmp", re.DOTALL)


def write_atomically(path: Path, write: Callable[[Path], object], size_bytes: int | None = None) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then rename it over ``path``.

    Temp file, fsync, rename, fsync of the folder: after a crash at any moment ``path`` holds either the old content or
    the new, whole. Raises DeviceError when the disk is full, with ``size_bytes`` as what is needed, or the folder cannot be
    written; the temporary file is gone.
    """
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    except OSError as error:
        raise _write_failed(path, error) from error
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with open(temporary, "rb+") as stream:
            os.fsync(stream.fileno())
        # mkstemp makes 0600; a result that CI or a colleague reads gets the usual mode of a new file.
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)  # before the free space is looked at
        raise _write_failed(path, error, size_bytes) from error
    finally:
        temporary.unlink(missing_ok=True)


def move(names: Collection[str], source: Path, folder: Path) -> None:
    """Synchronise files of ``source`` and rename them over those of ``folder``, on the same disk. Raises DeviceError."""
    try:
        for name in names:
            with open(source / name, "rb+") as stream:
                os.fsync(stream.fileno())
        for name in names:
            os.replace(source / name, folder / name)
        _sync_folder(folder)
    except OSError as error:
        raise _write_failed(folder, error) from error


def remove_temporaries(folder: Path, written: Callable[[str], bool]) -> None:
    """Remove what processes that were killed left in ``folder`` of writing files whose name is ``written``, and no more."""
    for path in folder.glob(".*.tmp"):
        match = _TEMPORARY.fullmatch(path.name)
        if match and written(match["name"]) and path.is_file() and not path.is_symlink():
            path.unlink(missing_ok=True)


def remove_scratch(folder: Path, prefix: str) -> None:
    """Remove the temporary folders with that prefix that processes that were killed left in ``folder``."""
    for path in folder.glob(f"{prefix}*"):
        if _RANDOM.fullmatch(path.name.removeprefix(prefix)) and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` atomically."""
    write_atomically(path, lambda temporary: temporary.write_bytes(content), len(content))


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically; NaN and infinity are refused, as JSON has neither. It can be printed harmlessly."""
    write_bytes(path, (json_text(value, indent=2) + "\n").encode())


def append_json_line(path: Path, value: dict[str, Any]) -> None:
    """Append one JSON object as a line (log.jsonl)."""
    append_text(path, json_text(value, allow_nan=True) + "\n")


def append_text(path: Path, text: str) -> None:
    """Append to a file, which need not be there yet, all or nothing. Raises DeviceError."""
    content = text.encode()
    before = path.stat().st_size if path.exists() else 0
    try:
        with open(path, "ab") as stream:
            stream.write(content)
    except OSError as error:
        if path.exists():
            os.truncate(path, before)
        raise _write_failed(path, error, len(content)) from error


def truncate(path: Path, size_bytes: int) -> None:
    """Cut a file that is longer than ``size_bytes``. Raises DeviceError."""
    try:
        if path.exists() and path.stat().st_size > size_bytes:
            os.truncate(path, size_bytes)
    except OSError as error:
        raise _write_failed(path, error) from error


def check_readable(path: Path) -> None:
    """Raise InputError where ``path`` is absent, a folder or empty, or may not be read."""
    if path.is_dir():
        raise InputError(f"{path} is a folder", "Give the file itself.")
    try:
        with open(path, "rb") as stream:
            head = stream.read(1)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if not head:
        raise _empty(path)


def read_bytes(path: Path) -> bytes:
    """Content of ``path``. Raises InputError when it is absent, empty or unreadable."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if not content:
        raise _empty(path)
    return content


def _empty(path: Path) -> InputError:
    return InputError(f"empty file: {path}", "It was probably not written to the end; make or fetch it again.")


def sha256(path: Path) -> str:
    """Hex sha256 of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def make_run_folder(path: Path) -> Path:
    """Create ``path`` and prove that it can be written, before any work is done. Raises DeviceError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise _write_failed(path, error) from error
    return path


def _write_failed(path: Path, error: OSError, size_bytes: int | None = None) -> DeviceError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        needed = "" if size_bytes is None else f"{format_bytes(size_bytes)} needed, "
        free = format_bytes(shutil.disk_usage(path.parent).free)
        return DeviceError(
            f"disk full while writing {path}: {needed}{free} free",
            "What was there before was kept. Make room; training then goes on with --resume.",
        )
    return DeviceError(
        f"cannot write {path}: {error.strerror}", "Choose a folder that is there and that this user may write."
    )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # Windows has no fsync of a folder
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
