"""The files of other formats of a run, as a table."""

from __future__ import annotations

from lrexport.config.runtime_titles import title_of
from lrexport.report.tables import Table
from lrexport.runs.record import Record
from lrexport.text import plain, visible
from lrexport.units import format_bytes


def formats_table(record: Record) -> Table:
    """One row for each network in each format: bytes, largest difference from its ONNX file, score in the runtime."""
    rows = []
    for each in record.formats.values():
        runtime = f"{title_of(each.runtime)} {each.version}"
        for network, made in (("dense", each.dense), ("compressed", each.compressed)):
            scored = made.accuracy.metric.format(made.accuracy.primary) if made.accuracy else ""
            rows.append(
                (
                    plain(", ".join(made.files)),
                    network,
                    plain(runtime),
                    plain(each.precision),
                    format_bytes(made.bytes),
                    "not run" if made.relative_error is None else f"{made.relative_error:.1e}",
                    visible(scored),
                )
            )
    columns = ("files", "network", "runtime", "precision", "size", "error", "score")
    caption = "The error is the largest difference from the ONNX file, relative to the largest output, in the runtime."
    return Table(columns, tuple(rows), caption, words=("network", "runtime", "precision"))
