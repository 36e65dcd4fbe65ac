"""``lrexport inspect``."""

from __future__ import annotations

from pathlib import Path

import click

from lrexport.cli.options import FILE, json_option
from lrexport.errors import UsageError


@click.command("inspect", short_help="A run or an ONNX file, layer by layer.")
@click.argument("path", type=FILE, metavar="RUN|FILE")
@json_option()
def command(path: Path, json_to: str | None) -> None:
    """Layer by layer: scheme, rank of full rank, energy kept, MACs and parameters of a RUN; nodes of an .onnx FILE."""
    if not path.exists():
        raise UsageError(f"there is no {path}")
    if path.is_dir():
        _inspect_run(path, json_to)
    else:
        _inspect_onnx(path, json_to)


def _inspect_run(run: Path, json_to: str | None) -> None:
    from lrexport.cli.console import print_table, write_json
    from lrexport.record import load_record
    from lrexport.report.tables import plan_table, results_table

    record = load_record(run)
    if json_to:
        write_json(record.model_dump(mode="json"), json_to)
    if json_to != "-":
        print_table(plan_table(record.plan))
        print_table(results_table(record))


def _inspect_onnx(path: Path, json_to: str | None) -> None:
    from lrexport.artifacts.onnx_files import read_onnx
    from lrexport.cli.console import note, print_table, write_json
    from lrexport.measure.onnx_macs import count_onnx
    from lrexport.report.tables import graph_table

    cost = count_onnx(read_onnx(path))
    size = path.stat().st_size
    if json_to:
        nodes = [{"name": n.name, "operator": n.operator, "weight": n.weight_shape, "macs": n.macs} for n in cost.nodes]
        write_json(
            {"macs": cost.macs, "params": cost.params, "bytes": size, "nodes": nodes, "uncounted": cost.uncounted}, json_to
        )
    if json_to != "-":
        print_table(graph_table(((n.name, n.operator, n.weight_shape, n.macs) for n in cost.nodes), cost.params, size))
    for operator in cost.uncounted:
        note(f"warning: MACs of {operator} are not counted")
