"""A record as tables of plain strings; the terminal, Markdown and JSON render the same ones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lrexport.record import DenseLayer, FactorisedLayer, Plan, Record, Result
from lrexport.units import format_bytes, format_count, format_ms, format_percent, format_share


@dataclass(frozen=True)
class Table:
    """Rows of strings under ``columns``; all columns but the first are right-aligned figures."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""


def results_table(record: Record) -> Table:
    """Dense beside compressed, with the ratio compressed ÷ dense. Figures that were not measured have no row."""
    dense, small = record.results.dense, record.results.compressed
    if dense is None or small is None:
        return Table(("", "dense", "compressed"), ())
    rows: list[tuple[str, ...]] = []
    if dense.accuracy and small.accuracy:
        for label, old, new in (
            ("top-1", dense.accuracy.top1, small.accuracy.top1),
            ("top-5", dense.accuracy.top5, small.accuracy.top5),
        ):
            rows.append((label, format_percent(old), format_percent(new), f"{100 * (new - old):+.2f} points"))
    counted = "exported graph" if small.macs_counted_on == "onnx" else "torch network"
    rows.append(("MACs", format_count(dense.macs), format_count(small.macs), format_share(small.macs, dense.macs)))
    rows.append(
        ("parameters", format_count(dense.params), format_count(small.params), format_share(small.params, dense.params))
    )
    if dense.bytes and small.bytes:
        row = ("ONNX file", format_bytes(dense.bytes), format_bytes(small.bytes))
        rows.append((*row, format_share(small.bytes, dense.bytes)))
    rows += _latency_rows(dense, small)
    if dense.epochs or small.epochs:
        rows.append(("epochs trained", str(dense.epochs), str(small.epochs), ""))
    return Table(("", "dense", "compressed", "ratio"), tuple(rows), _caption(record, counted))


def _latency_rows(dense: Result, small: Result) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for target, new in small.latency_ms.items():
        old = dense.latency_ms.get(target)
        if old is None or new.ratio is None:
            continue
        verdict = f"{new.ratio:.2f}×" + (" (slower!)" if new.ratio > 1 else "")
        plural = "s" if new.threads > 1 else ""
        rows.append(
            (f"latency p50 ({target}, {new.threads} thread{plural})", format_ms(old.p50), format_ms(new.p50), verdict)
        )
    return rows


def _caption(record: Record, counted: str) -> str:
    parts = [f"MACs of one input, counted on the {counted}"]
    small = record.results.compressed
    if small and small.accuracy:
        parts.append(f"accuracy on {small.accuracy.n:,} {small.accuracy.split} images of {_data_name(record)}")
    return "; ".join(parts) + "."


def _data_name(record: Record) -> str:
    return record.data.source if record.data else "unnamed data"


def plan_table(plan: Plan) -> Table:
    """Layer by layer: scheme, rank of full rank, energy kept, MACs and parameters before and after, or why it is dense."""
    rows: list[tuple[str, ...]] = []
    for name, layer in plan.items():
        if isinstance(layer, FactorisedLayer):
            rank = f"{layer.rank}/{layer.full_rank}"
            macs = f"{format_count(layer.dense_macs)} → {format_count(layer.macs)}"
            params = f"{format_count(layer.dense_params)} → {format_count(layer.params)}"
            rows.append((name, layer.scheme, rank, f"{100 * layer.energy_kept:.2f} %", macs, params))
        else:
            rows.append(
                (name, f"dense: {layer.reason}", "", "", format_count(layer.dense_macs), format_count(layer.dense_params))
            )
    return Table(("layer", "scheme", "rank", "energy kept", "MACs", "parameters"), tuple(rows))


def dense_reasons(plan: Plan) -> dict[str, int]:
    """How many layers stay dense for each reason."""
    counts: dict[str, int] = {}
    for layer in plan.values():
        if isinstance(layer, DenseLayer):
            # The figures in it are a layer's own: "a spatial pair of rank 9 costs 12K MACs, the layer 9K".
            costly = layer.reason.startswith("a ") and " pair of rank " in layer.reason
            reason = "its pair would cost more than the layer" if costly else layer.reason
            counts[reason] = counts.get(reason, 0) + 1
    return counts


def graph_table(nodes: Iterable[tuple[str, str, tuple[int, ...] | None, int]], params: int, size_bytes: int) -> Table:
    """Nodes of an ONNX graph that multiply: name, operator, the weight's shape and MACs."""
    listed = list(nodes)
    rows = [
        (name, operator, "×".join(map(str, weight)) if weight else "activations", format_count(macs))
        for name, operator, weight, macs in listed
    ]
    total = sum(macs for *_, macs in listed)
    caption = f"{format_count(total)} MACs of one input, counted on the exported graph; {format_count(params)} parameters; "
    return Table(("node", "operator", "weight", "MACs"), tuple(rows), caption + f"{format_bytes(size_bytes)}.")
