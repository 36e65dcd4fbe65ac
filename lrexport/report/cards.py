"""Markdown for a model card or a comment on a pull request: tables of results, and YAML front matter for model hubs.

The front matter is Hugging Face's (model card metadata, ``model-index`` for results). Its strings are written as JSON, which
is valid YAML: every name stays a string.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from lrexport.config.task_names import CLASSIFICATION
from lrexport.metric import TOP1, TOP5, Metric
from lrexport.report.fronts import Front, fronts_of
from lrexport.report.headline import goal_text
from lrexport.report.int8_tables import int8_table
from lrexport.report.repeat_commands import commands, shell_lines
from lrexport.report.reported_run import ReportedRun
from lrexport.report.runs_table import front_table, runs_table
from lrexport.report.tables import Table, data_name, results_table, shown_metrics
from lrexport.text import markdown, visible

# Hugging Face's names of tasks.
_PIPELINES = {
    CLASSIFICATION: "image-classification",
    "segmentation": "image-segmentation",
    "image": "image-to-image",
    "detection": "object-detection",
}
_TAGS = ("lrexport", "low-rank", "svd", "compression", "onnx")


def render(subjects: Sequence[ReportedRun], with_front_matter: bool = True) -> str:
    """One section per run; several runs start with a comparison and their fronts."""
    parts = [front_matter(subjects)] if with_front_matter else []
    if len(subjects) > 1:
        parts += [f"# {len(subjects)} runs of lrexport compared", markdown_table(runs_table(subjects))]
        parts += [_front(front) for front in fronts_of(subjects)]
    level = "#" if len(subjects) == 1 else "##"
    for subject in subjects:
        parts += _run(subject, level)
    return "\n\n".join(parts) + "\n"


def front_matter(subjects: Sequence[ReportedRun]) -> str:
    """Tags, and the measured scores, if any."""
    lines = ["---", "library_name: onnx"]
    tasks = {_task_of(subject) for subject in subjects}
    if len(tasks) == 1 and (tag := _PIPELINES.get(tasks.pop() or "")) is not None:
        lines.append(f"pipeline_tag: {tag}")
    lines += ["tags:", *(f"- {tag}" for tag in _TAGS)]
    measured = [_index(subject) for subject in subjects if subject.compressed.accuracy is not None]
    if measured:
        lines.append(f"model-index: {json.dumps(measured)}")
    return "\n".join([*lines, "---"])


def markdown_table(table: Table) -> str:
    """A table in GitHub's Markdown with its caption below; every cell is escaped."""
    heads = [markdown(name) or " " for name in table.columns]
    marks = ["---" if i == 0 or name in table.words else "---:" for i, name in enumerate(table.columns)]
    rows = [[markdown(cell) for cell in row] for row in table.rows]
    lines = [f"| {' | '.join(cells)} |" for cells in (heads, marks, *rows)]
    return "\n".join(lines) + (f"\n\n{markdown(table.caption)}" if table.caption else "")


def _index(subject: ReportedRun) -> dict[str, Any]:
    """An entry of ``model-index``."""
    accuracy = subject.compressed.accuracy
    assert accuracy is not None
    source = visible(data_name(subject.record))
    pipeline = _PIPELINES.get(accuracy.task)
    task = {
        "type": pipeline or visible(accuracy.task),
        "name": (pipeline or visible(accuracy.task)).replace("-", " ").capitalize(),
    }
    result = {
        "task": task,
        "dataset": {"type": source, "name": source, "split": visible(accuracy.split)},
        "metrics": [_metric(metric, value) for metric, value in shown_metrics(subject.record, accuracy)],
    }
    return {"name": visible(f"{subject.record.model.text} ({subject.name})"), "results": [result]}


def _task_of(subject: ReportedRun) -> str | None:
    """The task of a run: that of its score, or what its data is for."""
    if subject.compressed.accuracy is not None:
        return subject.compressed.accuracy.task
    return str(subject.record.config.get("task") or CLASSIFICATION) if subject.record.data is not None else None


def _metric(metric: Metric, value: float) -> dict[str, Any]:
    if metric in (TOP1, TOP5):
        return {"type": "accuracy", "name": f"{metric.name} accuracy", "value": round(value, 6)}
    name = visible(metric.name)
    return {"type": name.lower().replace(" ", "-"), "name": name, "value": round(value, 6)}


def _run(subject: ReportedRun, level: str) -> list[str]:
    record = subject.record
    goal = goal_text(record)
    what = f"{_code(record.model.text)}, compressed by low-rank factorisation of its layers with lrexport"
    what += f" (goal: {markdown(goal)})." if goal else "."
    title = subject.name if level == "##" else f"{record.model.text}, compressed"
    parts = [f"{level} {markdown(title)}", what, markdown_table(results_table(record))]
    parts += [markdown_table(table) for table in (int8_table(record),) if table.rows]
    warnings = [*record.notes, *(latency.warning for latency in subject.compressed.latency_ms.values() if latency.warning)]
    parts += ["\n".join(f"- {markdown(note)}" for note in warnings)] if warnings else []
    lines = "\n".join(shell_lines(command) for command in commands(record, subject.name))
    return [*parts, f"{level}# Repeat this run", _block(lines)]


def _front(front: Front) -> str:
    title = f"## {markdown(front.quantity)} against {markdown(front.cost)}"
    if not front.points:
        return f"{title}\n\n{markdown(front.note)}"
    return f"{title}\n\n{markdown_table(front_table(front))}\n\n{markdown(front.note)}"


def _block(text: str) -> str:
    """A block of code, fenced by more backticks than it contains."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}sh\n{text}\n{fence}"


def _code(text: str) -> str:
    return f"<code>{markdown(text)}</code>"
