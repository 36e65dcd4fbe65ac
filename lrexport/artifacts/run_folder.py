"""Write in the folder of a run or a sweep: only files that lrexport made are replaced or removed; links are not followed.

``name`` is relative to the folder, with a forward slash if it is in one of lrexport's subfolders. All functions raise
UsageError if a file of that name is foreign, InputError if it or its subfolder is a link or not a plain file, DeviceError
if the disk is full or not writable. artifacts/mark.py knows which files are lrexport's. The folder itself may be a link,
because the user named it.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lrexport.artifacts import files, mark
from lrexport.artifacts.plain_files import special
from lrexport.artifacts.run_files import CHECKPOINTS, FOLDERS, MARK, SCRATCH, SWEEP_FOLDERS
from lrexport.errors import InputError, UsageError

_FOLDERS = (*FOLDERS, *SWEEP_FOLDERS)
_SCRATCH = re.compile(rf"{re.escape(SCRATCH)}[a-z0-9_]+")
_TEMPORARY = re.compile(r"\..*\.(?P<token>[0-9a-f]{16})\.tmp", re.DOTALL)
_SHOWN = 10


def check(folder: Path, written: Collection[str], others: Collection[str] = ()) -> None:
    """Check that lrexport may work in ``folder``, before any work; nothing is written.

    No name that will be ``written`` may be foreign. In a folder where lrexport has made nothing yet, this also holds for
    the ``others``, which may be written later.
    """
    files.check_writable(folder)
    if not folder.is_dir():  # making it comes later, with errors of its own
        return
    scratch = [path.name for path in folder.glob(f"{SCRATCH}*") if _SCRATCH.fullmatch(path.name)]
    there = [name for name in (*written, *others, MARK, *scratch) if _is_there(folder / name)]
    # Read after that: another process of a sweep may begin here at the same time, and it notes names before it makes files.
    made = mark.known(folder)
    if made is None:
        _refuse(folder, there)
        return
    for name in (*written, *others):
        refuse_link(folder / name)
    _refuse(folder, [name for name in written if name not in made.names and name in there])
    for name in made.names:
        plain(folder, name)


def plain(folder: Path, name: str) -> Path:
    """The path of ``name``. It may be missing; otherwise it must be a plain file, or a folder if lrexport makes it one."""
    head, _, below = name.partition("/")
    path = folder / name
    if below:
        _check(folder / head, is_folder=True)
    _check(path, is_folder=not below and head in _FOLDERS)
    return path


def read_bytes(folder: Path, name: str) -> bytes:
    """Content of a file of the run. Also raises InputError if it is missing, empty or unreadable."""
    return files.read_bytes(plain(folder, name))


def write_bytes(folder: Path, name: str, content: files.Content) -> None:
    """Write a file atomically: after a crash at any moment it has the old or the new content, complete."""
    path = _for_writing(folder, [name])[0]
    files.put(path, path.with_name(f".{path.name}.{mark.token()}.tmp"), content)


def write_json(folder: Path, name: str, value: Any) -> None:
    """Write indented JSON atomically. Raises ValueError for NaN and infinity, which JSON does not have."""
    write_bytes(folder, name, files.as_json(value))


def append_json_line(folder: Path, name: str, value: dict[str, Any]) -> None:
    """Append one JSON object as a line, all or nothing."""
    path = _for_writing(folder, [name])[0]
    _part_from_others(folder, name)
    files.append_json_line(path, value)


def truncate(folder: Path, name: str, size_bytes: int) -> None:
    """Truncate a file to ``size_bytes`` if it is longer and lrexport made it."""
    path = plain(folder, name)
    if not path.exists() or path.stat().st_size <= size_bytes or not mark.is_made(folder, name):
        return
    _part_from_others(folder, name)
    try:
        os.truncate(path, size_bytes)
    except OSError as error:
        raise files.write_failed(path, error) from error


def make_folder(folder: Path, name: str) -> Path:
    """A folder in the run; created if missing, and checked to be writable."""
    if not folder.is_dir():
        files.make_run_folder(folder)
    return files.make_run_folder(_for_writing(folder, [name])[0])


def move(folder: Path, names: Collection[str], source: Path) -> None:
    """Flush files of ``source`` to the disk and move them into ``folder``, replacing files there; both on one disk."""
    paths = dict(zip(names, _for_writing(folder, names), strict=True))
    try:
        for name in names:
            with open(source / name, "rb+") as stream:
                os.fsync(stream.fileno())
        for name, path in paths.items():
            os.replace(source / name, path)
        files.sync_folder(folder)
    except OSError as error:
        raise files.write_failed(folder, error) from error


def remove(folder: Path, *names: str) -> list[str]:
    """Remove those of the files that lrexport made; returns their names."""
    removed = []
    for name in names:
        path = folder / name
        if os.path.lexists(path) and mark.is_made(folder, name):
            plain(folder, name).unlink(missing_ok=True)
            removed.append(name)
    if removed:
        mark.forget(folder, removed)
    return removed


def made_in(folder: Path, name: str) -> list[str]:
    """Existing files in the subfolder ``name`` that lrexport made, sorted by name."""
    marked = mark.known(folder)
    names = marked.names if marked is not None else frozenset()
    return sorted(each for each in names if each.startswith(f"{name}/") and _is_there(folder / each))


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """A temporary folder in the run; if the process is killed, the next job removes it."""
    mark.note(folder, ())
    path = folder / f"{SCRATCH}{mark.token()}"
    try:
        path.mkdir()
    except OSError as error:
        raise files.write_failed(path, error) from error
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files and folders of killed processes. The caller must hold the lock."""
    made = mark.known(folder)
    tokens = made.tokens if made is not None else frozenset()
    places = [folder] if (folder / CHECKPOINTS).is_symlink() else [folder, folder / CHECKPOINTS]
    for path in (path for place in places for path in place.glob(".*.tmp")):
        temporary = _TEMPORARY.fullmatch(path.name)
        if temporary is not None and temporary["token"] in tokens:
            _remove_file(path)
    for path in folder.glob(f"{SCRATCH}*"):
        if path.name.removeprefix(SCRATCH) in tokens and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)


def clear(folder: Path) -> None:
    """Remove everything that lrexport made in the folder of a run. The caller must hold the lock."""
    made = mark.known(folder)
    if made is None:
        return
    remove_leftovers(folder)
    folders = [name for name in made.names if name in _FOLDERS]
    remove(folder, *sorted(made.names - {*folders}))
    for name in folders:
        with suppress(OSError):  # it contains foreign files
            plain(folder, name).rmdir()
            mark.forget(folder, [name])


def _for_writing(folder: Path, names: Collection[str]) -> list[Path]:
    """The paths of ``names``, after checking that none is foreign and adding them to the mark."""
    paths = [plain(folder, name) for name in names]
    _refuse(folder, [name for name in names if _is_there(folder / name) and not mark.is_made(folder, name)])
    mark.note(folder, names)
    return paths


def _refuse(folder: Path, names: Collection[str]) -> None:
    """Raise UsageError if ``names`` is not empty."""
    if not names:
        return
    shown = [f"{name}/" if (folder / name).is_dir() else name for name in dict.fromkeys(names)]
    more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    raise UsageError(
        f"{folder} has files that lrexport did not write, under names that it uses: {', '.join(shown[:_SHOWN])}{more}",
        "They were not changed. Choose another folder, or move them away.",
    )


def _check(path: Path, is_folder: bool) -> None:
    refuse_link(path)
    try:
        mode = path.lstat().st_mode
    except OSError:
        return
    if stat.S_ISDIR(mode) != is_folder or special(mode):
        what = special(mode) or ("folder" if stat.S_ISDIR(mode) else "file")
        raise InputError(f"{path} is a {what}; expected a {'folder' if is_folder else 'plain file'}", "Move it away.")


def refuse_link(path: Path) -> None:
    """Raise InputError if a path inside a run is a symbolic link."""
    if path.is_symlink():
        raise InputError(
            f"{path} is a symbolic link; lrexport does not follow links inside a run",
            "Replace it with the file that it points to, or copy the run with cp -rL.",
        )


def _is_there(path: Path) -> bool:
    return os.path.lexists(path)


def _part_from_others(folder: Path, name: str) -> None:
    """Replace a file that has further hard links by a copy, so that only the run's file changes."""
    path = folder / name
    if path.exists() and path.stat().st_nlink > 1:
        write_bytes(folder, name, path.read_bytes())


def _remove_file(path: Path) -> None:
    if path.is_file() and not path.is_symlink():
        path.unlink(missing_ok=True)
