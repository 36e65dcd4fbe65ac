"""The mark of a folder that lrexport writes in: the names of its files there, each noted before the file is created.

All other files are foreign, whatever their names. A mark can itself be foreign, so names that lrexport never uses
(artifacts/run_files.py) are ignored. ``.lrexport.jsonl`` has one JSON object per line, and a job only appends to it: first
``{"lrexport": 1}``, then ``{"made": NAME}`` and ``{"gone": NAME}``, with names relative to the folder and forward slashes,
and ``{"process": TOKEN}``. TOKEN is random and part of the names of all temporary files of that process, so these need no
lines. Versions of lrexport without marks are recognised by the record: artifacts/unmarked.py.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import stat
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from lrexport.artifacts import files, unmarked
from lrexport.artifacts.json_files import parse_json
from lrexport.artifacts.run_files import MARK, is_ours
from lrexport.errors import InputError

_VERSION = 1
_HEAD, _MADE, _GONE, _PROCESS = "lrexport", "made", "gone", "process"
_MOST_BYTES = 2 << 20  # far more than a run appends before obsolete lines are removed
_MANY_BYTES = 1 << 20  # size at which a working job removes obsolete lines
_MOST_LINES = 1000  # number of lines at which a starting job removes obsolete lines

_TOKEN = re.compile(r"[0-9a-f]{16}")

_tokens: dict[int, str] = {}


@dataclass(frozen=True)
class Mark:
    """Names that lrexport made in a folder and has not removed since, and the tokens of its processes."""

    names: frozenset[str] = frozenset()
    tokens: frozenset[str] = frozenset()


def token() -> str:
    """The token of this process; a fork has another."""
    return _tokens.setdefault(os.getpid(), secrets.token_hex(8))


def known(folder: Path) -> Mark | None:
    """What lrexport made in ``folder``, according to the mark and the record; None if neither names anything.

    Raises InputError if the mark is a link, not a plain file, or of a newer lrexport.
    """
    marked = _read(folder)
    if marked is not None:  # an older lrexport, which writes no marks, may have worked here since
        return Mark(marked.names | unmarked.recorded(folder), marked.tokens)
    names = unmarked.names(folder)
    return Mark(names) if names else None


def is_made(folder: Path, name: str) -> bool:
    """Whether lrexport made the file or folder ``name`` in ``folder``. Raises InputError as :func:`known`."""
    marked = _read(folder)
    if marked is None:
        return name in unmarked.names(folder)
    return name in marked.names or name in unmarked.recorded(folder)


def note(folder: Path, names: Collection[str]) -> None:
    """Add names that are about to be made, and this process, to the mark. Raises DeviceError."""
    marked = _read(folder)
    if marked is None:
        try:
            _create(folder, unmarked.names(folder) | {*names})
        except FileExistsError:  # another process made it in the meantime, or it is foreign
            if _read(folder) is None:
                raise InputError(
                    f"{folder / MARK} was not written by lrexport", "Move it away, or choose another folder."
                ) from None
            note(folder, names)
        return
    lines = [{_MADE: name} for name in sorted({*names} - marked.names)]
    if token() not in marked.tokens:
        lines.append({_PROCESS: token()})
    if lines:
        _append(folder, lines)


def forget(folder: Path, names: Iterable[str]) -> None:
    """Remove ``names`` from the mark, because a later file of that name may be foreign."""
    marked = _read(folder)
    lines = [{_GONE: name} for name in sorted(marked.names & {*names})] if marked is not None else []
    if lines:
        _append(folder, lines, sync=False)  # if a crash loses them, only obsolete names remain


def tidy(folder: Path) -> None:
    """Remove leftovers of writing the mark, and names without files from a long one. The caller must hold the lock."""
    for path in folder.glob(f".{MARK}.*.tmp"):  # of a process killed before its mark existed; the file has its token
        own = _text([{_PROCESS: path.name.removeprefix(f".{MARK}.").removesuffix(".tmp")}]).encode()
        if (
            not path.is_symlink()
            and path.is_file()
            and path.stat().st_size < _MOST_BYTES
            and path.read_bytes().endswith(own)
        ):
            path.unlink()
    marked = _read(folder)
    if marked is None or (folder / MARK).read_bytes().count(b"\n") < _MOST_LINES:
        return
    note(folder, ())
    _rewrite(folder, [name for name in marked.names if os.path.lexists(folder / name)], marked.tokens)


def before(folder: Path) -> tuple[os.stat_result | None, frozenset[str]]:
    """For :func:`settle`: the status of the mark's file, None if it does not exist, and the names that lrexport made."""
    made = known(folder)
    path = folder / MARK
    return path.stat() if path.exists() else None, made.names if made is not None else frozenset()


def settle(folder: Path, file: os.stat_result | None, names: frozenset[str]) -> None:
    """Restore the mark to its state :func:`before` a job that made nothing, so a refused job leaves no trace."""
    marked = _read(folder)
    if marked is None:
        return
    if not any(os.path.lexists(folder / name) for name in marked.names) or (file is None and marked.names == names):
        (folder / MARK).unlink()
    elif file is not None and marked.names == names and os.path.samestat(file, (folder / MARK).stat()):
        os.truncate(folder / MARK, file.st_size)


def _read(folder: Path) -> Mark | None:
    path = folder / MARK
    try:
        status = path.lstat()
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path} is not a plain file", "Remove it, or choose another folder.")
    if status.st_size > _MOST_BYTES:
        raise InputError(
            f"{path} has {status.st_size:,} bytes; expected at most {_MOST_BYTES:,}",
            "It is damaged or foreign: remove it. The record then says which files are lrexport's.",
        )
    head, *lines = path.read_bytes().decode(errors="replace").splitlines() or [""]
    first = _line(head)
    if _HEAD not in first:
        return None
    if first[_HEAD] != _VERSION:
        raise InputError(
            f"{path} was written by another version of lrexport", "Use the version that wrote it, or a newer one."
        )
    names: set[str] = set()
    tokens: set[str] = set()
    for line in map(_line, lines):
        for key, value in line.items():
            if not isinstance(value, str):
                continue
            if key == _MADE and is_ours(value):
                names.add(value)
            elif key == _GONE:
                names.discard(value)
            elif key == _PROCESS and _TOKEN.fullmatch(value):
                tokens.add(value)
    return Mark(frozenset(names), frozenset(tokens))


@lru_cache(maxsize=1 << 14)  # a job reads the mark before each file that it writes
def _line(text: str) -> Mapping[str, object]:
    """The object on one line; empty if a crash left half a line."""
    try:
        value = parse_json(text.encode())
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _create(folder: Path, names: Collection[str]) -> None:
    """Write a new mark. Raises FileExistsError if there is a file of its name."""
    if os.path.lexists(folder / MARK):
        raise FileExistsError(folder / MARK)
    files.put(folder / MARK, _temporary(folder), _content(names, {token()}), new=True)


def _append(folder: Path, lines: Iterable[Mapping[str, object]], sync: bool = True) -> None:
    path = folder / MARK
    if path.stat().st_size > _MANY_BYTES and (marked := _read(folder)) is not None:
        _rewrite(folder, marked.names, marked.tokens)
    is_complete = path.read_bytes().endswith(b"\n")  # otherwise a crash left half a line
    files.append_text(path, _text(lines) if is_complete else f"\n{_text(lines)}", sync)


def _rewrite(folder: Path, names: Collection[str], tokens: Collection[str]) -> None:
    """Write the mark without obsolete lines. The caller must hold the lock."""
    files.put(folder / MARK, _temporary(folder), _content(names, {*tokens, token()}))


def _temporary(folder: Path) -> Path:
    path = folder / f".{MARK}.{token()}.tmp"
    with suppress(FileNotFoundError):
        path.unlink()
    return path


def _content(names: Collection[str], tokens: Collection[str]) -> bytes:
    made = [{_MADE: name} for name in sorted(names)]
    return _text([{_HEAD: _VERSION}, *made, *({_PROCESS: each} for each in sorted(tokens))]).encode()


def _text(lines: Iterable[Mapping[str, object]]) -> str:
    return "".join(f"{json.dumps(line)}\n" for line in lines)
