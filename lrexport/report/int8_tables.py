"""A record's int8 files and its dense float32 network: a table, and notes for the user."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lrexport.artifacts.run_files import DENSE_INT8, DENSE_ONNX, MODEL_INT8, MODEL_ONNX
from lrexport.metric import SHARE, TOP1
from lrexport.report.tables import Table
from lrexport.text import visible
from lrexport.units import format_bytes, format_ms, format_percent, format_share

if TYPE_CHECKING:
    from lrexport.runs.figures import Latency, Result
    from lrexport.runs.record import Record

# The usual largest loss of the score, in points, by static quantisation of a convolutional network.
_USUAL_POINTS = 1.0


def int8_table(record: Record) -> Table:
    """Dense and compressed in int8, each with its ratio to dense in float32. Empty if the record has no int8 files."""
    results = record.results
    dense, first, second = results.dense, results.dense_int8, results.compressed_int8
    columns = ("int8", "dense", "ratio", "compressed", "ratio")
    if dense is None or first is None or second is None or first.quantisation is None:
        return Table(columns, ())
    networks = (first, second)
    metric = dense.accuracy.metric if dense.accuracy else TOP1
    rows: list[tuple[str, ...]] = [(visible(metric.name), *_score(first, dense), *_score(second, dense))]
    unit = f", {visible(metric.change_unit)}" if metric.change_unit else ""
    rows += [(f"change by int8{unit}", _change(first, dense), "", _change(second, results.compressed), "")]
    rows += [("same class as float32", _same(first), "", _same(second), "")]
    for name in first.quantisation.sqnr_db:
        label = f"SQNR of {name}" if len(first.quantisation.sqnr_db) > 1 else "SQNR"
        rows += [(label, _sqnr(first, name), "", _sqnr(second, name), "")]
    rows += [("MACs in int8", _share_in_int8(first), "", _share_in_int8(second), "")]
    rows += [("ONNX file", *(cell for one in networks for cell in _bytes(one, dense)))]
    for target in dense.latency_ms:
        rows += [(f"latency p50 ({target})", *(cell for one in networks for cell in _latency(one, target)))]
    how = first.quantisation
    caption = f"Ratios are to dense in float32; calibrated on {how.images:,} held-out training images of {how.data}."
    return Table(columns, tuple(row for row in rows if any(row[1:])), caption)


def int8_notes(record: Record) -> list[str]:
    """Notes if int8 costs more accuracy than usual, or is conclusively slower."""
    results, notes = record.results, []
    for file, new, source, old in (
        (DENSE_INT8, results.dense_int8, DENSE_ONNX, results.dense),
        (MODEL_INT8, results.compressed_int8, MODEL_ONNX, results.compressed),
    ):
        if new is None or old is None:
            continue
        # Rounded as printed: a loss of exactly one point is not more than one.
        metric = old.accuracy.metric if old.accuracy else TOP1
        lost = round(metric.loss(old.accuracy.primary, new.accuracy.primary), 2) if new.accuracy and old.accuracy else 0.0
        if lost > _USUAL_POINTS and metric.unit == SHARE:
            notes.append(f"{file} has {lost:.2f} points less {metric.name} than {source}")
        notes += [f"int8 does not pay off: {text}" for text in _slower(file, new, source, old)]
    if results.compressed_int8 and results.dense_int8:
        slower = _slower(MODEL_INT8, results.compressed_int8, DENSE_INT8, results.dense_int8)
        notes += [f"low rank does not pay off in int8: {text}" for text in slower]
    return notes


def _slower(file: str, new: Result, other: str, old: Result) -> list[str]:
    """A line for each target on which ``new`` takes longer: the quartiles of its ratio are above the other's."""
    lines = []
    for target, mine in new.latency_ms.items():
        theirs = old.latency_ms.get(target)
        if theirs is None or mine.warning or theirs.warning:
            continue
        if _quartiles(mine)[0] > _quartiles(theirs)[1]:
            lines.append(f"{file} takes {format_ms(mine.p50)} ({target}), {other} {format_ms(theirs.p50)}")
    return lines


def _quartiles(latency: Latency) -> tuple[float, float]:
    """Quartiles of the ratio to dense in the same rounds; 1 for dense itself."""
    return latency.ratio_iqr or (1.0, 1.0)


def _score(network: Result, dense: Result) -> tuple[str, str]:
    if network.accuracy is None or dense.accuracy is None:
        return "", ""
    metric, value = network.accuracy.metric, network.accuracy.primary
    return visible(metric.format(value)), visible(metric.change(dense.accuracy.primary, value))


def _change(network: Result, float32: Result | None) -> str:
    """Change of the score to the same network in float32, without its unit."""
    if network.accuracy is None or float32 is None or float32.accuracy is None:
        return ""
    change = network.accuracy.metric.change(float32.accuracy.primary, network.accuracy.primary)
    return change.partition(" ")[0]


def _same(network: Result) -> str:
    """Shown without a score: that says more."""
    how = network.quantisation
    return format_percent(how.agreement) if how and how.agreement is not None and network.accuracy is None else ""


def _sqnr(network: Result, output: str) -> str:
    decibels = network.quantisation.sqnr_db.get(output) if network.quantisation else None
    return f"{decibels:.1f} dB" if decibels is not None else ""


def _share_in_int8(network: Result) -> str:
    quantisation = network.quantisation
    return f"{100 * quantisation.int8_macs / network.macs:.1f} %" if quantisation and network.macs else ""


def _bytes(network: Result, dense: Result) -> tuple[str, str]:
    if not network.bytes or not dense.bytes:
        return "", ""
    return format_bytes(network.bytes), format_share(network.bytes, dense.bytes)


def _latency(network: Result, target: str) -> tuple[str, str]:
    latency = network.latency_ms.get(target)
    if latency is None or latency.ratio is None:
        return "", ""
    return format_ms(latency.p50), f"{latency.ratio:.2f}×" + (" slower!" if latency.ratio > 1 else "")
