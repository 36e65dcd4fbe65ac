"""A sweep as a table: its front, cheapest first, and the dense network to compare with."""

from __future__ import annotations

from collections.abc import Mapping

from lrexport.metric import TOP1, Metric
from lrexport.report.tables import Table
from lrexport.runs.sweep_record import Figures, Objective, Sweep, Trial
from lrexport.text import number_of, option_name
from lrexport.units import format_bytes, format_count, format_ms

_HEADS: dict[Objective, tuple[str, ...]] = {
    "macs": ("MACs", "÷ dense"),
    "size": ("ONNX file",),
    "latency": ("latency ÷ dense", "p50", "MACs"),
}


def front_table(sweep: Sweep) -> Table:
    """One row for each trial of the front, the dense network last."""
    names = list(dict.fromkeys(name for trial in sweep.trials for name in trial.parameters))
    name = metric_of(sweep).name
    columns = ("trial", f"held-out {name}", *_HEADS[sweep.objective], *map(flag, names), f"test {name}")
    rows = [_row(sweep, trial, names) for trial in sweep.on_front()]
    if rows and sweep.dense is not None:
        rows.append(("dense", *_figures(sweep, sweep.dense, ["—"] * len(names))))
    words = tuple(flag(name) for name in names if any(isinstance(t.parameters.get(name), str) for t in sweep.trials))
    return Table(columns, tuple(rows), caption(sweep), words, spare=(f"test {name}",))


def caption(sweep: Sweep) -> str:
    """Numbers of trials by state, and what the columns mean."""
    counts = {state: sum(trial.state == state for trial in sweep.trials) for state in ("finished", "pruned", "failed")}
    ended = f"{counts['finished']} of {sweep.wanted} trials finished"
    ended += "".join(f", {count} {_ENDS[state]}" for state, count in counts.items() if count and state in _ENDS)
    known = [trial.figures.target for trial in sweep.finished() if trial.figures and trial.figures.target]
    threads = sweep.made_with.get("threads", 1)
    measured = f" Latency on {known[0]} with {number_of(threads, 'thread')}." if known else ""
    return (
        f"{ended}; {len(sweep.front)} on the front. Ranked by held-out {metric_of(sweep).name}; test images, in the last "
        f"column, were not used for any choice.{measured}"
    )


def metric_of(sweep: Sweep) -> Metric:
    """The metric that trials are ranked by."""
    known = [sweep.dense, *(trial.figures for trial in sweep.trials)]
    return next((figures.metric for figures in known if figures is not None), TOP1)


_ENDS = {"pruned": "out of reach", "failed": "failed"}


def flag(name: str) -> str:
    """A parameter's name as an option."""
    return option_name(name)


def parameters_text(parameters: Mapping[str, float | int | str]) -> str:
    """``"macs 0.41, scheme channel"``."""
    return ", ".join(f"{flag(name)} {_value(value)}" for name, value in parameters.items())


def cost_text(sweep: Sweep, figures: Figures) -> str:
    """``"0.412 of the dense network's MACs"``."""
    if sweep.objective == "size":
        return format_bytes(figures.bytes or 0)
    if sweep.objective == "latency":
        return f"{figures.latency_ratio or 0:.3f} of the dense network's latency"
    share = f"{figures.macs / sweep.dense.macs:.3f} of the dense network's" if sweep.dense else format_count(figures.macs)
    return f"{share} MACs"


def _row(sweep: Sweep, trial: Trial, names: list[str]) -> tuple[str, ...]:
    assert trial.figures is not None
    values = [_value(trial.parameters[name]) if name in trial.parameters else "—" for name in names]
    return (f"{trial.number:04d}", *_figures(sweep, trial.figures, values))


def _figures(sweep: Sweep, figures: Figures, values: list[str]) -> tuple[str, ...]:
    costs: tuple[str, ...]
    if sweep.objective == "macs":
        dense = sweep.dense.macs if sweep.dense else 0
        costs = (format_count(figures.macs), f"{figures.macs / dense:.3f}" if dense else "—")
    elif sweep.objective == "size":
        costs = (format_bytes(figures.bytes) if figures.bytes else "—",)
    else:
        ratio = "—" if figures.latency_ratio is None else f"{figures.latency_ratio:.3f}"
        costs = (ratio, format_ms(figures.latency_ms) if figures.latency_ms else "—", format_count(figures.macs))
    return (figures.metric.format(figures.heldout_score), *costs, *values, figures.metric.format(figures.test_score))


def _value(value: float | int | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
