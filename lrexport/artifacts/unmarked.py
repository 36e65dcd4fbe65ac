"""Folders of an lrexport that left no mark, or whose mark was lost on the way: what their own files say lrexport made."""

from __future__ import annotations

import re
import stat
from pathlib import Path
from typing import Any

from lrexport.artifacts import files
from lrexport.artifacts.json_files import parse_json
from lrexport.artifacts.run_files import (
    CHECKPOINTS,
    HOLDER,
    LOG,
    OF_A_RUN,
    OF_A_SWEEP,
    PRUNED,
    RECORD,
    STATE,
    SWEEP,
    checkpoint_hash,
)

_MOST_BYTES = 256 << 20  # of a record, a state, or what a sweep found
_STORED = {"sha256", "bytes"}
_OF_A_STATE = {"asked", "log_bytes", "pruned", "pruned_sha256"}
_OF_A_FOUND_SWEEP = {"schema_version", "study", "objective", "made_with", "wanted", "trials"}
_HOLDER = re.compile(r"process \d+ on \S+ since \S+\n")
_SHORT = 1000  # bytes


def names(folder: Path) -> frozenset[str]:
    """Names of what lrexport made in ``folder``, by a record, a state of training or a sweep.json that are lrexport's."""
    made = {*recorded(folder)}
    if made:
        made |= {LOG, CHECKPOINTS}
    state = _json(folder / CHECKPOINTS / STATE)
    if isinstance(state.get("asked"), dict) and state.keys() <= _OF_A_STATE and not (folder / CHECKPOINTS).is_symlink():
        made |= {CHECKPOINTS, LOG, f"{CHECKPOINTS}/{STATE}"}
    if CHECKPOINTS in made:
        made |= {f"{CHECKPOINTS}/{name}" for name in _checkpoints(folder / CHECKPOINTS, state.get("pruned_sha256"))}
    if _json(folder / SWEEP).keys() >= _OF_A_FOUND_SWEEP:
        made |= {*OF_A_SWEEP}
    if _HOLDER.fullmatch(_beginning(folder / HOLDER)):
        made.add(HOLDER)
    return frozenset(made)


def recorded(folder: Path) -> frozenset[str]:
    """The record itself and the files that it names; empty where there is none of lrexport's."""
    record = _json(folder / RECORD)
    return frozenset({RECORD, *({*record["files"]} & {*OF_A_RUN})}) if _is_record(record) else frozenset()


def _is_record(value: dict[str, Any]) -> bool:
    """The shape of what record.py writes: any other run.json is somebody else's."""
    model, stored = value.get("model"), value.get("files")
    return (
        isinstance(value.get("schema_version"), int)
        and isinstance(model, dict)
        and "source" in model
        and isinstance(stored, dict)
        and all(isinstance(entry, dict) and entry.keys() == _STORED for entry in stored.values())
    )


def _checkpoints(folder: Path, pruned_sha256: Any) -> list[str]:
    """Those that are what their names say; reading them takes as long as loading them."""
    if folder.is_symlink() or not folder.is_dir():
        return []
    sound = []
    for path in folder.iterdir():
        named = checkpoint_hash(path.name)
        if (named is None and path.name != PRUNED) or not _is_plain(path):
            continue
        digest = files.sha256(path)
        if digest == pruned_sha256 if named is None else digest.startswith(named):
            sound.append(path.name)
    return sound


def _is_plain(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def _json(path: Path) -> dict[str, Any]:
    """The object in a plain file; empty for everything else."""
    try:
        if not _is_plain(path) or path.stat().st_size > _MOST_BYTES:
            return {}
        value = parse_json(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _beginning(path: Path) -> str:
    if not _is_plain(path) or path.stat().st_size > _SHORT:
        return ""
    return path.read_bytes().decode(errors="replace")
