"""The mark of a folder that lrexport writes in: the names of what it made there, each noted before it is made.

Whatever is not named is somebody else's, whatever it is called. A mark may come from others: names that lrexport never
gives a file (artifacts/run_files.py) mean nothing in it. ``.lrexport.jsonl`` is only added to while a job works, a
JSON object a line: ``{"lrexport": 1}`` first, then ``{"made": NAME}`` and ``{"gone": NAME}``, names relative to the folder
with forward slashes, and ``{"process": TOKEN}``. TOKEN is random, and part of the names of all temporary files of that
process, which so need no lines of their own. A folder of an lrexport that left no mark is known by its record, see
artifacts/unmarked.py.
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
from pathlib import Path

from lrexport.artifacts import files, unmarked
from lrexport.artifacts.json_files import parse_json
from lrexport.artifacts.run_files import MARK, is_ours
from lrexport.errors import InputError

_VERSION = 1
_HEAD, _MADE, _GONE, _PROCESS = "lrexport", "made", "gone", "process"
_MOST_BYTES = 2 << 20  # far beyond what a run notes between two of the times that lines are left out
_MANY_BYTES = 1 << 20  # above which lines that say nothing any more are left out while a job works
_MOST_LINES = 1000  # the same when a job begins

_TOKEN = re.compile(r"[0-9a-f]{16}")

_tokens: dict[int, str] = {}


@dataclass(frozen=True)
class Mark:
    """Names of what lrexport made in a folder and has not removed since, and tokens of the processes that did."""

    names: frozenset[str] = frozenset()
    tokens: frozenset[str] = frozenset()


def token() -> str:
    """This process's own, which a fork of it does not share."""
    return _tokens.setdefault(os.getpid(), secrets.token_hex(8))


def known(folder: Path) -> Mark | None:
    """What lrexport made in ``folder``, by the mark and by the record there; None where neither tells of anything.

    Raises InputError where the mark is a link, no plain file, or of a newer lrexport.
    """
    marked = _read(folder)
    if marked is not None:  # an lrexport that notes nothing may have worked here since
        return Mark(marked.names | unmarked.recorded(folder), marked.tokens)
    names = unmarked.names(folder)
    return Mark(names) if names else None


def is_made(folder: Path, name: str) -> bool:
    """Whether lrexport made the file or folder ``name`` below ``folder``. Raises InputError as :func:`known`."""
    marked = _read(folder)
    if marked is None:
        return name in unmarked.names(folder)
    return name in marked.names or name in unmarked.recorded(folder)


def note(folder: Path, names: Collection[str]) -> None:
    """Name what is about to be made, and this process, where the mark does not yet. Raises DeviceError."""
    marked = _read(folder)
    if marked is None:
        _create(folder, unmarked.names(folder) | {*names})
        return
    lines = [{_MADE: name} for name in sorted({*names} - marked.names)]
    if token() not in marked.tokens:
        lines.append({_PROCESS: token()})
    if lines:
        _append(folder, lines)


def forget(folder: Path, names: Iterable[str]) -> None:
    """What was removed is not lrexport's any more, should a file of that name come to be there."""
    marked = _read(folder)
    lines = [{_GONE: name} for name in sorted(marked.names & {*names})] if marked is not None else []
    if lines:
        _append(folder, lines, sync=False)  # lost, they leave names too many


def tidy(folder: Path) -> None:
    """Remove what was left of writing the mark, and leave out of a long one what is not there; the folder must be held."""
    for path in folder.glob(f".{MARK}.*.tmp"):  # of a process that was killed before its mark was there: it names itself
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
    """For :func:`settle`: the mark's file, None where there is none, and the names of what lrexport made so far."""
    made = known(folder)
    path = folder / MARK
    return path.stat() if path.exists() else None, made.names if made is not None else frozenset()


def settle(folder: Path, file: os.stat_result | None, names: frozenset[str]) -> None:
    """Make the mark what it was :func:`before` a job that made nothing new, so that one that was refused changed nothing."""
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
            f"{path} has {status.st_size:,} bytes; expected at most {_MOST_BYTES:,}, more than lrexport notes of a run",
            "It is damaged or not lrexport's: remove it, and the record says which files are lrexport's.",
        )
    head, *lines = path.read_bytes().decode(errors="replace").splitlines() or [""]
    first = _line(head)
    if _HEAD not in first:
        return None
    if first[_HEAD] != _VERSION:
        raise InputError(f"{path} was made by another lrexport", "Use the lrexport that made it, or a newer one.")
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


def _line(text: str) -> Mapping[str, object]:
    """One object; nothing where a crash left half a line."""
    try:
        value = parse_json(text.encode())
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _create(folder: Path, names: Collection[str]) -> None:
    if os.path.lexists(folder / MARK):
        raise InputError(f"{folder / MARK} is not lrexport's mark of a folder", "Move it away, or choose another folder.")
    files.put(folder / MARK, _temporary(folder), _content(names, {token()}))


def _append(folder: Path, lines: Iterable[Mapping[str, object]], sync: bool = True) -> None:
    path = folder / MARK
    if path.stat().st_size > _MANY_BYTES and (marked := _read(folder)) is not None:
        _rewrite(folder, marked.names, marked.tokens)
    whole = path.read_bytes().endswith(b"\n")  # else a crash left half a line
    files.append_text(path, _text(lines) if whole else f"\n{_text(lines)}", sync)


def _rewrite(folder: Path, names: Collection[str], tokens: Collection[str]) -> None:
    """Leave out of the mark of a folder that is held whatever says nothing any more."""
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
