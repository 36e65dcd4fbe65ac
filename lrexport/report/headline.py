"""A run's main results: a few ratios from its record, with the figures behind them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lrexport.text import number_of, visible
from lrexport.units import format_bytes, format_macs, format_macs_share, format_ms, format_share

if TYPE_CHECKING:
    from lrexport.runs.figures import Result
    from lrexport.runs.record import Record

NOT_MEASURED = "not measured"
QUALITY = "Quality"  # the label where no metric is known


@dataclass(frozen=True)
class Headline:
    """``value`` is the ratio compressed ÷ dense, or a difference; ``detail`` has its figures, ``warning`` a reservation."""

    label: str
    value: str
    detail: str
    warning: str = ""


def headlines(record: Record) -> list[Headline]:
    """MACs, file, latency on each target and the score, also if not measured."""
    dense, small = record.results.dense, record.results.compressed
    if dense is None or small is None:
        return []
    counted = "on the exported graph" if small.macs_counted_on == "onnx" else "on the torch network"
    figures = " → ".join(format_macs(result.macs, not result.uncounted) for result in (dense, small))
    left_out = sorted({*dense.uncounted, *small.uncounted})
    warning = visible(f"MACs of {', '.join(left_out)} are not counted") if left_out else ""
    share = format_macs_share(small.macs, dense.macs, (small.uncounted, dense.uncounted))
    lines = [Headline("MACs", share, f"{figures}, counted {counted}", warning), _file(dense, small)]
    lines += _latencies(dense, small)
    return [*lines, _score(record, dense, small)]


def goal_text(record: Record) -> str:
    """``macs 0.5``: the run's goal."""
    goal = record.config.get("goal")
    return visible(", ".join(f"{name} {value}" for name, value in goal.items())) if isinstance(goal, dict) else ""


def _file(dense: Result, small: Result) -> Headline:
    if not dense.bytes or not small.bytes:
        return Headline("ONNX file", NOT_MEASURED, "lrexport onnx RUN writes it")
    detail = f"{format_bytes(dense.bytes)} → {format_bytes(small.bytes)}, {small.precision}"
    return Headline("ONNX file", format_share(small.bytes, dense.bytes), detail)


def _latencies(dense: Result, small: Result) -> list[Headline]:
    lines = []
    for target, new in small.latency_ms.items():
        old = dense.latency_ms.get(target)
        if old is None or new.ratio is None:
            continue
        threads = number_of(new.threads, "thread")
        detail = f"{format_ms(old.p50)} → {format_ms(new.p50)}, median on {visible(target)}, {threads}"
        slower = "slower than the dense network" if new.ratio > 1 else ""
        lines.append(Headline("Latency", f"{new.ratio:.2f}×", detail, visible(new.warning or slower)))
    return lines or [Headline("Latency", NOT_MEASURED, "lrexport onnx RUN measures it")]


def _score(record: Record, dense: Result, small: Result) -> Headline:
    if record.is_quality_unknown:
        return Headline(QUALITY, "unknown", "the network was compressed without data")
    if dense.accuracy is None or small.accuracy is None:
        kept = None if record.fidelity is None else (record.fidelity.healed or record.fidelity.repaired).get("SQNR")
        if kept is None:
            why = "the run was made without data" if record.data is None else "the data has no targets for a known task"
            return Headline(QUALITY, NOT_MEASURED, why)
        return Headline("SQNR", f"{kept:.1f} dB", "of the outputs against the network before pruning, on held-out inputs")
    old, new, metric = dense.accuracy.primary, small.accuracy.primary, small.accuracy.metric
    on = f"{small.accuracy.n:,} {small.accuracy.split} images"
    detail = f"{metric.format(old)} → {metric.format(new)} on {on}"
    return Headline(visible(metric.title), visible(metric.change(old, new)).replace("-", "−"), visible(detail))
