"""Charts as plain data for plotly.js, without colours: page.js inserts those of the reader's colour scheme.

A colour is named by its role, ``@dense``, a variable of page.css. Every text is escaped here, because plotly interprets some
tags in texts. Figures in hover texts are formatted as in tables.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from lrexport.config.compression import STAGES
from lrexport.report.fronts import Front
from lrexport.report.layer_tables import UNKNOWN, Cost, Row
from lrexport.report.training_tables import metric_of
from lrexport.runs.log import LoggedEpoch
from lrexport.units import format_count, format_ms

Figure = dict[str, Any]

_ROW_PIXELS = 22
_MOST_NAME = 26  # characters of a layer's name on an axis; the full name is in the hover text and the table
_MOST_POINT = 40  # characters of a run's name next to its point
_MOST_VALUES = 120  # values of a spectrum: more than a small chart can show
_STAGE_COLOURS = {"dense": "@dense", "svd": "@compressed", "fine-tune": "@tuned", "baseline": "@baseline"}
_DASHES = {"dense": "solid", "svd": "solid", "fine-tune": "dash", "baseline": "dot"}
_SYMBOLS = {"dense": "circle", "svd": "square", "fine-tune": "diamond", "baseline": "x"}


def text(value: str) -> str:
    """Text that plotly shows literally: it would interpret dollar signs as TeX."""
    return html.escape(value, quote=False).replace("$", "&#36;")


def spectra_figure(rows: Sequence[Row]) -> Figure:
    """Panels, laid out by page.js in as many columns as fit: values ÷ the largest, before and after, and the cut."""
    panels = []
    for row in rows:
        if row.spectrum is None:
            continue
        cut = "whole" if row.rank is None else f"rank {row.rank} of {len(row.spectrum.dense)}"
        trained = row.spectrum.trained
        panels.append(
            {
                "title": text(_short(row.name)),
                "cut": cut,
                "rank": row.rank,
                "full_rank": len(row.spectrum.dense),
                "before": _thinned(row.spectrum.dense),
                "after": _thinned(trained) if trained is not None else None,
            }
        )
    return {"kind": "spectra", "panels": panels}


def rank_figure(rows: Sequence[Row]) -> Figure:
    """One bar per layer: its full rank, with the kept rank on it; a dense layer has a single colour."""
    places = list(range(len(rows)))
    full = [row.full_rank for row in rows]
    pairs = [row.rank for row in rows]
    whole = [row.full_rank if row.rank is None else None for row in rows]
    hover = [f"{text(row.name)}<br>rank {_or_unknown(row.rank)} of {_or_unknown(row.full_rank)}" for row in rows]
    shown = [f"{row.rank}/{row.full_rank}" if row.rank is not None else "whole" for row in rows]
    bars = [
        _bars("full rank", full, places, hover, "@faint", text=shown, textposition="outside", textfont={"color": "@muted"}),
        _bars("whole", whole, places, hover, "@dense"),
        _bars("rank kept", pairs, places, hover, "@compressed"),
    ]
    layout = _per_layer(rows, "singular values") | {"barmode": "overlay", "bargap": 0.3}
    longest = max((value for value in full if value is not None), default=1)
    layout["xaxis"]["range"] = [0, 1.25 * longest]  # with room for the text
    return {"kind": "plain", "traces": bars, "layout": layout}


def cost_figure(rows: Sequence[Row], cost: Cost) -> Figure:
    """Two bars per layer, dense above compressed."""
    places = list(range(len(rows)))
    bars = []
    for name, values, colour in (("dense", cost.dense, "@dense"), ("compressed", cost.compressed, "@compressed")):
        shown = [UNKNOWN if value is None else cost.form(value) for value in values]
        hover = [f"{text(row.name)}<br>{name}: {value}" for row, value in zip(rows, shown, strict=True)]
        bars.append(_bars(name, values, places, hover, colour))
    layout = _per_layer(rows, cost.unit, 1.35) | {"barmode": "group", "bargap": 0.25, "bargroupgap": 0}
    return {"kind": "plain", "traces": bars, "layout": layout}


def training_figure(curves: Mapping[str, Sequence[LoggedEpoch]], quantity: str) -> Figure:
    """``heldout_score`` or ``loss`` over the epochs of all stages; the dense baseline is parallel to SVD training."""
    traces: list[Figure] = []
    metric = metric_of(curves)
    done = len(curves.get("dense", ()))
    starts = {"dense": 0, "svd": done, "fine-tune": done + len(curves.get("svd", ())), "baseline": done}
    for stage, epochs in curves.items():
        values = [getattr(epoch, quantity) for epoch in epochs]
        if quantity == "heldout_score":
            shown = [UNKNOWN if value is None else text(metric.format(value)) for value in values]
            values = [None if value is None else metric.plotted(value) for value in values]
        else:
            shown = [UNKNOWN if value is None else f"{value:.4f}" for value in values]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": STAGES[stage],
                "x": [starts[stage] + number for number in range(1, len(epochs) + 1)],
                "y": values,
                "hovertext": [f"{STAGES[stage]}, epoch {number}: {one}" for number, one in enumerate(shown, 1)],
                "hoverinfo": "text",
                "line": {"color": _STAGE_COLOURS[stage], "dash": _DASHES[stage], "width": 2},
                "marker": {"symbol": _SYMBOLS[stage], "size": 7, "color": _STAGE_COLOURS[stage]},
            }
        )
    title = f"held-out {text(metric.axis)}" if quantity == "heldout_score" else "loss of the stage"
    yaxis = {"title": {"text": title}, "type": "linear" if quantity == "heldout_score" else "log", "automargin": True}
    layout = {"height": 320, "xaxis": {"title": {"text": "epochs"}, "dtick": _tick(traces)}, "yaxis": yaxis}
    return {"kind": "plain", "traces": traces, "layout": layout}


def front_figure(front: Front) -> Figure:
    """Points with names, the front as a step line, dense networks as hollow points."""
    form = format_count if front.cost == "MACs" else format_ms
    on = [point for point in front.points if point.on_front]
    metric = front.metric
    largest = max(point.cost for point in front.points)
    traces: list[Figure] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "front",
            "x": [point.cost for point in on],
            "y": [metric.plotted(point.score) for point in on],
            "line": {"color": "@cut", "dash": "dash", "width": 2, "shape": "hv"},
            "hoverinfo": "skip",
        }
    ]
    for name, is_dense, symbol, colour in (
        ("compressed", False, "circle", "@compressed"),
        ("dense", True, "square-open", "@dense"),
    ):
        points = [point for point in front.points if point.is_dense is is_dense]
        sides = ["left" if p.cost > 0.7 * largest else "right" if p.cost < 0.2 * largest else "center" for p in points]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers+text",
                "name": name,
                "x": [point.cost for point in points],
                "y": [metric.plotted(point.score) for point in points],
                "text": [text(_short(point.name, _MOST_POINT)) for point in points],
                "textposition": [f"top {side}" for side in sides],  # within the chart
                "cliponaxis": False,
                "hovertext": [f"{text(p.name)}<br>{form(p.cost)}, {text(metric.format(p.score))}" for p in points],
                "hoverinfo": "text",
                "marker": {"symbol": symbol, "size": 11, "color": colour, "line": {"width": 2, "color": colour}},
            }
        )
    unit = "MACs of one input" if front.cost == "MACs" else "milliseconds"
    yaxis = {"title": {"text": text(metric.axis)}, "automargin": True}
    layout = {"height": 400, "xaxis": {"title": {"text": unit}, "rangemode": "tozero"}, "yaxis": yaxis}
    return {"kind": "plain", "traces": traces, "layout": layout}


def _bars(
    name: str, values: Sequence[float | None], places: Sequence[int], hover: Sequence[str], colour: str, **more: Any
) -> Figure:
    marker: Figure = {"color": colour, "line": {"width": 0}}
    bar = {"type": "bar", "orientation": "h", "name": name, "x": list(values), "y": list(places), "marker": marker}
    return {**bar, "hovertext": list(hover), "hoverinfo": "text", **more}


def _per_layer(rows: Sequence[Row], title: str, taller: float = 1.0) -> Figure:
    """An axis with one line per layer, the first on top."""
    names = [text(_short(row.name)) for row in rows]
    yaxis = {"tickvals": list(range(len(rows))), "ticktext": names, "range": [len(rows) - 0.4, -0.6], "automargin": True}
    height = int(110 + _ROW_PIXELS * taller * len(rows))
    return {"height": height, "xaxis": {"title": {"text": title}, "side": "top"}, "yaxis": yaxis}


def _tick(traces: Sequence[Figure]) -> int:
    """An axis of epochs with at most about ten labels."""
    last = max((trace["x"][-1] for trace in traces if trace["x"]), default=1)
    return max(1, round(last / 10))


def _thinned(values: Sequence[float]) -> list[list[float]]:
    """[index from 1, value ÷ the largest] of at most as many values as a small chart can show, with both ends."""
    largest = max(values, default=0.0) or 1.0
    count = min(len(values), _MOST_VALUES)
    places = [round(i * (len(values) - 1) / max(1, count - 1)) for i in range(count)]
    return [[place + 1, float(f"{values[place] / largest:.4g}")] for place in places]


def _short(name: str, most: int = _MOST_NAME) -> str:
    """The end of a long name, where layers differ."""
    return name if len(name) <= most else f"…{name[-most + 1 :]}"


def _or_unknown(value: int | None) -> str:
    return UNKNOWN if value is None else str(value)
