"""The report as JSON for machines, documented in docs/budgets.md."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from lrexport.budget.check_report import Report
from lrexport.budget.verdicts import Verdict

SCHEMA_VERSION = 1


def check_to_json(report: Report) -> dict[str, Any]:
    """The report as documented in docs/budgets.md."""
    return {
        "schema_version": SCHEMA_VERSION,
        "exit_code": report.exit_code,
        "counts": dict(report.counts),
        "models": [
            {
                "model": checked.model,
                "figures": checked.facts.to_json(),
                "verdicts": [_verdict(verdict) for verdict in checked.verdicts],
                "notes": [*checked.notes],
            }
            for checked in report.models
        ],
    }


def _verdict(verdict: Verdict) -> dict[str, Any]:
    explained = verdict.explanation
    return {
        "budget": verdict.budget,
        "key": verdict.limit.key,
        "place": verdict.limit.place,
        "status": verdict.status,
        "label": verdict.label,
        "wanted": verdict.expected,
        "found": verdict.found,
        "over": verdict.over or None,
        "note": verdict.note or None,
        "value": verdict.value,
        "at_least": verdict.at_least,
        "limit": verdict.limit_value,
        "unit": verdict.unit or None,
        "layers_grew": explained.grew if explained else None,
        "layers_unit": explained.share.unit if explained else None,
        "layers": [asdict(layer) for layer in explained.layers] if explained else [],
    }
