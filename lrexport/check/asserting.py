"""A budget as an assertion in tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lrexport.artifacts.toml_files import read_settings
from lrexport.budget.check_report import Report
from lrexport.budget.limits import make_budget
from lrexport.budget.outputs import text
from lrexport.check.run_check import CheckOptions, check, check_settings
from lrexport.errors import InputError


def assert_within_budget(
    path: str | Path,
    *,
    config: str | Path | None = None,
    baseline: str | Path | None = None,
    allow_other_machine: bool = False,
    strict: bool = False,
    **limits: Any,
) -> Report:
    """Raise AssertionError unless a run or an .onnx file (or every match of a glob) is within its budget.

    ``limits`` are those of docs/budgets.md, such as ``max_bytes="500 KB"``; without any, the budgets of ``config`` apply, or
    those of lrexport.toml or pyproject.toml in the current folder. A limit whose figure was not measured fails as well, with
    ``strict`` also an inconclusive one. Returns the report. Raises UsageError and InputError like ``lrexport check``.

        def test_the_model_stays_small():
            lrexport.assert_within_budget("run", max_bytes="500 KB", max_accuracy_drop="1 point")
    """
    choices = CheckOptions(Path(baseline) if baseline else None, any_machine=allow_other_machine, strict=strict)
    if limits:
        budget = make_budget("assert_within_budget", limits, lambda key: "assert_within_budget")
        report = check([str(path)], [budget], Path(), choices)
    else:
        report = check_settings([str(path)], read_settings(str(config) if config else None), choices)
    if report.counts["bad input"]:
        raise InputError("\n".join([report.summary(), *text.details(report)]))
    if report.exit_code:
        raise AssertionError("\n".join([report.summary(), *text.details(report)]))
    return report
