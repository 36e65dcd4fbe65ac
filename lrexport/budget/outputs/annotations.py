"""Workflow commands that GitHub shows as annotations at the line of the budget.

Source: docs.github.com, "Workflow commands for GitHub Actions"; the escapes are those of its toolkit (command.ts).
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator

from lrexport.budget.check_report import Report
from lrexport.budget.outputs.text import explanation, headline
from lrexport.budget.verdicts import Verdict
from lrexport.errors import LrexportError
from lrexport.text import plain

_LEVELS = dict.fromkeys(("bad input", "failed", "not measured"), "error")
_LEVELS |= dict.fromkeys(("inconclusive", "warning"), "warning")


def lines(report: Report, folder: str = "") -> Iterator[str]:
    """A line for every limit that was not met, the worst first: GitHub shows ten errors and ten warnings per step.

    ``folder`` is the current one relative to the repository's root, as GitHub's paths are.
    """
    for checked, verdict in report.rows():
        if verdict.status == "passed":
            continue
        file, line = _place(verdict, folder)
        properties = {"file": file, "line": line, "title": f"lrexport check: {plain(checked.model)}"}
        given = ",".join(f"{key}={_property(value)}" for key, value in properties.items() if value)
        text = headline(verdict)
        if verdict.explanation is not None:
            text += f"\n{explanation(verdict.explanation)}"
        yield f"::{_LEVELS[verdict.status]} {given}::{_message(text)}"


def failure(error: LrexportError) -> str:
    """A line for a check that failed before any verdict."""
    return f"::error title=lrexport check::{_message(plain(str(error.message)))}"


def _place(verdict: Verdict, folder: str) -> tuple[str, str]:
    file, _, line = verdict.limit.place.rpartition(":")
    return (plain(posixpath.normpath(posixpath.join(folder, file))), line) if line.isdecimal() else ("", "")


def _message(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _message(text).replace(":", "%3A").replace(",", "%2C")
