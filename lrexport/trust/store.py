"""Code that this user agreed to run on this machine: a file of JSON lines that nobody else can write."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from pathlib import Path

from lrexport.artifacts.plain_files import without_links

# Replaces the default folder, for example in tests.
FOLDER_VARIABLE = "LREXPORT_STATE"
_FILE = "trusted-code.jsonl"
_MOST_BYTES = 8 << 20


def folder() -> Path | None:
    """``$LREXPORT_STATE``, else ``lrexport`` in ``$XDG_STATE_HOME`` or ~/.local/state; None without a home folder."""
    if chosen := os.environ.get(FOLDER_VARIABLE):
        return Path(chosen)
    state = os.environ.get("XDG_STATE_HOME", "")
    if os.path.isabs(state):  # the XDG specification ignores relative paths
        return Path(state) / "lrexport"
    try:
        return Path.home() / ".local" / "state" / "lrexport"
    except RuntimeError:
        return None


def knows(key: str) -> bool:
    """Whether ``key`` was stored. A file that others can write, or that cannot be read, is ignored."""
    return key in _read()


def remember(key: str, path: str, file: str) -> None:
    """Store ``key``, with ``path`` and ``file`` for human readers. A file that cannot be written is skipped."""
    place = folder()
    if place is None or knows(key):
        return
    line = json.dumps({"key": key, "path": path, "file": file}) + "\n"
    with contextlib.suppress(OSError, ValueError):
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = without_links(str(place / _FILE), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            if _is_own(os.fstat(descriptor)):
                os.write(descriptor, line.encode())  # in one call, because several processes may append
        finally:
            os.close(descriptor)


def _read() -> set[str]:
    place = folder()
    if place is None:
        return set()
    keys = set()
    try:
        with open(place / _FILE, "rb", opener=without_links) as stream:
            if not _is_own(os.fstat(stream.fileno())):
                return set()
            lines = stream.read(_MOST_BYTES).decode(errors="replace").splitlines()
    except (OSError, ValueError):
        return set()
    for line in lines:
        with contextlib.suppress(ValueError, LookupError, TypeError, RecursionError):
            keys.add(str(json.loads(line)["key"]))
    return keys


def _is_own(status: os.stat_result) -> bool:
    """Whether it is a plain file that belongs to this user and that nobody else can write."""
    if not stat.S_ISREG(status.st_mode):
        return False
    return not hasattr(os, "geteuid") or (status.st_uid == os.geteuid() and not status.st_mode & 0o022)
