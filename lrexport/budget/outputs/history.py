"""Figures as ``[{name, unit, value}]``, "smaller is better", for dashboards of benchmark history.

The format is github-action-benchmark's ``customSmallerIsBetter``, which other tools read as well. Accuracy becomes error.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lrexport.budget import figures
from lrexport.budget.check_report import Report
from lrexport.budget.facts import Facts, ScoreFacts
from lrexport.text import plain


def history_to_json(report: Report) -> list[dict[str, Any]]:
    """Every measured figure of every model, without lower bounds of MACs."""
    return [
        {"name": plain(f"{checked.model}: {name}"), "unit": unit, "value": value}
        for checked in report.models
        for name, unit, value in _figures(checked.facts)
    ]


def _figures(facts: Facts) -> Iterator[tuple[str, str, float]]:
    for figure, value in (
        (figures.BYTES, facts.bytes),
        (figures.GZIP, facts.gzip_bytes),
        (figures.MACS, facts.exact_macs),
        (figures.PARAMS, facts.params),
    ):
        if value is not None:
            yield figure.label, figure.unit, value
    for target, latency in facts.latency_ms.items():
        yield f"{figures.P50.label} on {target}", figures.P50.unit, latency.p50
        yield f"{figures.P90.label} on {target}", figures.P90.unit, latency.p90
        if latency.ratio is not None:
            yield f"{figures.RATIO.label} on {target}", figures.RATIO.unit, latency.ratio
    if isinstance(facts.accuracy, ScoreFacts):
        score = facts.accuracy
        if not score.higher_is_better:
            yield score.metric, score.unit, score.value
        elif score.unit == "%":
            yield f"{score.metric} error", "%", round(100 * (1 - score.value), 6)
        else:  # smaller is better in this format
            yield f"{score.metric}, negated", score.unit, -score.value
    elif facts.accuracy is not None:
        yield "top-1 error", "%", round(100 * (1 - facts.accuracy.top1), 6)
        yield "top-5 error", "%", round(100 * (1 - facts.accuracy.top5), 6)
