"""Latencies that ``lrexport bench --json`` wrote, for the files that it measured."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from lrexport.artifacts import files
from lrexport.artifacts.json_files import first_fault, read_json
from lrexport.budget.facts import Facts, machine_of
from lrexport.checking.look import Looked, latency
from lrexport.errors import InputError
from lrexport.record import Latency

_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Milliseconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Figures(Latency):
    """Figures as a measurement gives them: no time is negative, and a median is above zero."""

    p50: _Positive
    p90: _Positive
    p99: _Positive
    iqr: _Milliseconds
    rounds: Annotated[int, Field(ge=1)]
    threads: Annotated[int, Field(ge=0)]
    batch: Annotated[int, Field(ge=0)]
    ratio: _Positive | None = None
    ratio_iqr: tuple[_Positive, _Positive] | None = None


class _File(BaseModel):
    """One file that was measured."""

    sha256: str
    latency_ms: _Figures


class _Measured(BaseModel):
    """What is used of the JSON that ``lrexport bench`` writes."""

    files: dict[str, _File]
    target: str
    baseline: str | None
    environment: dict[str, Any]


def with_latencies(looked: Looked, measured: Sequence[Path]) -> Looked:
    """``looked`` with the latencies that ``measured`` have of its very file; ratios only where they are to its dense file.

    Raises InputError where one was not written by ``lrexport bench``.
    """
    if looked.file is None:
        return looked
    by_target = dict(looked.facts.latency_ms)
    for path in measured:
        value = _read(path)
        entry = next((entry for entry in value.files.values() if _is_of(entry, looked.file)), None)
        if entry is None:
            continue
        figures = entry.latency_ms.model_dump()
        if not _is_dense(value, looked.dense_file):
            figures = {**figures, "ratio": None, "ratio_iqr": None}
        by_target[value.target] = latency(figures, machine_of(value.environment))
    facts: Facts = replace(looked.facts, latency_ms=by_target)
    return replace(looked, facts=facts)


def _read(path: Path) -> _Measured:
    try:
        return _Measured.model_validate(read_json(path))
    except ValidationError as error:
        message = f"{path} was not written by lrexport bench --json: {first_fault(error)}".splitlines()[0]
        raise InputError(message, "Measure again: lrexport bench FILE --json OUTPUT.") from error


def _is_of(entry: _File, file: Path) -> bool:
    """Whether the file is still the one that was measured, wherever it lies now."""
    return entry.sha256 == files.sha256(file)


def _is_dense(value: _Measured, dense_file: Path | None) -> bool:
    baseline = value.files.get(value.baseline or "")
    if baseline is None or dense_file is None or not os.path.isfile(dense_file):
        return False
    return _is_of(baseline, dense_file)
