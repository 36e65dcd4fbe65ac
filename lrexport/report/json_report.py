"""A report for machines, documented in docs/report.md: figures as numbers, null if not measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from lrexport.metric import TOP1, heldout_key
from lrexport.report import layer_tables
from lrexport.report.fronts import Front, fronts_of
from lrexport.report.plan_tables import entry_to_json
from lrexport.report.repeat_commands import commands
from lrexport.report.reported_run import ReportedRun
from lrexport.runs.log import LoggedEpoch

SCHEMA_VERSION = 1


def runs_to_json(subjects: Sequence[ReportedRun]) -> dict[str, Any]:
    """The report as documented in docs/report.md."""
    fronts = [_front(front) for front in fronts_of(subjects)] if len(subjects) > 1 else []
    return {"schema_version": SCHEMA_VERSION, "runs": [_run(subject) for subject in subjects], "fronts": fronts}


def _run(subject: ReportedRun) -> dict[str, Any]:
    record = subject.record
    return {
        "run": subject.name,
        "model": record.model.model_dump(mode="json"),
        "data": record.data.model_dump(mode="json") if record.data else None,
        "config": record.config,
        "results": record.results.model_dump(mode="json"),
        "ratios": _ratios(subject),
        "layers": _layers(subject),
        "training": {stage: [_epoch(epoch) for epoch in epochs] for stage, epochs in subject.curves.items()},
        "notes": record.notes,
        "commands": commands(record, subject.name),
        "environment": record.environment,
    }


def _front(front: Front) -> dict[str, Any]:
    """A front; the scores of classification are named accuracy."""
    values = asdict(front)
    if front.metric == TOP1:
        del values["metric"]
        values["points"] = [_renamed(point, "score", "accuracy") for point in values["points"]]
    return values


def _epoch(epoch: LoggedEpoch) -> dict[str, Any]:
    values = asdict(epoch)
    if epoch.metric == TOP1:
        del values["metric"]
    return _renamed(values, "heldout_score", heldout_key(epoch.metric))


def _renamed(values: dict[str, Any], name: str, new: str) -> dict[str, Any]:
    return {new if key == name else key: value for key, value in values.items()}


def _ratios(subject: ReportedRun) -> dict[str, Any]:
    """compressed ÷ dense, for the score the difference; null if one of them is unknown or a lower bound."""
    dense, small = subject.dense, subject.compressed
    old, new = dense.accuracy, small.accuracy
    change = "top1_change" if new is None or new.metric == TOP1 else "score_change"
    return {
        "macs": None if small.uncounted or dense.uncounted else _share(small.macs, dense.macs),
        "params": _share(small.params, dense.params),
        "bytes": _share(small.bytes, dense.bytes),
        "latency": {target: latency.ratio for target, latency in small.latency_ms.items()},
        change: new.primary - old.primary if old and new else None,
    }


def _layers(subject: ReportedRun) -> dict[str, Any]:
    rows = layer_tables.rows_of(subject)
    costs = {cost.name: cost for cost in layer_tables.costs_of(subject, rows)}
    times = costs["Time"]
    layers = {}
    for i, (name, row) in enumerate(zip(subject.record.plan, rows, strict=True)):
        spectrum = asdict(row.spectrum) if row.spectrum else None
        layers[name] = {
            **entry_to_json(row.facts),
            "dense_ms": times.dense[i],
            "ms": times.compressed[i],
            "spectrum": spectrum,
        }
    return layers


def _share(part: int | None, whole: int | None) -> float | None:
    return part / whole if part is not None and whole else None
