"""The baseline: figures of an accepted state, in a small JSON file that is kept in the repository."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lrexport.artifacts import files
from lrexport.artifacts.json_files import first_fault, read_json
from lrexport.budget.facts import Facts
from lrexport.errors import InputError

FILE = "lrexport-baseline.json"
SCHEMA_VERSION = 1


def read_baseline(path: Path) -> dict[str, Facts]:
    """Model → figures. Raises InputError where the file is malformed or of another schema."""
    from pydantic import TypeAdapter, ValidationError

    value = read_json(path, "lrexport check --update-baseline writes a baseline.")
    version = value.get("schema_version") if isinstance(value, dict) else None
    if version != SCHEMA_VERSION:
        raise InputError(
            f"{path} is no baseline that this lrexport reads: schema version {version!r}, {SCHEMA_VERSION} was wanted",
            "lrexport check --update-baseline writes one.",
        )
    try:
        return TypeAdapter(dict[str, Facts]).validate_python(value.get("models"))
    except ValidationError as error:
        raise InputError(f"{path} is not a valid baseline: models.{first_fault(error)}") from error


def write_baseline(path: Path, models: Mapping[str, Facts]) -> None:
    """Write model → figures atomically, in the order of their names so that a diff shows what changed."""
    value = {
        "schema_version": SCHEMA_VERSION,
        "models": {name: _without_none(asdict(models[name])) for name in sorted(models)},
    }
    files.write_json(path, value)


def _without_none(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: _without_none(inner) for key, inner in value.items() if inner is not None and inner != {} and inner != ()}
