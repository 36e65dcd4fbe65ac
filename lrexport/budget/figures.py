"""Figures of a model that limits apply to: a value with its interval, or why it was not measured.

Sizes, MACs and accuracy are exact: their interval is a point. A latency's interval is the interquartile range of its ratio
to the dense network in the same interleaved rounds, converted to milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from lrexport.budget.facts import AccuracyFacts, Facts, LatencyFacts, Layer, ScoreFacts
from lrexport.units import format_bytes, format_count, format_ms, format_percent, format_points


@dataclass(frozen=True)
class Measured:
    """A value between ``low`` and ``high``; ``doubt``: why it cannot be relied on to be within a limit, or ""."""

    value: float
    low: float
    high: float
    doubt: str = ""

    @property
    def exact(self) -> bool:
        return self.low == self.high

    @property
    def is_lower_bound(self) -> bool:
        """Whether the figure is only known to be at least ``value``."""
        return math.isinf(self.high)


@dataclass(frozen=True)
class Missing:
    """A figure that was not measured: why, and how to measure it; ``is_damaged``: a file could not be read."""

    why: str
    is_damaged: bool = False


Reading = Measured | Missing


@dataclass(frozen=True)
class Share:
    """The layers' shares of a figure: bytes, MACs or parameters."""

    unit: str
    of: Callable[[Layer], int]
    show: Callable[[float], str]


@dataclass(frozen=True)
class Figure:
    """One kind of figure.

    ``unit`` is that of the value in JSON; ``show`` formats a value and ``show_difference`` a difference; ``share`` explains
    it layer by layer, for a latency by MACs.
    """

    name: str
    label: str
    unit: str
    show: Callable[[float], str]
    show_difference: Callable[[float], str]
    read: Callable[[Facts, str], Reading]
    share: Share | None = None


def _exact(value: float | None, why: str) -> Reading:
    return Missing(why) if value is None else Measured(value, value, value)


def _count_macs(facts: Facts, target: str) -> Reading:
    if facts.macs is None or not facts.uncounted:
        return _of_graph(facts, facts.macs, "its MACs were not counted")
    help_ = "; shapes = {NAME = [1, 3, 224, 224]} in the budget gives the sizes that the file leaves open"
    is_open = any("unknown shape" in operator for operator in facts.uncounted)
    doubt = f"MACs of {', '.join(facts.uncounted)} are not counted{help_ if is_open else ''}"
    return Measured(facts.macs, facts.macs, math.inf, doubt)


def _of_graph(facts: Facts, value: float | None, why: str) -> Reading:
    """A figure that is read from a graph."""
    return _exact(value, why if facts.kind is None else no_graph(facts.kind))


def no_graph(kind: str) -> str:
    """Why a file of that kind has no figures except its size."""
    return f"it is read from the graph of an .onnx file, but this is {kind}: limit its bytes, or check the .onnx file"


_UNSCORED = (
    "it was not scored on any data: check a RUN made with --data and exported with lrexport onnx, not a bare .onnx file"
)


def _read_score(
    unit: str, only_change: bool, of_classes: Callable[[AccuracyFacts], float] | None
) -> Callable[[Facts, str], Reading]:
    """Reads a score in ``unit``, the unit or the name of its metric; ``only_change``: more is to be better."""

    def read(facts: Facts, _target: str) -> Reading:
        score = facts.accuracy
        if score is None:
            return Missing(_UNSCORED)
        if isinstance(score, AccuracyFacts):
            if of_classes is None:
                return Missing(f"its top-1 accuracy is a percentage, not in {unit}: write the limit in % or in points")
            return _exact(of_classes(score), "")
        if of_classes is _top5_of:
            return Missing(f"only classification has top-5 accuracy, and its task is {score.task}")
        if unit.lower() not in (score.unit.lower(), score.metric.lower()):
            right = {"%": "% or in points"}.get(score.unit, score.unit or score.metric)
            return Missing(f"its {score.metric} is not in {unit}: write the limit in {right}")
        if score.higher_is_better:
            return _exact(score.value, "")
        if only_change:
            return _exact(-score.value, "")
        return Missing(f"a smaller {score.metric} is better: limit it with max_accuracy_drop or max_accuracy_loss")

    return read


def _latency(of: Callable[[LatencyFacts], float]) -> Callable[[Facts, str], Reading]:
    def read(facts: Facts, target: str) -> Reading:
        latency = facts.latency_ms.get(target)
        if latency is None:
            return _no_latency(facts, target)
        value, (low, high) = of(latency), _relative_spread(latency)
        return Measured(value, value * low, value * high, latency.warning or "")

    return read


def _latency_ratio(facts: Facts, target: str) -> Reading:
    latency = facts.latency_ms.get(target)
    if latency is None:
        return _no_latency(facts, target)
    if latency.ratio is None or latency.ratio_iqr is None:
        return Missing(f"its latency on {target} was measured without the dense network: name it with dense = in the budget")
    return Measured(latency.ratio, *latency.ratio_iqr, latency.warning or "")


def _no_latency(facts: Facts, target: str) -> Missing:
    others = f"; measured on: {', '.join(facts.latency_ms)}" if facts.latency_ms else ""
    how = "check a RUN that lrexport onnx has timed, or give the output of lrexport bench --json with --latency"
    return Missing(f"its latency on {target} was not measured{others}: {how}")


def _relative_spread(latency: LatencyFacts) -> tuple[float, float]:
    """Quartiles ÷ median; of the interleaved ratio if known, which is not affected by what slows both networks down."""
    if latency.ratio and latency.ratio_iqr:
        return latency.ratio_iqr[0] / latency.ratio, latency.ratio_iqr[1] / latency.ratio
    half = latency.iqr / 2 / latency.p50 if latency.p50 > 0 else 0.0
    return 1 - half, 1 + half


def _whole(value: float) -> str:
    return f"{value:.0f}"


def format_ratio(value: float) -> str:
    """``0.48`` → ``"0.48×"``."""
    return f"{value:.3g}×"


_UNEXPORTED = "the run has no ONNX file yet: lrexport onnx RUN writes it"
_UNCOUNTED = "its parameters were not counted"
_NO_OPSET = "the model has no ONNX file, or the file has no standard opset"
_BYTES = Share("bytes", lambda layer: layer.bytes, format_bytes)
_MACS = Share("MACs", lambda layer: layer.macs, format_count)
_PARAMS = Share("parameters", lambda layer: layer.params, format_count)


def _sized(name: str, label: str, of: Callable[[Facts], int | None]) -> Figure:
    return Figure(name, label, "bytes", format_bytes, format_bytes, lambda f, _: _exact(of(f), _UNEXPORTED), _BYTES)


def _counted(name: str, label: str, read: Callable[[Facts, str], Reading], share: Share) -> Figure:
    return Figure(name, label, label, format_count, format_count, read, share)


def _timed(name: str, label: str, of: Callable[[LatencyFacts], float]) -> Figure:
    return Figure(name, label, "ms", format_ms, format_ms, _latency(of), _MACS)


def _top1_of(accuracy: AccuracyFacts) -> float:
    return accuracy.top1


def _top5_of(accuracy: AccuracyFacts) -> float:
    return accuracy.top5


def _share(name: str, label: str, of: Callable[[AccuracyFacts], float], only_change: bool = False) -> Figure:
    return Figure(name, label, "fraction", format_percent, format_points, _read_score("%", only_change, of))


def score_in(unit: str, only_change: bool) -> Figure:
    """The score of a task whose metric has that unit or name, other than %; ``only_change``: only differences are used."""

    def show(value: float) -> str:
        return f"{value:.4g} {unit}"

    return Figure("score", "score", unit, show, show, _read_score(unit, only_change, None))


def label_of(figure: Figure, facts: Facts) -> str:
    """The figure's label: that of a score is the name of its metric."""
    is_score = figure.name in (TOP1.name, "score") and isinstance(facts.accuracy, ScoreFacts)
    return facts.accuracy.metric if is_score and isinstance(facts.accuracy, ScoreFacts) else figure.label


BYTES = _sized("bytes", "size", lambda facts: facts.bytes)
GZIP = _sized("gzip_bytes", "size after gzip -9", lambda facts: facts.gzip_bytes)
MACS = _counted("macs", "MACs", _count_macs, _MACS)
PARAMS = _counted("params", "parameters", lambda f, _: _of_graph(f, f.params, _UNCOUNTED), _PARAMS)
P50 = _timed("latency_p50", "latency p50", lambda latency: latency.p50)
P90 = _timed("latency_p90", "latency p90", lambda latency: latency.p90)
RATIO = Figure("latency_ratio", "latency ÷ dense", "ratio", format_ratio, format_ratio, _latency_ratio, _MACS)
TOP1 = _share("accuracy", "top-1 accuracy", _top1_of)
TOP1_CHANGE = _share("accuracy", "top-1 accuracy", _top1_of, only_change=True)
TOP5 = _share("top5_accuracy", "top-5 accuracy", _top5_of)
OPSET = Figure("opset", "opset", "", _whole, _whole, lambda f, _: _of_graph(f, f.opset, _NO_OPSET))
FIGURES = (BYTES, GZIP, MACS, PARAMS, P50, P90, RATIO, TOP1, TOP5, OPSET)
