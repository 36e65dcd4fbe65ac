"""A record as tables of plain strings, shared by terminal, Markdown and HTML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lrexport.metric import TOP1, TOP5, Metric
from lrexport.text import number_of, visible
from lrexport.units import (
    format_bytes,
    format_count,
    format_macs,
    format_macs_share,
    format_ms,
    format_percent,
    format_share,
)

if TYPE_CHECKING:  # a table needs no record
    from lrexport.runs.figures import Result
    from lrexport.runs.record import Record
    from lrexport.runs.scores import Score


@dataclass(frozen=True)
class Table:
    """Rows of strings under ``columns``; all columns except the first and ``words`` are right-aligned figures.

    ``spare`` names columns that a narrow terminal may omit, in this order.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""
    words: tuple[str, ...] = ()
    spare: tuple[str, ...] = ()


def results_table(record: Record) -> Table:
    """Figures of dense and compressed, with the ratio compressed ÷ dense; without rows of unmeasured figures."""
    dense, small = record.results.dense, record.results.compressed
    if dense is None or small is None:
        return Table(("", "dense", "compressed"), ())
    rows: list[tuple[str, ...]] = []
    if dense.accuracy and small.accuracy:
        for metric, new in shown_metrics(record, small.accuracy):
            old = dense.accuracy.value_of(metric)
            if old is not None:
                change = metric.change(old, new)
                rows.append(
                    (visible(metric.name), *(visible(each) for each in (metric.format(old), metric.format(new), change)))
                )
    if record.is_quality_unknown:
        rows.append(("quality", "", "unknown", ""))
    counted = "exported graph" if small.macs_counted_on == "onnx" else "torch network"
    macs = [format_macs(result.macs, not result.uncounted) for result in (dense, small)]
    rows.append(("MACs", *macs, format_macs_share(small.macs, dense.macs, (small.uncounted, dense.uncounted))))
    rows.append(
        ("parameters", format_count(dense.params), format_count(small.params), format_share(small.params, dense.params))
    )
    if dense.bytes and small.bytes:
        row = ("ONNX file", format_bytes(dense.bytes), format_bytes(small.bytes))
        rows.append((*row, format_share(small.bytes, dense.bytes)))
    rows += _latency_rows(dense, small)
    if dense.epochs or small.epochs:
        rows.append(("epochs trained", str(dense.epochs), str(small.epochs), ""))
    precision = dense.precision if record.results.dense_int8 else ""  # shown only if there are int8 files as well
    return Table((precision, "dense", "compressed", "ratio"), tuple(rows), _caption(record, counted))


def _latency_rows(dense: Result, small: Result) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for target, new in small.latency_ms.items():
        old = dense.latency_ms.get(target)
        if old is None or new.ratio is None:
            continue
        verdict = f"{new.ratio:.2f}×" + (" (slower!)" if new.ratio > 1 else "")
        name = f"latency p50 ({target}, {number_of(new.threads, 'thread')})"
        rows.append((name, format_ms(old.p50), format_ms(new.p50), verdict))
    return rows


def _caption(record: Record, counted: str) -> str:
    parts = [f"MACs of one input, counted on the {counted}"]
    small = record.results.compressed
    if small and small.accuracy:
        score = "accuracy" if small.accuracy.metric == TOP1 else visible(small.accuracy.metric.name)
        parts.append(f"{score} on {small.accuracy.n:,} {small.accuracy.split} images of {data_name(record)}")
    if record.fidelity is not None:
        stages = {"repaired": record.fidelity.repaired, "healed": record.fidelity.healed}
        texts = [f"{fidelity_text(values)} {stage}" for stage, values in stages.items() if values is not None]
        parts.append(f"fidelity to the network before pruning {', '.join(texts)}")
    return "; ".join(parts) + "."


def fidelity_text(values: Mapping[str, float]) -> str:
    """``24.1 dB SQNR, same top-1 on 98.20 %``."""
    text = f"{values['SQNR']:.1f} dB SQNR" if "SQNR" in values else "unknown"
    return text + (f", same top-1 on {format_percent(values['agreement'])}" if "agreement" in values else "")


def shown_metrics(record: Record, score: Score) -> list[tuple[Metric, float]]:
    """The metrics of a score with their values; top-5 only if there are more than five classes, else it is always 100 %."""
    has_top5 = record.data is None or record.data.classes > 5
    return [(metric, value) for metric, value in score.metrics_of if metric != TOP5 or has_top5]


def data_name(record: Record) -> str:
    """Name of the data of the results' test images: that of the export's ``--data`` if it scored on them."""
    if record.export.get("data") and record.export.get("rescore"):
        return str(record.export["data"])
    return record.data.source if record.data else "unnamed data"
