"""The baseline: figures of an accepted state, in a small JSON file in the repository."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrexport.artifacts import files
from lrexport.artifacts.json_files import first_fault, read_json
from lrexport.budget.facts import Facts, Unreadable
from lrexport.errors import InputError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

FILE = "lrexport-baseline.json"
SCHEMA_VERSION = 1
# Name of a lower bound of MACs in the file.
_AT_LEAST = "macs_at_least"
_HINT = "Restore it, or remove it and write it again with lrexport check --update-baseline."


def read_baseline(path: Path) -> dict[str, Facts | Unreadable]:
    """Model → figures, or why its entry is invalid. Raises InputError for a malformed file or another schema version."""
    value = read_json(path, _HINT)
    version = value.get("schema_version") if isinstance(value, dict) else None
    if version != SCHEMA_VERSION:
        raise InputError(
            f"{path} is not a baseline of this version of lrexport: schema version {version!r}, expected {SCHEMA_VERSION}",
            _HINT,
        )
    models = value.get("models")
    if not isinstance(models, dict):
        raise InputError(f"{path} is not a valid baseline: models is {type(models).__name__}, expected a table", _HINT)
    return {name: _facts(path, name, entry) for name, entry in models.items()}


@cache
def _adapter() -> TypeAdapter[Facts]:
    from pydantic import TypeAdapter

    return TypeAdapter(Facts)


def _facts(path: Path, name: str, entry: Any) -> Facts | Unreadable:
    from pydantic import ValidationError

    place = f"models.{name}"
    known = entry
    if isinstance(entry, dict) and _AT_LEAST in entry:
        known = {key: value for key, value in entry.items() if key != _AT_LEAST} | {"macs": entry[_AT_LEAST]}
    try:
        if below_zero := _below_zero(entry):
            raise ValueError(f"{below_zero}: expected a number of at least 0")
        return _adapter().validate_python(known)
    except ValidationError as error:
        why = f"{place}.{first_fault(error)}"
    except ValueError as error:
        why = f"{place}.{error}"
    return Unreadable(f"{path} has no valid entry: {why}. lrexport check --update-baseline rewrites it", entry)


def _below_zero(value: Any, place: str = "") -> str:
    """The place of a figure below 0; "" if there is none."""
    if isinstance(value, dict):
        figures = ((key, item) for key, item in value.items() if key != "machine")
        inner = (_below_zero(item, f"{place}.{key}" if place else str(key)) for key, item in figures)
        return next(filter(None, inner), "")
    return place if isinstance(value, int | float) and value < 0 else ""


def write_baseline(path: Path, models: Mapping[str, Facts | Unreadable]) -> None:
    """Write model → figures atomically, sorted by name so that a diff shows what changed.

    Invalid entries are kept as they were.
    """
    entries = {
        name: _without_none(facts.to_json()) if isinstance(facts, Facts) else facts.entry
        for name, facts in sorted(models.items())
    }
    files.write_json(path, {"schema_version": SCHEMA_VERSION, "models": entries})


def _without_none(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: _without_none(inner) for key, inner in value.items() if inner is not None and inner != {} and inner != ()}
