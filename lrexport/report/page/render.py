"""Runs → one HTML page that opens from disk, with style, script and plotly.js inside; it loads nothing else."""

from __future__ import annotations

import base64
import hashlib
import importlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrexport.config.compression import MOST_EXAMPLES
from lrexport.errors import DeviceError
from lrexport.report import layer_tables
from lrexport.report.headline import Headline, goal_text, headlines
from lrexport.report.int8_tables import int8_table
from lrexport.report.page.sections import (
    Figures,
    Section,
    comparison_sections,
    costs_section,
    examples_section,
    ranks_section,
    spectra_section,
    training_section,
)
from lrexport.report.repeat_commands import commands, shell_lines
from lrexport.report.reported_run import ReportedRun
from lrexport.report.runs_table import runs_table
from lrexport.report.tables import Table, results_table
from lrexport.runs.record import Record
from lrexport.text import plain_line

if TYPE_CHECKING:
    import jinja2

_HERE = Path(__file__).parent
# Styles are inline because plotly sets them. Only the two scripts with these hashes run, whatever a name may contain.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"


@dataclass(frozen=True)
class RunView:
    """One run, ready for the template."""

    id: str
    name: str
    model: str
    facts: tuple[str, ...]
    headlines: tuple[Headline, ...]
    notes: tuple[str, ...]
    tables: tuple[Table, ...]
    sections: tuple[Section, ...]
    commands: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]
    files: Table


def render(subjects: Sequence[ReportedRun], version: str, most_examples: int | None = None) -> str:
    """The page, with at most ``most_examples`` pictures for each run; None: all of one run, fewer of several.

    Raises DeviceError if the extra ``report`` is not installed.
    """
    library = _plotly_js()
    figures = Figures()
    most = max(1, MOST_EXAMPLES // len(subjects)) if most_examples is None else most_examples
    runs = [_view(subject, f"run{number}", figures, most) for number, subject in enumerate(subjects, 1)]
    comparison = comparison_sections(subjects, figures) if len(subjects) > 1 else ()
    scripts = [library, _own("page.js")]
    policy = f"{_POLICY}; script-src {' '.join(map(_hash, scripts))}"
    page: str = _template().render(
        title=f"{runs[0].model}: {runs[0].name}" if len(runs) == 1 else f"{len(runs)} runs",
        policy=policy,
        style=_own("page.css"),
        scripts=scripts,
        figures=_embedded(figures.by_id),
        runs=runs,
        comparison=comparison,
        runs_table=runs_table(subjects) if len(runs) > 1 else None,
        version=version,
    )
    return page


def _template() -> jinja2.Template:
    library = _needed("jinja2")
    options = {"autoescape": True, "finalize": _visible, "undefined": library.StrictUndefined}
    environment = library.Environment(
        loader=library.FileSystemLoader(_HERE), trim_blocks=True, lstrip_blocks=True, **options
    )
    template: jinja2.Template = environment.get_template("page.html.j2")
    return template


def _visible(value: Any) -> Any:
    """A template's value: texts from a run with every character visible; the page's own markup unchanged."""
    return plain_line(value) if type(value) is str else value


def _plotly_js() -> str:
    code: str = _needed("plotly.offline").get_plotlyjs()
    return code.replace("\r\n", "\n")  # as a browser normalises it before hashing


def _needed(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DeviceError(
            f"an HTML report needs {module.partition('.')[0]}, which is not installed ({error})",
            "Install it with: pip install 'lrexport[report]', or use --format markdown or json.",
        ) from error


@cache
def _own(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _embedded(value: Mapping[str, Any]) -> str:
    """JSON for a script element: nothing in it ends the element, or acts as a command when the page is printed."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":")).replace("##", "#\\u0023")
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _view(subject: ReportedRun, id: str, figures: Figures, most_examples: int) -> RunView:
    record, rows = subject.record, layer_tables.rows_of(subject)
    sections = (
        *examples_section(subject, id, most_examples),
        spectra_section(subject, rows, id, figures),
        ranks_section(rows, id, figures),
        costs_section(subject, rows, id, figures),
        training_section(subject, id, figures),
    )
    return RunView(
        id=id,
        name=subject.name,
        model=record.model.text,
        facts=_facts(record),
        headlines=tuple(headlines(record)),
        notes=tuple(record.notes),
        tables=tuple(table for table in (results_table(record), int8_table(record)) if table.rows),
        sections=sections,
        commands=tuple(line for one in commands(record, subject.name) for line in shell_lines(one).splitlines()),
        environment=tuple(_flat(record.environment)),
        files=_files(record),
    )


def _facts(record: Record) -> tuple[str, ...]:
    shape = str(record.model.signature)
    data = f"data {record.data.source}" if record.data else "training-free"
    goal = goal_text(record)
    done = record.data.preprocessing if record.data else None
    pictures = [] if done is None else [f"pictures {done.value}"]
    return (f"input {shape}", data, *pictures, *([f"goal {goal}"] if goal else []))


def _files(record: Record) -> Table:
    rows = [(name, f"{file.bytes:,}", file.sha256) for name, file in record.files.items()]
    return Table(("file", "bytes", "sha256"), tuple(rows), words=("sha256",))


def _flat(values: Mapping[str, Any], before: str = "") -> Iterable[tuple[str, str]]:
    """Nested facts as lines."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}: ")
        else:
            yield f"{before}{name}", ", ".join(map(str, value)) if isinstance(value, list) else str(value)
