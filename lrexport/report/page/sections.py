"""Sections of the page: charts with their text alternatives and tables, and example pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from lrexport.config.compression import STAGES
from lrexport.metric import TOP1
from lrexport.report import layer_tables
from lrexport.report.example_views import ExampleView, example_views
from lrexport.report.fronts import Front, fronts_of
from lrexport.report.page import charts
from lrexport.report.reported_run import ReportedRun
from lrexport.report.runs_table import front_table
from lrexport.report.tables import Table
from lrexport.report.training_tables import metric_of, training_table
from lrexport.text import visible


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
    examples: tuple[ExampleView, ...] = ()


@dataclass
class Figures:
    """The figures for page.js, by element id."""

    by_id: dict[str, charts.Figure] = field(default_factory=dict)

    def chart(self, id: str, figure: charts.Figure, alt: str, table: Table | None = None, choice: str = "") -> Chart:
        self.by_id[id] = figure
        return Chart(id, alt, table, choice)


def examples_section(subject: ReportedRun, id: str, most: int) -> Iterable[Section]:
    """Held-out pictures with the outputs of both networks, if the run has them."""
    examples, data = subject.examples, subject.record.data
    if examples is None or data is None or not most:
        return
    place = f"{id}-examples"
    views = example_views(examples, data.class_names, place, most)
    if not views:
        return
    text = "Outputs of the dense and the compressed network side by side, in torch. Some pictures are drawn at random, the "
    text += (
        f"others are those of {examples.about.considered:,} held-out pictures on which the compressed network loses most."
    )
    yield Section(place, "Examples", text, examples=views)


def spectra_section(subject: ReportedRun, rows: Sequence[layer_tables.Row], id: str, figures: Figures) -> Section:
    """Every layer's singular values with the cut."""
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


def ranks_section(rows: Sequence[layer_tables.Row], id: str, figures: Figures) -> Section:
    """Ranks kept, layer by layer."""
    pairs = [row for row in rows if row.rank is not None]
    dense = len(rows) - len(pairs)
    text = f"{len(pairs)} of {len(rows)} layers became pairs" + (f", {dense} stay dense." if dense else ".")
    place = f"{id}-ranks"
    alt = f"Rank kept of the full rank, layer by layer. {text}"
    chart = figures.chart(f"{place}-chart", charts.rank_figure(rows), alt, layer_tables.rank_table(rows))
    return Section(place, "Ranks", text, (chart,))


def costs_section(subject: ReportedRun, rows: Sequence[layer_tables.Row], id: str, figures: Figures) -> Section:
    """Costs of the layers, dense and compressed."""
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


def training_section(subject: ReportedRun, id: str, figures: Figures) -> Section:
    """Scores and losses, epoch by epoch."""
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


def comparison_sections(subjects: Sequence[ReportedRun], figures: Figures) -> tuple[Section, ...]:
    """The fronts of several runs."""
    return tuple(_front(front, f"front{number}", figures) for number, front in enumerate(fronts_of(subjects), 1))


def _front(front: Front, id: str, figures: Figures) -> Section:
    title = f"{front.quantity} against {front.cost}"
    if not front.points:
        return Section(id, title, missing=front.note)
    on = ", ".join(point.name for point in front.points if point.on_front)
    chart = figures.chart(f"{id}-chart", charts.front_figure(front), f"{title}. On the front: {on}.", front_table(front))
    better = "more accurate" if front.metric == TOP1 else "better"
    text = f"No other network is both cheaper and {better} than one on the front: {on}. {front.note} "
    text += f"{front.quantity} is on test images; choose by held-out images, as lrexport sweep does."
    return Section(id, title, text, (chart,))
