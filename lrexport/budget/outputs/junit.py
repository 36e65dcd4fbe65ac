"""JUnit XML, which GitLab, Jenkins and others show as tests: one suite per model, one case per limit."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree

from lrexport.budget.check_report import Checked, Report
from lrexport.budget.outputs.text import explanation, headline
from lrexport.budget.verdicts import Status, Verdict
from lrexport.text import plain

# An inconclusive limit or a warning is a skipped test; a limit that was not measured is an error.
_TAGS = {
    "bad input": "error",
    "failed": "failure",
    "not measured": "error",
    "inconclusive": "skipped",
    "warning": "skipped",
}


def render(report: Report) -> str:
    """The whole file, with its declaration."""
    every = [verdict for checked in report.models for verdict in checked.verdicts]
    root = ElementTree.Element("testsuites", {"name": "lrexport check", **_counts(every)})
    for checked in report.models:
        suite = ElementTree.SubElement(root, "testsuite", {"name": plain(checked.model), **_counts(checked.verdicts)})
        for verdict in checked.verdicts:
            _add_case(suite, checked, verdict)
    ElementTree.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ElementTree.tostring(root, encoding="unicode")}\n'


def _add_case(suite: ElementTree.Element, checked: Checked, verdict: Verdict) -> None:
    name = f"{verdict.budget}: {verdict.limit.key}"
    case = ElementTree.SubElement(suite, "testcase", name=plain(name), classname=plain(checked.model))
    if verdict.status == "passed":
        return
    outcome = ElementTree.SubElement(case, _TAGS[verdict.status], message=headline(verdict))
    lines = [plain(f"{verdict.limit.key} in {verdict.limit.place}")]
    if verdict.explanation is not None:
        lines.append(explanation(verdict.explanation))
    outcome.text = "\n".join(lines)


def _counts(verdicts: Sequence[Verdict]) -> dict[str, str]:
    statuses = [verdict.status for verdict in verdicts]
    return {
        "tests": str(len(statuses)),
        "failures": _number(statuses, "failure"),
        "errors": _number(statuses, "error"),
        "skipped": _number(statuses, "skipped"),
    }


def _number(statuses: Sequence[Status], tag: str) -> str:
    return str(sum(_TAGS.get(status) == tag for status in statuses))
