"""A comparison of several runs, and the points of a front, as tables."""

from __future__ import annotations

from collections.abc import Sequence

from lrexport.report.fronts import Front
from lrexport.report.headline import headlines
from lrexport.report.reported_run import ReportedRun
from lrexport.report.tables import Table
from lrexport.text import visible
from lrexport.units import format_count, format_ms, format_percent

_KINDS = ("MACs", "ONNX file", "Latency", "Top-1")


def runs_table(subjects: Sequence[ReportedRun]) -> Table:
    """One row per run: its model, and its ratios to its own dense network."""
    rows = []
    for subject in subjects:
        values: dict[str, str] = {}
        for line in headlines(subject.record):
            # Only the first word, such as "inconclusive": the run's own section has the rest.
            reservation = f" ({line.warning.partition(':')[0]})" if line.warning else ""
            values.setdefault(line.label, line.value + reservation)
        rows.append((visible(subject.name), visible(subject.record.model.text), *(values[kind] for kind in _KINDS)))
    on = {"onnx": "the exported graph", "torch": "the torch network"}
    counted = " or ".join(sorted({on[one.compressed.macs_counted_on] for one in subjects}))
    caption = f"Each run's ratios are to its own dense network; MACs of one input, counted on {counted}."
    return Table(("run", "model", *_KINDS), tuple(rows), caption, words=("model",))


def front_table(front: Front) -> Table:
    """Cost and accuracy of every point, and whether it is on the front."""
    form, column = (format_count, "MACs") if front.cost == "MACs" else (format_ms, "latency p50")
    rows = [
        (point.name, form(point.cost), format_percent(point.accuracy), "yes" if point.on_front else "no")
        for point in front.points
    ]
    return Table(("network", column, "top-1", "on the front"), tuple(rows), words=("on the front",))
