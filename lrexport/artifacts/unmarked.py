"""Folders without a mark, which was lost or never written by an older lrexport: their files show what lrexport made."""

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

_MOST_BYTES = 256 << 20  # of a record, a state or a sweep.json
_STORED = {"sha256", "bytes"}
_OF_A_STATE = {"asked", "log_bytes", "pruned", "pruned_sha256"}
_OF_A_SWEEP_RECORD = {"schema_version", "study", "objective", "made_with", "wanted", "trials"}
_HOLDER = re.compile(r"process \d+ on \S+ since \S+\n")
_SHORT = 1000  # bytes


def names(folder: Path) -> frozenset[str]:
    """Names that lrexport made in ``folder``, according to its record, its state of training or its sweep.json there."""
    made = {*recorded(folder)}
    if made:
        made |= {LOG, CHECKPOINTS}
    state = _json(folder / CHECKPOINTS / STATE)
    if isinstance(state.get("asked"), dict) and state.keys() <= _OF_A_STATE and not (folder / CHECKPOINTS).is_symlink():
        made |= {CHECKPOINTS, LOG, f"{CHECKPOINTS}/{STATE}"}
    if CHECKPOINTS in made:
        made |= {f"{CHECKPOINTS}/{name}" for name in _checkpoints(folder / CHECKPOINTS, state.get("pruned_sha256"))}
    if _json(folder / SWEEP).keys() >= _OF_A_SWEEP_RECORD:
        made |= {*OF_A_SWEEP}
    if _HOLDER.fullmatch(_beginning(folder / HOLDER)):
        made.add(HOLDER)
    return frozenset(made)


def recorded(folder: Path) -> frozenset[str]:
    """The record and the files that it names; empty without a record of lrexport."""
    record = _json(folder / RECORD)
    return frozenset({RECORD, *({*record["files"]} & {*OF_A_RUN})}) if _is_record(record) else frozenset()


def _is_record(value: dict[str, Any]) -> bool:
    """Whether it has the form that record.py writes; any other run.json is foreign."""
    model, stored = value.get("model"), value.get("files")
    return (
        isinstance(value.get("schema_version"), int)
        and isinstance(model, dict)
        and "source" in model
        and isinstance(stored, dict)
        and all(isinstance(entry, dict) and entry.keys() == _STORED for entry in stored.values())
    )


def _checkpoints(folder: Path, pruned_sha256: Any) -> list[str]:
    """Names of checkpoints whose content has the hash in their name; reads all of them."""
    if folder.is_symlink() or not folder.is_dir():
        return []
    intact = []
    for path in folder.iterdir():
        hash_in_name = checkpoint_hash(path.name)
        if (hash_in_name is None and path.name != PRUNED) or not _is_plain(path):
            continue
        digest = files.sha256(path)
        if digest == pruned_sha256 if hash_in_name is None else digest.startswith(hash_in_name):
            intact.append(path.name)
    return intact


def _is_plain(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def _json(path: Path) -> dict[str, Any]:
    """The JSON object in a plain file; empty for everything else."""
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
