"""The files of other formats of a run, as a table."""

from __future__ import annotations

from lrexport.config.runtime_titles import title_of
from lrexport.report.tables import Table
from lrexport.runs.figures import FormatFiles
from lrexport.runs.record import Record
from lrexport.text import plain, visible
from lrexport.units import format_bytes


def formats_table(record: Record) -> Table:
    """One row for each network in each format: bytes, largest difference from its ONNX file, score in the runtime."""
    rows = []
    for each in record.formats.values():
        runtime = f"{title_of(each.runtime)} {each.version}"
        networks = (("dense", each.dense), ("compressed", each.compressed))
        in_int8 = (("dense", each.dense_int8), ("compressed", each.compressed_int8))
        for network, made in (*networks, *in_int8):
            if made is None:
                continue
            scored = made.accuracy.metric.format(made.accuracy.primary) if made.accuracy else ""
            rows.append(
                (
                    plain(", ".join(made.files)),
                    network,
                    plain(runtime),
                    plain(each.precision if made.quantisation is None else "int8"),
                    format_bytes(made.bytes),
                    _error(made),
                    visible(scored),
                )
            )
    columns = ("files", "network", "runtime", "precision", "size", "error", "score")
    caption = "The error is the largest difference from the ONNX file, relative to the largest output, in the runtime."
    return Table(columns, tuple(rows), caption, words=("network", "runtime", "precision"))


def _error(made: FormatFiles) -> str:
    if made.relative_error is None:
        return "not run" if made.quantisation is None else ""
    return f"{made.relative_error:.1e}"
