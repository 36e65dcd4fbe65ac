"""Text for people: a table of all limits, then details of those that were not met."""

from __future__ import annotations

from collections.abc import Callable

from lrexport.budget.check_report import Checked, Report
from lrexport.budget.verdicts import Explanation, LayerChange, Verdict
from lrexport.report.tables import Table
from lrexport.text import number_of, plain

_SPARE = ("budget", "over by", "expected")


def table(report: Report) -> Table:
    """A row for every limit, the worst first; without the column of budgets if there is only one."""
    rows = [_row(checked, verdict) for checked, verdict in report.rows()]
    columns = [column for column in rows[0] if column != "budget" or len({row["budget"] for row in rows}) > 1]
    cells = tuple(tuple(plain(row[column]) for column in columns) for row in rows)
    caption = f"{number_of(len(report.models), 'model')}: {report.summary()}."
    spare = tuple(column for column in _SPARE if column in columns)
    return Table(tuple(columns), cells, caption, words=tuple(columns[1:]), spare=spare)


def _row(checked: Checked, verdict: Verdict) -> dict[str, str]:
    return {
        "model": checked.model,
        "budget": verdict.budget,
        "limit": verdict.label,
        "expected": verdict.expected,
        "found": verdict.found,
        "over by": verdict.over,
        "verdict": verdict.status,
    }


def details(report: Report) -> list[str]:
    """Lines about every limit that was not met: its place, by how much, why, and which layers grew."""
    return [line for checked, verdict in report.rows() if verdict.status != "passed" for line in _details(checked, verdict)]


def headline(verdict: Verdict, escape: Callable[[str], str] = plain) -> str:
    """``size: found 123 KB, expected at most 100 KB, 23 KB (23 %) over``, or why there is no verdict."""
    label, expected, note = escape(verdict.label), escape(verdict.expected), escape(verdict.note)
    if verdict.label == "file":
        return note
    if not verdict.is_judged:
        lower_bound = f"found {escape(verdict.found)}, " if verdict.at_least is not None else ""
        return f"{label}: {lower_bound}expected {expected}, but {note}"
    parts = [f"found {escape(verdict.found)}", f"expected {expected}"]
    if verdict.over:
        parts.append(f"{escape(verdict.over)} {'short' if verdict.expected.startswith('at least') else 'over'}")
    return f"{label}: {', '.join(parts)}" + (f"; {note}" if note else "")


def explanation(explained: Explanation, escape: Callable[[str], str] = plain) -> str:
    """``grew since the baseline: conv1 12 KB → 30 KB; …``, or the largest layers."""

    def change(layer: LayerChange) -> str:
        if not explained.grew:
            return f"{escape(layer.name)} {explained.share.show(layer.now)}"
        before = "new" if layer.before is None else explained.share.show(layer.before)
        return f"{escape(layer.name)} {before} → {explained.share.show(layer.now)}"

    what = "layers that grew since the baseline" if explained.grew else "largest layers"
    return f"{what}, in {explained.share.unit}: {'; '.join(change(layer) for layer in explained.layers)}"


def _details(checked: Checked, verdict: Verdict) -> list[str]:
    lines = [f"{plain(checked.model)}: {verdict.status}: {headline(verdict)}"]
    lines.append(f"  {verdict.limit.key} in {plain(verdict.limit.place)}")
    if verdict.explanation is not None:
        lines.append(f"  {explanation(verdict.explanation)}")
    return lines
