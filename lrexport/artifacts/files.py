"""Plain files: atomic writes, hashes, JSON and JSON lines."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from lrexport.artifacts.plain_files import destination, open_input, without_links
from lrexport.errors import DeviceError, InputError
from lrexport.text import json_text
from lrexport.units import format_bytes

# What a file gets: bytes, or parts of them in their order, which need not be in memory together a second time.
Content = bytes | Sequence[bytes | memoryview]


def write_bytes(path: Path, content: Content) -> None:
    """Write a file that the user named, atomically; a link is followed and kept.

    Temporary file, fsync, rename, fsync of the folder: after a crash at any moment ``path`` has either the old or the new
    content, complete. Raises DeviceError if the disk is full or the folder is not writable, InputError if ``path`` is a
    device, a FIFO or a socket; the temporary file is removed. For files of a run use artifacts/run_folder.py.
    """
    end = destination(path)
    try:
        handle, name = tempfile.mkstemp(dir=end.parent, prefix=f".{end.name}.", suffix=".tmp")
    except OSError as error:
        raise write_failed(path, error) from error
    with open(handle, "wb") as stream:
        # mkstemp creates files with mode 0600, but CI and colleagues must be able to read results.
        os.chmod(name, 0o666 & ~_umask())
        _fill(stream, Path(name), end, content)


def put(path: Path, temporary: Path, content: Content, new: bool = False) -> None:
    """:func:`write_bytes` with the file ``temporary`` in the same folder, which must not exist; no link is followed.

    With ``new`` an existing file is left alone: raises FileExistsError, where the file system has hard links.
    """
    try:
        stream = open(temporary, "xb")  # noqa: SIM115 - closed below
    except OSError as error:
        raise write_failed(path, error) from error
    with stream:
        _fill(stream, temporary, path, content, new)


def _link(temporary: Path, path: Path) -> bool:
    """Give a file another name, which must be new; whether the file system can do that. Raises FileExistsError."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # as on FAT
        return False
    return True


def _fill(stream: BinaryIO, temporary: Path, path: Path, content: Content, new: bool = False) -> None:
    parts = [content] if isinstance(content, bytes) else content
    try:
        for part in parts:
            stream.write(part)
        stream.flush()
        os.fsync(stream.fileno())
        if not new or not _link(temporary, path):
            os.replace(temporary, path)
        sync_folder(path.parent)
    except FileExistsError:
        raise
    except OSError as error:
        temporary.unlink(missing_ok=True)  # before the message reports the free space
        raise write_failed(path, error, sum(memoryview(part).nbytes for part in parts)) from error
    finally:
        temporary.unlink(missing_ok=True)


def as_json(value: Any) -> bytes:
    """Indented JSON as file content, safe to print. Raises ValueError for NaN and infinity, which JSON does not have."""
    return (json_text(value, indent=2) + "\n").encode()


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON, by :func:`as_json` and :func:`write_bytes`."""
    write_bytes(path, as_json(value))


def append_json_line(path: Path, value: dict[str, Any]) -> None:
    """Append one JSON object as a line (log.jsonl)."""
    append_text(path, json_text(value, allow_nan=True) + "\n")


def append_text(path: Path, text: str, sync: bool = False) -> None:
    """Append to a file, or create it, all or nothing; with ``sync`` it is on the disk afterwards.

    ``path`` must not be a link. Raises DeviceError.
    """
    content = text.encode()
    before = path.stat().st_size if path.exists() else 0
    try:
        with open(path, "ab", opener=without_links) as stream:
            stream.write(content)
            if sync:
                stream.flush()
                os.fsync(stream.fileno())
    except OSError as error:
        if path.exists():
            os.truncate(path, before)
        raise write_failed(path, error, len(content)) from error


def check_readable(path: Path) -> None:
    """Raise InputError if ``path`` is missing, a folder, empty or not readable."""
    if path.is_dir():
        raise InputError(f"{path} is a folder; expected a file", "Give the file itself.")
    try:
        with open_input(path) as stream:
            head = stream.read(1)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if not head:
        raise _empty(path)


def read_bytes(path: Path) -> bytes:
    """Content of ``path``. Raises InputError if it is missing, empty, unreadable or not a plain file."""
    try:
        with open_input(path) as stream:
            content = stream.read()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if not content:
        raise _empty(path)
    return content


def _empty(path: Path) -> InputError:
    return InputError(f"empty file: {path}", "Writing it was probably interrupted: create or download it again.")


def sha256(path: Path) -> str:
    """Hex sha256 of a file's content."""
    digest = hashlib.sha256()
    with open_input(path) as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def check_writable(folder: Path) -> None:
    """Raise DeviceError if ``folder`` cannot be made or written in; nothing is written to find out.

    The system is asked about the nearest folder that exists. :func:`make_run_folder` tries it, for what this cannot tell.
    """
    nearest = next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))
    number = 0
    if not nearest.is_dir():
        number = errno.ENOTDIR if nearest != folder else errno.EEXIST
    elif not os.access(nearest, os.W_OK | os.X_OK):
        number = errno.EROFS if os.statvfs(nearest).f_flag & os.ST_RDONLY else errno.EACCES
    if number:
        raise write_failed(folder, OSError(number, os.strerror(number)))


def make_run_folder(path: Path) -> Path:
    """Create ``path`` and check that it is writable, before any work. Raises DeviceError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise write_failed(path, error) from error
    return path


def write_failed(path: Path, error: OSError, size_bytes: int | None = None) -> DeviceError:
    """The error for a failed write to ``path``; ``size_bytes`` is the space that it needs."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        needed = "" if size_bytes is None else f"{format_bytes(size_bytes)} needed, "
        free = format_bytes(shutil.disk_usage(path.parent).free)
        return DeviceError(
            f"disk full while writing {path}: {needed}{free} free",
            "Existing files were kept. Free some space; --resume continues a training.",
        )
    return DeviceError(f"cannot write {path}: {error.strerror}", "Choose a folder that exists and that you may write to.")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sync_folder(folder: Path) -> None:
    """Flush renames in a folder to the disk."""
    if os.name != "posix":  # Windows has no fsync of a folder
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
