"""Latencies that ``lrexport bench --json`` wrote, for the files that it measured."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lrexport.artifacts import files
from lrexport.artifacts.json_files import read_json
from lrexport.budget.facts import Facts, machine_of
from lrexport.checking.look import Looked, latency
from lrexport.errors import InputError


def with_latencies(looked: Looked, measured: Sequence[Path]) -> Looked:
    """``looked`` with the latencies that ``measured`` have of its very file; ratios only where they are to its dense file.

    Raises InputError where one was not written by ``lrexport bench``.
    """
    if looked.file is None:
        return looked
    found = dict(looked.facts.latency_ms)
    for path in measured:
        value = _read(path)
        entry = next((entry for entry in value["files"].values() if _is_of(entry, looked.file)), None)
        if entry is None:
            continue
        figures = entry["latency_ms"]
        if not _is_dense(value, looked.dense_file):
            figures = {**figures, "ratio": None, "ratio_iqr": None}
        found[value["target"]] = latency(figures, machine_of(value["environment"]))
    facts: Facts = replace(looked.facts, latency_ms=found)
    return replace(looked, facts=facts)


def _read(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path)
        for entry in value["files"].values():
            from lrexport.record import Latency

            Latency.model_validate(entry["latency_ms"])
            str(entry["path"]), str(entry["sha256"])
        dict(value["environment"]), str(value["target"]), value["baseline"]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} was not written by lrexport bench --json: {error}".splitlines()[0]) from error
    return dict(value)


def _is_of(entry: dict[str, Any], file: Path) -> bool:
    """Whether the file is still the one that was measured, wherever it lies now."""
    return bool(entry["sha256"] == files.sha256(file))


def _is_dense(value: dict[str, Any], dense_file: Path | None) -> bool:
    baseline = value["files"].get(value["baseline"])
    if baseline is None or dense_file is None or not os.path.isfile(dense_file):
        return False
    return _is_of(baseline, dense_file)
