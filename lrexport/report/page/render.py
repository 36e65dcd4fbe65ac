"""Runs → one HTML page that opens from disk, with style, script and plotly.js inside; it loads nothing else."""

from __future__ import annotations

import base64
import hashlib
import importlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrexport.config.compression import STAGES
from lrexport.errors import DeviceError
from lrexport.metric import TOP1
from lrexport.report import layer_tables
from lrexport.report.fronts import Front, fronts_of
from lrexport.report.headline import Headline, goal_text, headlines
from lrexport.report.int8_tables import int8_table
from lrexport.report.page import charts
from lrexport.report.repeat_commands import commands, shell_lines
from lrexport.report.reported_run import ReportedRun
from lrexport.report.runs_table import front_table, runs_table
from lrexport.report.tables import Table, results_table
from lrexport.report.training_tables import metric_of, training_table
from lrexport.runs.record import Record
from lrexport.text import plain_line, visible

if TYPE_CHECKING:
    import jinja2

_HERE = Path(__file__).parent
# Styles are inline because plotly sets them. Only the two scripts with these hashes run, whatever a name may contain.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"


@dataclass(frozen=True)
class Chart:
    """A chart with its text alternative and its table. ``choice`` is its label among several in one place."""

    id: str
    alt: str
    table: Table | None = None
    choice: str = ""


@dataclass(frozen=True)
class Section:
    """A heading, a description and charts; ``missing`` says what to run if the run lacks the figures."""

    id: str
    title: str
    text: str = ""
    charts: tuple[Chart, ...] = ()
    table: Table | None = None
    missing: str = ""


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


@dataclass
class _Figures:
    """The figures for page.js, by element id."""

    by_id: dict[str, charts.Figure] = field(default_factory=dict)

    def chart(self, id: str, figure: charts.Figure, alt: str, table: Table | None = None, choice: str = "") -> Chart:
        self.by_id[id] = figure
        return Chart(id, alt, table, choice)


def render(subjects: Sequence[ReportedRun], version: str) -> str:
    """The page. Raises DeviceError if the extra ``report`` is not installed."""
    library = _plotly_js()
    figures = _Figures()
    runs = [_view(subject, f"run{number}", figures) for number, subject in enumerate(subjects, 1)]
    comparison = _comparison(subjects, figures) if len(subjects) > 1 else ()
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


def _view(subject: ReportedRun, id: str, figures: _Figures) -> RunView:
    record, rows = subject.record, layer_tables.rows_of(subject)
    sections = (
        _spectra(subject, rows, id, figures),
        _ranks(rows, id, figures),
        _costs(subject, rows, id, figures),
        _training(subject, id, figures),
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


def _spectra(subject: ReportedRun, rows: Sequence[layer_tables.Row], id: str, figures: _Figures) -> Section:
    title, place = "Singular values", f"{id}-spectra"
    if not subject.spectra:
        why = (
            "This run was made by an older version, which did not store them"
            if subject.spectra is None
            else "No layer is in SVD form"
        )
        return Section(place, title, missing=f"{why}; lrexport compress makes a run with them.")
    trained = any(row.spectrum is not None and row.spectrum.trained for row in rows)
    text = (
        "Each layer's singular values ÷ the largest, on a logarithmic scale. Values to the right of the cut were dropped. "
    )
    text += (
        "Dotted: the dense network before SVD training; solid: the network after it."
        if trained
        else "There was no SVD training: these are the dense network's values."
    )
    alt = f"Singular values of {len(subject.spectra)} layers, each with the cut at its rank; the table has the figures."
    chart = figures.chart(f"{place}-chart", charts.spectra_figure(rows), alt, layer_tables.spectrum_table(rows))
    return Section(place, title, text, (chart,))


def _ranks(rows: Sequence[layer_tables.Row], id: str, figures: _Figures) -> Section:
    pairs = [row for row in rows if row.rank is not None]
    dense = len(rows) - len(pairs)
    text = f"{len(pairs)} of {len(rows)} layers became pairs" + (f", {dense} stay dense." if dense else ".")
    place = f"{id}-ranks"
    alt = f"Rank kept of the full rank, layer by layer. {text}"
    chart = figures.chart(f"{place}-chart", charts.rank_figure(rows), alt, layer_tables.rank_table(rows))
    return Section(place, "Ranks", text, (chart,))


def _costs(subject: ReportedRun, rows: Sequence[layer_tables.Row], id: str, figures: _Figures) -> Section:
    place, costs = f"{id}-costs", layer_tables.costs_of(subject, rows)
    shown = [
        figures.chart(
            f"{place}-{cost.name.lower()}",
            charts.cost_figure(rows, cost),
            f"{cost.name} of each layer, dense and compressed. {cost.caption}",
            choice=cost.name,
        )
        for cost in costs
        if cost.is_known
    ]
    missing = "" if costs[-1].is_known else "Time by layer was not measured: lrexport onnx RUN measures it."
    text = "Cost of each layer, dense and compressed; the two convolutions of a pair are one layer."
    return Section(place, "Cost by layer", text, tuple(shown), layer_tables.cost_table(rows, costs), missing)


def _training(subject: ReportedRun, id: str, figures: _Figures) -> Section:
    place, curves = f"{id}-training", subject.curves
    unread = f" {subject.unread} lines of log.jsonl cannot be read." if subject.unread else ""
    if not curves:
        return Section(place, "Training", missing=f"Nothing was trained in this run; --data DATA would train it.{unread}")
    ends = [
        f"{STAGES[stage]} ended at {visible(epochs[-1].metric.format(last))} after {len(epochs)} epochs"
        for stage, epochs in curves.items()
        if (last := epochs[-1].heldout_score) is not None
    ]
    text = "Held-out images are training images used for all choices, never test images. Losses of different stages have "
    text += f"different terms.{_elsewhere(subject)}{unread}"
    metric = metric_of(curves)
    shown = (
        figures.chart(
            f"{place}-{'top1' if metric == TOP1 else 'score'}",
            charts.training_figure(curves, "heldout_score"),
            f"Held-out {visible(metric.name)}: {'; '.join(ends)}.",
            choice=visible(metric.title),
        ),
        figures.chart(
            f"{place}-loss", charts.training_figure(curves, "loss"), "Loss over epochs, stage by stage.", choice="Loss"
        ),
    )
    return Section(place, "Training", text, shown, training_table(curves))


def _elsewhere(subject: ReportedRun) -> str:
    """A note on stages whose log is in the run that this one continued from."""
    trained = {"dense": subject.record.config.get("dense_epochs"), "svd": subject.record.config.get("svd_epochs")}
    names = [STAGES[stage] for stage, epochs in trained.items() if epochs and stage not in subject.curves]
    return f" The epochs of {' and '.join(names)} are in the run that this one continued from." if names else ""


def _comparison(subjects: Sequence[ReportedRun], figures: _Figures) -> tuple[Section, ...]:
    return tuple(_front(front, f"front{number}", figures) for number, front in enumerate(fronts_of(subjects), 1))


def _front(front: Front, id: str, figures: _Figures) -> Section:
    title = f"{front.quantity} against {front.cost}"
    if not front.points:
        return Section(id, title, missing=front.note)
    on = ", ".join(point.name for point in front.points if point.on_front)
    chart = figures.chart(f"{id}-chart", charts.front_figure(front), f"{title}. On the front: {on}.", front_table(front))
    better = "more accurate" if front.metric == TOP1 else "better"
    text = f"No other network is both cheaper and {better} than one on the front: {on}. {front.note} "
    text += f"{front.quantity} is on test images; choose by held-out images, as lrexport sweep does."
    return Section(id, title, text, (chart,))
