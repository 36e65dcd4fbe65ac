"""Check the types of values in a record's open tables: the choices of the run and its export, and its machine."""

from __future__ import annotations

import types
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, create_model

from lrexport.config.compression import CompressConfig, TrainConfig
from lrexport.config.export_options import ExportOptions
from lrexport.config.goals import KEYS

# Facts of a machine with a known type; reports only list the others.
_MACHINE: dict[str, Any] = {
    "cpu": str,
    "isa": list[str],
    "cores": int,
    "system": str,
    "governor": str,
    "celsius": float,
    "onnxruntime": str,
}


def check_choices(config: Mapping[str, Any]) -> None:
    """Raise pydantic's ValidationError if an option has the wrong type. Unknown options may have any."""
    _choices().model_validate({"config": config})


def check_export(export: Mapping[str, Any]) -> None:
    """Raise pydantic's ValidationError if an option of the export has the wrong type."""
    _exports().model_validate({"export": export})


def check_environment(environment: Mapping[str, Any]) -> None:
    """Raise pydantic's ValidationError if a fact of the machine, or of a target's, has the wrong type."""
    _environment().model_validate({"environment": environment})


@cache
def _choices() -> type[BaseModel]:
    goal = _model("Goal", {name: key.type | None for name, key in KEYS.items()}, extra="forbid")
    hints = {**get_type_hints(TrainConfig), **get_type_hints(CompressConfig), "goal": goal | None}
    del hints["train"]
    return _model("Record", {"config": _model("Choices", hints)})


@cache
def _exports() -> type[BaseModel]:
    return _model("Record", {"export": _model("Export", get_type_hints(ExportOptions))})


@cache
def _environment() -> type[BaseModel]:
    machine = _model("Machine", _MACHINE)
    targets: Any = dict[str, machine]  # type: ignore[valid-type]  # made just now
    return _model("Record", {"environment": _model("Environment", {**_MACHINE, "targets": targets})})


def _model(name: str, hints: Mapping[str, Any], extra: Literal["allow", "forbid"] = "allow") -> type[BaseModel]:
    """A model whose fields may all be missing; None only if the hint allows it."""
    fields: dict[str, Any] = {key: (_in_json(hint), None) for key, hint in hints.items()}
    config = ConfigDict(extra=extra, strict=True, allow_inf_nan=False, protected_namespaces=())
    return create_model(name, __config__=config, **fields)


def _in_json(hint: Any) -> Any:
    """The type of a value of ``hint`` in JSON: a path is a text, a tuple a list."""
    if hint is Path:
        return str
    if get_origin(hint) is tuple:
        return list[_in_json(get_args(hint)[0])]  # type: ignore[misc]  # known when it runs
    if get_origin(hint) in (Union, types.UnionType):
        return Union[tuple(map(_in_json, get_args(hint)))]  # noqa: UP007 - of a tuple
    return hint
