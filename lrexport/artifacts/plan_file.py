"""Plans as files: read back, also when edited by hand. What a network makes of one is in lowrank/selection/from_plan.py.

Formats: docs/plans.md.
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

_WANTED = '{"scheme": "spatial", "rank": 12} or "dense"'
_Full: TypeAdapter[Pair | Dense] = TypeAdapter(Pair | Dense)


@dataclass(frozen=True)
class PlanFile:
    """A plan as it was read. ``as_written`` says that the figures are those of these choices, that nobody edited them."""

    entries: dict[str, Entry]
    as_written: bool


def read_choices(path: Path) -> dict[str, Choice]:
    """What a plan file wants of each layer that it names. Raises InputError as :func:`read_plan` does."""
    return {name: choice_of(entry) for name, entry in read_plan(path).entries.items()}


def choices_in(plan: str | Path | Mapping[str, Any]) -> dict[str, Choice]:
    """The choices of a plan in a file, of a run's, or of the plan itself, also as JSON has it.

    Raises InputError as :func:`read_plan` does.
    """
    if not isinstance(plan, Mapping):
        return read_choices(Path(plan))
    return {name: choice_of(_entry(f"the plan: layer {name!r}", entry)) for name, entry in _layers(plan, "the plan").items()}


def read_plan(path: Path) -> PlanFile:
    """The plan in a run's folder, a run.json, what ``compress --dry-run --json`` wrote, or a bare layer → entry mapping.

    An entry needs ``scheme`` and ``rank``, or is "dense" or {"dense": true}; other fields may be absent or stale. Raises
    InputError naming the file, the layer and what was wanted.
    """
    is_run = path.is_dir()
    if is_run:
        if not (path / RECORD).is_file():
            raise InputError(f"{path} is no run: it has no {RECORD}", "Give a plan file, or a run's folder.")
        path = path / RECORD
    comma = "Mostly a comma too many or too few; every name stands in double quotes."
    value = read_json(path, comma, lambda pairs: _no_twice(path, pairs))
    if not isinstance(value, dict):
        raise InputError(f"{path} holds {_shown(value)}, a plan was wanted", f"Write {{LAYER: {_WANTED}, …}}.")
    empty = "A run that was only trained has none; compress it first." if path.name == RECORD else None
    layers = _layers(value, str(path), empty)
    entries = {name: _entry(f"{path}: layer {name!r}", entry) for name, entry in layers.items()}
    return PlanFile(entries, is_run or (layers is not value and value.get("digest") == digest(entries)))


def _layers(value: Mapping[str, Any], where: str, hint: str | None = None) -> Mapping[str, Any]:
    """The entries by layer; a layer of the user's may be called "plan" too."""
    layers = value["plan"] if "plan" in value and not _is_entry(value["plan"]) else value
    if not isinstance(layers, Mapping):
        raise InputError(f"{where}: plan is {_shown(layers)}, a mapping of layers was wanted")
    if not layers:
        raise InputError(f"{where}: the plan is empty", hint)
    return layers


def _is_entry(value: Any) -> bool:
    """Whether this is one layer's, and not a mapping of layers, which may be called "scheme" or "dense" themselves."""
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
        raise InputError(f"{path}: {twice!r} stands there twice", "JSON would silently take the last; remove one.")
    return values


def _entry(where: str, value: Any) -> Entry:
    if isinstance(value, Pair | Dense | PairChoice):
        return value
    if value == "dense":
        return "dense"
    if not isinstance(value, dict):
        raise InputError(f"{where} is {_shown(value)}; {_WANTED} was wanted")
    choice = _choice(where, value)
    try:
        full = _Full.validate_python(value)
    except ValidationError:  # written by hand
        return choice
    return full if choice_of(full) == choice else choice


def _choice(where: str, value: Mapping[str, Any]) -> Choice:
    dense = value.get("dense", False)
    if not isinstance(dense, bool):
        raise InputError(f"{where}: dense is {_shown(dense)}, true or false was wanted")
    if dense:
        if "scheme" in value or "rank" in value:
            raise InputError(f"{where} is dense and has a scheme or rank too", "Remove the one or the other.")
        return "dense"
    for field in ("scheme", "rank"):
        if field not in value:
            close = nearest(field, value)
            reason = f"it has {close[0]!r}" if close else f"{_WANTED} was wanted"
            raise InputError(f"{where} has no {field}; {reason}")
    scheme, rank = value["scheme"], value["rank"]
    if not isinstance(scheme, str) or scheme not in SCHEMES:
        close = nearest(str(scheme), SCHEMES)
        meant = f"Did you mean {close[0]!r}? " if close else ""
        raise InputError(f"{where}: unknown scheme {_shown(scheme)}", f"{meant}Known: {', '.join(SCHEMES)}.")
    if isinstance(rank, bool) or not isinstance(rank, int):
        raise InputError(f"{where}: rank is {_shown(rank)}, a whole number was wanted")
    if rank < 1:
        raise InputError(f"{where}: rank is {rank}, at least 1 was wanted", 'To leave the layer as it is, write "dense".')
    return PairChoice(scheme, rank)


def _shown(value: Any) -> str:
    """As it stands in the file, the beginning of it."""
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 60 else f"{text[:60]}…"
