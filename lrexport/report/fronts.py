"""Pareto fronts of several networks: their score against MACs and against latency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from lrexport.metric import TOP1, Metric
from lrexport.pareto import pareto_front
from lrexport.report.reported_run import ReportedRun
from lrexport.report.tables import data_name
from lrexport.runs.figures import Latency, Result
from lrexport.text import number_of, visible

# What must be the same for two latencies to be comparable.
_MACHINE = ("cpu", "cores", "isa", "system", "governor", "onnxruntime")


@dataclass(frozen=True)
class Point:
    """A network: ``cost`` in MACs or milliseconds, ``score`` the value of its metric. Dense ones are for reference."""

    name: str
    cost: float
    score: float
    is_dense: bool = False
    on_front: bool = False


@dataclass(frozen=True)
class Front:
    """``metric`` against ``cost``, cheapest first. ``note`` names runs that are omitted, or says why there are no points."""

    cost: str
    points: tuple[Point, ...]
    note: str = ""
    metric: Metric = TOP1

    @property
    def quantity(self) -> str:
        """What is traded against the cost: accuracy in classification."""
        return "Accuracy" if self.metric == TOP1 else visible(self.metric.title)


def fronts_of(subjects: Sequence[ReportedRun]) -> list[Front]:
    """The score against MACs, and against latency on every target that a run was measured on."""
    differ = _scored_differently(subjects)
    if differ:
        return [Front("MACs", (), differ)]
    return [_macs_front(subjects), *_latency_fronts(subjects)]


def _macs_front(subjects: Sequence[ReportedRun]) -> Front:
    points, left_out = [], []
    for subject in subjects:
        if subject.compressed.accuracy is None:
            left_out.append(subject.name)
            continue
        points.append(Point(visible(subject.name), subject.compressed.macs, _score(subject.compressed)))
    references = [Point(name, dense.macs, _score(dense), True) for name, dense, _ in _dense_networks(subjects)]
    on = {subject.compressed.macs_counted_on for subject in subjects}
    counted = " or ".join({"onnx": "the exported graph", "torch": "the torch network"}[where] for where in sorted(on))
    metric = metric_of(subjects)
    note = f"MACs of one input, counted on {counted}.{_without(left_out)}"
    return Front("MACs", _marked([*points, *references], metric), note, metric)


def _latency_fronts(subjects: Sequence[ReportedRun]) -> list[Front]:
    targets = dict.fromkeys(target for subject in subjects for target in subject.compressed.latency_ms)
    if not targets:
        return [Front("latency", (), "No latency was measured: lrexport onnx RUN measures it.", metric_of(subjects))]
    return [_latency_front(subjects, target) for target in targets]


def _latency_front(subjects: Sequence[ReportedRun], target: str) -> Front:
    cost = f"latency on {visible(target)}"
    measured = [one for one in subjects if target in one.compressed.latency_ms and one.compressed.accuracy is not None]
    conditions = [_conditions(subject, target) for subject in measured]
    differing = [key for key in conditions[0] if len({str(each[key]) for each in conditions}) > 1] if conditions else []
    if differing:
        values = "; ".join(f"{key}: {', '.join(sorted({str(each[key]) for each in conditions}))}" for key in differing)
        note = visible(f"These latencies are not comparable: they were measured differently ({values}).")
        return Front(cost, (), note, metric_of(subjects))
    points = [Point(visible(one.name), one.compressed.latency_ms[target].p50, _score(one.compressed)) for one in measured]
    for name, dense, others in _dense_networks(measured):
        times = [one.dense.latency_ms[target].p50 for one in others if target in one.dense.latency_ms]
        if times:
            points.append(Point(name, median(times), _score(dense), True))
    left_out = [subject.name for subject in subjects if subject not in measured]
    doubtful = [one.name for one in measured if one.compressed.latency_ms[target].warning]
    note = _measured(conditions[0]) if conditions else ""
    note += f" Inconclusive: {visible(', '.join(doubtful))}." if doubtful else ""
    return Front(cost, _marked(points, metric_of(subjects)), note + _without(left_out), metric_of(subjects))


def _measured(conditions: Mapping[str, Any]) -> str:
    threads = number_of(conditions["threads"], "thread")
    how = f"Median milliseconds for a batch of {conditions['batch']} with {threads} on {conditions['cpu']}"
    return visible(f"{how}; runs were measured one after the other.")


def _conditions(subject: ReportedRun, target: str) -> dict[str, Any]:
    latency: Latency = subject.compressed.latency_ms[target]
    environment: Mapping[str, Any] = subject.record.environment_of(target)
    return {**{key: environment.get(key) for key in _MACHINE}, "threads": latency.threads, "batch": latency.batch}


def _dense_networks(subjects: Sequence[ReportedRun]) -> list[tuple[str, Result, list[ReportedRun]]]:
    """The different dense networks with a name, and the runs based on each."""
    runs_of: dict[tuple[str, int, float], list[ReportedRun]] = {}
    for subject in subjects:
        if subject.dense.accuracy is not None:
            key = (subject.record.model.text, subject.dense.macs, subject.dense.accuracy.primary)
            runs_of.setdefault(key, []).append(subject)
    sources = [source for source, *_ in runs_of]
    names = [
        f"dense {key[0]}" + (f" of {same[0].name}" if sources.count(key[0]) > 1 else "") for key, same in runs_of.items()
    ]
    return [(visible(name), same[0].dense, same) for name, same in zip(names, runs_of.values(), strict=True)]


def _scored_differently(subjects: Sequence[ReportedRun]) -> str:
    """Why the runs' accuracies are not comparable; empty if they are."""
    scored = [one for one in subjects if one.compressed.accuracy is not None]
    if not scored:
        return "No front: the runs have no accuracy, because they were made without data."
    on = {_images(one) for one in scored}
    if len(on) == 1:
        return ""
    return visible(f"No front: the accuracies are not comparable, because they are on {' and on '.join(sorted(on))}.")


def _images(subject: ReportedRun) -> str:
    accuracy = subject.compressed.accuracy
    if accuracy is None:
        return ""
    task = "" if accuracy.metric == TOP1 else f" ({accuracy.metric.name})"
    return f"{accuracy.n} {accuracy.split} images of {data_name(subject.record)}{task}"


def metric_of(subjects: Sequence[ReportedRun]) -> Metric:
    """The metric of the first run that has a score."""
    return next((one.compressed.accuracy.metric for one in subjects if one.compressed.accuracy is not None), TOP1)


def _score(result: Result) -> float:
    assert result.accuracy is not None
    return result.accuracy.primary


def _marked(points: Sequence[Point], metric: Metric) -> tuple[Point, ...]:
    """The points, cheapest first, with those on the front marked; dense networks can be on it as well."""
    front = set(pareto_front([(point.cost, metric.merit(point.score)) for point in points]))
    marked = [Point(p.name, p.cost, p.score, p.is_dense, i in front) for i, p in enumerate(points)]
    return tuple(sorted(marked, key=lambda point: point.cost))


def _without(names: Sequence[str]) -> str:
    return f" Omitted, because not measured: {visible(', '.join(names))}." if names else ""
