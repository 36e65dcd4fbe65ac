"""Markdown for a step summary or a comment on a pull request, as GitHub and GitLab render it."""

from __future__ import annotations

import re

from lrexport.budget.check_report import Report
from lrexport.budget.outputs.text import explanation, headline
from lrexport.budget.verdicts import Verdict
from lrexport.errors import LrexportError
from lrexport.text import markdown

# GitHub accepts 65,536 characters in a comment and 1 MiB in a step's summary; one text has to fit both.
COMMENT_BYTES = 60_000
LEAST_BYTES = 1_000  # below which nothing useful fits
# What the marker of a comment may contain: it is an HTML comment.
COMMENT_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_CUT = "… truncated: the full report is in the log and in the output of `--json`."


def marker(comment_id: str = "") -> str:
    """The first line, by which action.yml finds its comment; checks with different ids have separate comments."""
    return f"<!-- lrexport check: {comment_id} -->" if comment_id else "<!-- lrexport check -->"


def failure(error: LrexportError, comment_id: str = "") -> str:
    """The report of a check that failed before any verdict."""
    hint = f" {markdown(error.hint)}" if error.hint else ""
    text = f"**Exit code {error.exit_code}**: {markdown(error.message)}.{hint} No limits were checked."
    return f"{marker(comment_id)}\n### lrexport check: failed\n\n{text}\n"


def render(report: Report, most_bytes: int = COMMENT_BYTES, comment_id: str = "") -> str:
    """A table of all limits, the worst first, and details of those not met; at most ``most_bytes`` long."""
    head = [marker(comment_id), f"### lrexport check: {report.summary()}", ""]
    head += ["| | model | limit | expected | found | over by |", "|---|---|---|---|---|---|"]
    rows = [
        f"| {_status(verdict)} | {_code(checked.model)} | {markdown(verdict.label)} | {markdown(verdict.expected)} "
        f"| {markdown(verdict.found)} | {markdown(verdict.over)} |"
        for checked, verdict in report.rows()
    ]
    kept_rows = _fitting(rows, most_bytes // 2 - _size(head))
    details = [
        line for checked, verdict in report.rows() if verdict.status != "passed" for line in _details(checked.model, verdict)
    ]
    details += [f"- {_code(checked.model)}: {markdown(note)}" for checked in report.models for note in checked.notes]
    kept_details = _fitting(details, most_bytes - _size(head) - _size(kept_rows) - len(_CUT.encode()) - 4)
    cut = ["", _CUT] if len(kept_rows) < len(rows) or len(kept_details) < len(details) else []
    body = ["", *kept_details] if kept_details else []
    return "\n".join([*head, *kept_rows, *body, *cut]) + "\n"


def _details(model: str, verdict: Verdict) -> list[str]:
    limit = verdict.limit
    lines = [f"- {_code(model)}: {headline(verdict, markdown)} ({_code(limit.key)} in {_code(limit.place)})"]
    if verdict.explanation is not None:
        lines.append(f"  - {explanation(verdict.explanation, _code)}")
    return lines


def _status(verdict: Verdict) -> str:
    return verdict.status if verdict.status == "passed" else f"**{verdict.status}**"


def _code(text: str) -> str:
    # Not backticks: pipes and backticks between them cannot be escaped everywhere.
    return f"<code>{markdown(text)}</code>"


def _size(lines: list[str]) -> int:
    return sum(len(line.encode()) + 1 for line in lines)


def _fitting(lines: list[str], most_bytes: int) -> list[str]:
    """As many lines from the start as fit."""
    kept: list[str] = []
    for line in lines:
        most_bytes -= len(line.encode()) + 1
        if most_bytes < 0:
            break
        kept.append(line)
    return kept
