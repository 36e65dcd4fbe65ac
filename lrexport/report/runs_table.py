"""A comparison of several runs, and the points of a front, as tables."""

from __future__ import annotations

from collections.abc import Sequence

from lrexport.report.fronts import Front
from lrexport.report.headline import headlines
from lrexport.report.reported_run import ReportedRun
from lrexport.report.tables import Table
from lrexport.text import visible
from lrexport.units import format_count, format_ms

_KINDS = ("MACs", "ONNX file", "Latency")
_SCORE = "score"  # the column of runs with different metrics


def runs_table(subjects: Sequence[ReportedRun]) -> Table:
    """One row per run: its model, and its ratios to its own dense network."""
    rows = []
    lines_of = [headlines(subject.record) for subject in subjects]
    labels = {lines[-1].label for lines in lines_of}  # the last one is the score
    for subject, lines in zip(subjects, lines_of, strict=True):
        values: dict[str, str] = {}
        for line in lines:
            # Only the first word, such as "inconclusive": the run's own section has the rest.
            reservation = f" ({line.warning.partition(':')[0]})" if line.warning else ""
            values.setdefault(line.label, line.value + reservation)
        label = lines[-1].label
        score = values[label] if len(labels) == 1 else f"{label} {values[label]}"
        rows.append((visible(subject.name), visible(subject.record.model.text), *(values[kind] for kind in _KINDS), score))
    on = {"onnx": "the exported graph", "torch": "the torch network"}
    counted = " or ".join(sorted({on[one.compressed.macs_counted_on] for one in subjects}))
    caption = f"Each run's ratios are to its own dense network; MACs of one input, counted on {counted}."
    column = labels.pop() if len(labels) == 1 else _SCORE
    return Table(("run", "model", *_KINDS, column), tuple(rows), caption, words=("model",))


def front_table(front: Front) -> Table:
    """Cost and score of every point, and whether it is on the front."""
    form, column = (format_count, "MACs") if front.cost == "MACs" else (format_ms, "latency p50")
    rows = [
        (point.name, form(point.cost), visible(front.metric.format(point.score)), "yes" if point.on_front else "no")
        for point in front.points
    ]
    return Table(("network", column, visible(front.metric.name), "on the front"), tuple(rows), words=("on the front",))
