"""Read plan files, including ones edited by hand. Formats: docs/plans.md.

lowrank/selection/from_plan.py applies a plan to a network.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from lrexport.artifacts.json_files import read_json
from lrexport.artifacts.run_files import RECORD
from lrexport.errors import InputError
from lrexport.plan import SCHEMES, Choice, Dense, Entry, Pair, PairChoice, choice_of, digest
from lrexport.text import nearest

_EXAMPLES = '{"scheme": "spatial", "rank": 12} or "dense"'
_Full: TypeAdapter[Pair | Dense] = TypeAdapter(Pair | Dense)


@dataclass(frozen=True)
class PlanFile:
    """A plan as read from a file. ``as_written``: its choices were not edited, so its figures are valid."""

    entries: dict[str, Entry]
    as_written: bool


def read_choices(path: Path) -> dict[str, Choice]:
    """The choice for each layer in a plan file. Raises InputError as :func:`read_plan` does."""
    return {name: choice_of(entry) for name, entry in read_plan(path).entries.items()}


def choices_in(plan: str | Path | Mapping[str, Any]) -> dict[str, Choice]:
    """The choices of a plan: of a file, of a run, or of a mapping, which may be parsed JSON.

    Raises InputError as :func:`read_plan` does.
    """
    if not isinstance(plan, Mapping):
        return read_choices(Path(plan))
    return {name: choice_of(_entry(f"the plan: layer {name!r}", entry)) for name, entry in _layers(plan, "the plan").items()}


def read_plan(path: Path) -> PlanFile:
    """The plan of a run's folder, a run.json, the output of ``compress --dry-run --json``, or a layer → entry mapping.

    An entry has ``scheme`` and ``rank``, or is "dense" or {"dense": true}; other fields may be missing or outdated. Raises
    InputError naming the file, the layer and what was expected.
    """
    is_run = path.is_dir()
    if is_run:
        if not (path / RECORD).is_file():
            raise InputError(f"invalid run {path}: it has no {RECORD}", "Give a plan file, or the folder of a run.")
        path = path / RECORD
    comma = "Check the commas; every name needs double quotes."
    value = read_json(path, comma, lambda pairs: _no_twice(path, pairs))
    if not isinstance(value, dict):
        raise InputError(f"invalid plan {path}: it is {_shown(value)}", f"Write {{LAYER: {_EXAMPLES}, …}}.")
    empty = "A run that was only trained has no plan: compress it first." if path.name == RECORD else None
    layers = _layers(value, str(path), empty)
    entries = {name: _entry(f"{path}: layer {name!r}", entry) for name, entry in layers.items()}
    return PlanFile(entries, is_run or (layers is not value and value.get("digest") == digest(entries)))


def _layers(value: Mapping[str, Any], where: str, hint: str | None = None) -> Mapping[str, Any]:
    """The entries by layer; a layer can also be called "plan"."""
    layers = value["plan"] if "plan" in value and not _is_entry(value["plan"]) else value
    if not isinstance(layers, Mapping):
        raise InputError(f"{where}: invalid plan {_shown(layers)}: expected a mapping of layers")
    if not layers:
        raise InputError(f"{where}: the plan is empty", hint)
    return layers


def _is_entry(value: Any) -> bool:
    """Whether this is the entry of one layer, not a mapping of layers, which may have names such as "scheme" or "dense"."""
    if isinstance(value, Pair | Dense | PairChoice):
        return True
    if not isinstance(value, dict):
        return bool(value == "dense")
    scheme = value.get("scheme", "dense")
    return (isinstance(scheme, str) and scheme != "dense") or isinstance(value.get("dense"), bool)


def _no_twice(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{path}: duplicate name {twice!r}", "Remove one of the two; JSON would silently use the last.")
    return values


def _entry(where: str, value: Any) -> Entry:
    if isinstance(value, Pair | Dense | PairChoice):
        return value
    if value == "dense":
        return "dense"
    if not isinstance(value, dict):
        raise InputError(f"{where} is {_shown(value)}; expected {_EXAMPLES}")
    choice = _choice(where, value)
    try:
        full = _Full.validate_python(value)
    except ValidationError:  # a choice written by hand, without figures
        return choice
    return full if choice_of(full) == choice else choice


def _choice(where: str, value: Mapping[str, Any]) -> Choice:
    dense = value.get("dense", False)
    if not isinstance(dense, bool):
        raise InputError(f"{where}: dense is {_shown(dense)}; expected true or false")
    if dense:
        if "scheme" in value or "rank" in value:
            raise InputError(f"{where} is dense, but also has a scheme or a rank", "Remove one of the two.")
        return "dense"
    for field in ("scheme", "rank"):
        if field not in value:
            close = nearest(field, value)
            reason = f"did you mean {close[0]!r}?" if close else f"expected {_EXAMPLES}"
            raise InputError(f"{where} has no {field}; {reason}")
    scheme, rank = value["scheme"], value["rank"]
    if not isinstance(scheme, str) or scheme not in SCHEMES:
        close = nearest(str(scheme), SCHEMES)
        meant = f"Did you mean {close[0]!r}? " if close else ""
        raise InputError(f"{where}: unknown scheme {_shown(scheme)}", f"{meant}Known: {', '.join(SCHEMES)}.")
    if isinstance(rank, bool) or not isinstance(rank, int):
        raise InputError(f"{where}: invalid rank {_shown(rank)}: expected a whole number")
    if rank < 1:
        raise InputError(f"{where}: invalid rank {rank}: expected at least 1", 'To keep the layer dense, write "dense".')
    return PairChoice(scheme, rank)


def _shown(value: Any) -> str:
    """The value as JSON, at most its first 60 characters."""
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 60 else f"{text[:60]}…"
